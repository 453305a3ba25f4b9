"""Train a small model of first-level codes with a frozen tokenizer inside; save, load, decode what it predicts.

    python examples/second_stage.py                                 # the tokenizer and the motion of train_on_bvh.py
    python examples/second_stage.py runs/mine/run/tokenizer stores/mine --steps 2000

The model predicts the first level's next code from those before it. The optimizer sees the model's own parameters
alone; the tokenizer follows the model to its device and into its checkpoints, and its codes stay those of fp32.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from train_on_bvh import FOLDER, trained

from ds_rvqvae import MotionTokenizer
from ds_rvqvae.data import open_store


class NextCode(nn.Module):
    """A GRU over the codes of one level, with the tokenizer that makes them.

    Args:
        tokenizer: frozen, which `MotionTokenizer.from_pretrained` gives.
        width: of the GRU.
    """

    def __init__(self, tokenizer: MotionTokenizer, width: int = 64) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        nb_code = tokenizer.model.config.nb_code
        self.embedding = nn.Embedding(nb_code, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, nb_code)

    def forward(self, codes: Tensor) -> Tensor:
        """Return logits `[clips, codes, nb_code]` of the code after each of `codes [clips, codes]`."""
        logits: Tensor = self.head(self.gru(self.embedding(codes))[0])
        return logits

    @torch.no_grad()
    def continue_from(self, codes: Tensor, count: int) -> Tensor:
        """Return motion `[frames, columns]`: that of `codes [1, codes]` and of `count` more, the most likely ones."""
        for _ in range(count):
            codes = torch.cat([codes, self(codes)[:, -1:].argmax(-1)], dim=1)
        motion: Tensor = self.tokenizer.decode(codes[0, :, None])
        return motion


def main(argv: list[str] | None = None) -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description="Train a small model on the codes of a frozen tokenizer inside it.")
    parser.add_argument("tokenizer", nargs="?", help="folder of a tokenizer (default: that of train_on_bvh.py)")
    parser.add_argument("store", nargs="?", type=Path, default=FOLDER / "store", help="motion (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--checkpoint", type=Path, default=FOLDER / "second_stage.pt", help="file of the weights")
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    folder = args.tokenizer or trained()
    model = NextCode(MotionTokenizer.from_pretrained(folder)).to("cuda" if torch.cuda.is_available() else "cpu")
    store = open_store(args.store)
    clips = [model.tokenizer.encode(torch.tensor(store.clip(name)))[:, 0] for name in store.clip_names]
    length = min(map(len, clips))
    codes = torch.stack([clip[:length] for clip in clips])

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    print(f"{sum(weight.numel() for weight in model.parameters()):,} parameters, none of them the tokenizer's")
    for step in range(args.steps):
        loss = nn.functional.cross_entropy(model(codes[:, :-1]).transpose(1, 2), codes[:, 1:])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        if step % 20 == 0 or step == args.steps - 1:
            print(f"step {step}: loss {loss.item():.3f}")

    args.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), args.checkpoint)  # with the tokenizer's weights; those of another are refused
    again = NextCode(MotionTokenizer.from_pretrained(folder))
    again.load_state_dict(torch.load(args.checkpoint, weights_only=True))
    motion = again.continue_from(codes[:1, : length // 2].cpu(), length // 2)
    print(f"motion of {length // 2} codes and {length // 2} predicted ones: {[*motion.shape]}")


if __name__ == "__main__":
    main()
