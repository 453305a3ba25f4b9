"""Encode a folder of motion and iterate its codes in a PyTorch DataLoader, padded and masked, for a token model.

    python examples/codes_in_a_dataloader.py                        # the tokenizer and the motion of train_on_bvh.py
    python examples/codes_in_a_dataloader.py runs/mine/run/tokenizer /data/bvh --codes codes/mine

A codes file per clip is written once; what is there already is skipped.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from train_on_bvh import FOLDER, command, trained

from ds_rvqvae import read_codes


class ClipCodes(Dataset[Tensor]):
    """The codes files below a folder; an item is int64 `[codes, levels]`."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.rglob("*.npz"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(read_codes(self.files[index]).codes)


def collate(clips: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return codes `[clips, longest, levels]`, padded with 0, and the mask of real ones, `[clips, longest]`."""
    codes = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    lengths = torch.tensor([len(clip) for clip in clips])
    return codes, torch.arange(codes.shape[1]) < lengths[:, None]


def main(argv: list[str] | None = None) -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description="Encode a folder of motion and iterate its codes in a DataLoader.")
    parser.add_argument("tokenizer", nargs="?", help="folder of a tokenizer (default: that of train_on_bvh.py)")
    parser.add_argument("motion", nargs="?", type=Path, default=FOLDER / "bvh", help="folder of motion files")
    parser.add_argument("--codes", type=Path, default=FOLDER / "codes", help="folder of codes files (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=4, help="clips per batch (default: %(default)s)")
    args = parser.parse_args(argv)

    command("encode", args.tokenizer or trained(), args.motion, "--out", args.codes)
    loader = DataLoader(ClipCodes(args.codes), args.batch_size, shuffle=True, collate_fn=collate)
    for codes, mask in loader:
        # A token model takes all levels of a time step at once, or, as here, one sequence per clip: the levels of the
        # first code, then those of the second, and so on.
        tokens = codes.flatten(1)
        token_mask = mask.repeat_interleave(codes.shape[2], dim=1)
        print(f"codes {[*codes.shape]}, {int(mask.sum())} of them real", end="; ")
        print(f"as one sequence per clip {[*tokens.shape]}, {int(token_mask.sum())} of them real")


if __name__ == "__main__":
    main()
