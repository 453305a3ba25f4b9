"""Measures how fast a tokenizer encodes and decodes a long clip, beside a bare convolution with as many operations.

    python benchmarks/encode.py [TOKENIZER] [--minutes 10] [--json [FILE]]

Without a tokenizer it uses random weights of the baseline's shape, with 78 columns. All is measured in one process, in
turns; times are medians of 5.
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
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from ds_rvqvae import RVQVAE, MotionTokenizer, load_profile
from ds_rvqvae.cli.common import add_json_flag, print_result
from ds_rvqvae.motion.layout import feature_layout

ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizer", nargs="?", metavar="TOKENIZER", help="folder of an exported tokenizer")
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the clip (default: 10)")
    parser.add_argument("--device", default="cpu")
    add_json_flag(parser)
    args = parser.parse_args()
    rows = [measure(args, dtype) for dtype in (torch.float32, torch.bfloat16)]
    device = (
        torch.cuda.get_device_name() if args.device.startswith("cuda") else f"{torch.get_num_threads()} CPU threads"
    )
    result = {"device": device, "torch": torch.__version__, "minutes": args.minutes, "measured": rows}
    lines = [f"{device}, torch {torch.__version__}, {args.minutes:g} minutes of motion"]
    lines += [
        f"{row['dtype']:9} encode {row['encode_s']:.2f} s, {row['encode_times_real_time']:,.0f} x real time, "
        f"{row['encode_gflops']:.0f} GFLOP/s; bare convolution {row['bare_gflops']:.0f} GFLOP/s, "
        f"{row['bare_share']:.2f} of it; decode {row['decode_s']:.2f} s"
        for row in rows
    ]
    print_result(args, result, "\n".join(lines))


def measure(args: argparse.Namespace, dtype: torch.dtype) -> dict[str, Any]:
    """Returns the times in one precision."""
    tokenizer = make_tokenizer(args, dtype)
    features = tokenizer.model.in_features
    seconds = args.minutes * 60
    motion = torch.randn(int(seconds * tokenizer.fps), features, generator=torch.Generator().manual_seed(0))
    motion = motion * tokenizer.std.cpu() + tokenizer.mean.cpu()
    operations = encoder_operations(tokenizer, len(motion))
    width = tokenizer.model.config.width
    weight = torch.randn(width, width, 3, dtype=dtype, device=args.device)
    hidden = torch.randn(1, width, 4096, dtype=dtype, device=args.device)
    repeats = max(1, round(operations / (2 * 3 * width * width * 4096)))
    codes = tokenizer.encode(motion)

    def bare() -> None:
        with torch.no_grad():
            for _ in range(repeats):
                functional.conv1d(hidden, weight, padding=1)

    functions = {"encode": lambda: tokenizer.encode(motion), "decode": lambda: tokenizer.decode(codes), "bare": bare}
    times = in_turns(functions, args.device)
    encode, bare_time = times["encode"], times["bare"] * operations / (repeats * 2 * 3 * width * width * 4096)
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "encode_s": encode,
        "decode_s": times["decode"],
        "encode_times_real_time": seconds / encode,
        "encode_gflops": operations / encode / 1e9,
        "bare_gflops": operations / bare_time / 1e9,
        "bare_share": bare_time / encode,
    }


def make_tokenizer(args: argparse.Namespace, dtype: torch.dtype) -> MotionTokenizer:
    if args.tokenizer:
        return MotionTokenizer.from_pretrained(args.tokenizer, dtype=dtype, device=args.device)
    model = RVQVAE(78, load_profile("baseline").rvqvae.model)
    tokenizer = MotionTokenizer(model, torch.zeros(78), torch.ones(78), feature_layout(78), 30.0).to(args.device)
    model.to(dtype)
    return tokenizer


def encoder_operations(tokenizer: MotionTokenizer, frames: int) -> float:
    """Returns the floating-point operations of the encoder over `frames` frames, in one pass without overlap."""
    counted = 256 * tokenizer.code_stride
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tokenizer.model.encode_latents(
            torch.zeros(1, counted, tokenizer.model.in_features, device=tokenizer.mean.device)
        )
    operations: float = counter.get_total_flops() * frames / counted
    return operations


def in_turns(functions: dict[str, Callable[[], Any]], device: str) -> dict[str, float]:
    """Returns the median seconds of each function; every round measures each of them once."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(ROUNDS + 1):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if round_:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    run_program(main)
