"""Compares the residual quantizer alone with `vector_quantize_pytorch.ResidualVQ`: tokens per second in training.

    python benchmarks/quantizer.py [--device cpu] [--vectors 2560] [--json [FILE]]

Both quantize the same vectors with the same codebooks, without quantizer dropout and noise, and are checked to choose
the same codes. They may differ if two codes are equally near up to rounding (`other codes` counts such vectors). A
token is one vector's code at one level. The forward passes are timed in turns; times are medians. Their forward pass
also updates the codebooks. Ours only sums statistics; `update_codebooks` applies these once per step, and is timed by
itself.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

from ds_rvqvae.process.command import begin_program, run_program

if __name__ == "__main__":
    begin_program()  # before the slow imports

import torch
from vector_quantize_pytorch import ResidualVQ

from ds_rvqvae import ResidualQuantizer
from ds_rvqvae.cli.common import add_json_flag, print_result

ROUNDS = 15
DIM = 128
SHAPES = [(6, 1024), (16, 1024), (6, 8192), (16, 8192)]
"""Levels, and codes per level."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--vectors", type=int, default=2560, help="per batch (default: 2560, 80 windows of 128 frames)")
    add_json_flag(parser)
    args = parser.parse_args()
    device = torch.device(args.device)
    rows = [measure(levels, codes, args.vectors, device) for levels, codes in SHAPES]
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    titles = ("ours", "update", "vector_quantize_pytorch", "times", "other codes", "tokens/s")
    lines = [
        f"{name}, torch {torch.__version__}, {args.vectors} vectors of {DIM}; milliseconds, median (least to most)",
        "levels x codes  {:>26}{:>10}{:>30}{:>8}{:>13}{:>14}".format(*titles),
    ]
    for row in rows:
        shape = f"{row['levels']:>3} x {row['codes']:<10}"
        ours, theirs = spread(row["ours_s"]), spread(row["theirs_s"])
        lines.append(
            f"{shape}{ours:>26}{1e3 * row['update_s'][0]:>10.2f}{theirs:>30}{row['times']:>8.1f}"
            f"{row['other_codes']:>13}{row['tokens_per_s']:>14,.0f}"
        )
    print_result(args, {"device": name, "torch": torch.__version__, "measured": rows}, "\n".join(lines))


def spread(values: list[float]) -> str:
    median, least, most = (1e3 * value for value in values)
    return f"{median:.2f} ({least:.2f} to {most:.2f})"


def measure(levels: int, codes: int, vectors: int, device: torch.device) -> dict[str, Any]:
    """Measures one shape; times are [median, least, most] in seconds."""
    torch.manual_seed(0)
    theirs = ResidualVQ(
        dim=DIM, num_quantizers=levels, codebook_size=codes, decay=0.99, rotation_trick=False, threshold_ema_dead_code=0
    )
    theirs = theirs.to(device).train()
    ours = ResidualQuantizer(levels, codes, DIM).to(device).train()
    books = [torch.randn(codes, DIM, device=device) * 0.7**level for level in range(levels)]
    their_state = theirs.state_dict()
    for level, book in enumerate(books):
        ours.codebooks[level].copy_(book)
        for name in ("embed", "embed_avg"):
            their_state[f"layers.{level}._codebook.{name}"].copy_(book)
    latents = torch.randn(1, vectors, DIM, device=device)
    others = int((ours(latents)[1] != theirs.eval()(latents)[1]).any(dim=-1).sum())
    if others > vectors // 1000:
        raise SystemExit(f"{others} vectors have different codes: the two cannot be compared")
    theirs.train()
    ours.update_codebooks(applied=False)
    seconds: dict[str, list[float]] = {"ours": [], "update": [], "theirs": []}
    for round_ in range(ROUNDS + 2):
        ours.set_step(0, round_)
        taken = {
            "ours": timed(lambda: ours(latents), device),
            "update": timed(ours.update_codebooks, device),
            "theirs": timed(lambda: theirs(latents), device),
        }
        if round_ > 1:
            for name, value in taken.items():
                seconds[name].append(value)
    found = {f"{name}_s": [statistics.median(taken), min(taken), max(taken)] for name, taken in seconds.items()}
    times = statistics.median(b / a for a, b in zip(seconds["ours"], seconds["theirs"], strict=True))
    tokens = levels * vectors / found["ours_s"][0]
    return {"levels": levels, "codes": codes, **found, "other_codes": others, "times": times, "tokens_per_s": tokens}


def timed(function: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    run_program(main)
