"""Compares a bf16 training step with an fp32 one on this CPU, in turns in one process.

    python benchmarks/cpu_bf16.py [--profile NAME] [--batch N] [--window_size N] [--rounds N] [--json [FILE]]

It times complete steps through DeepSpeed on one rank, with the profile's nets and no activation checkpointing. On a CPU
with bf16 arithmetic, `DS_RVQVAE_CPU_BF16=none` imitates one without it. `ONEDNN_MAX_CPU_ISA=AVX2` also limits the
instructions of fp32 arithmetic. `DS_RVQVAE_CPU_BF16=native ONEDNN_MAX_CPU_ISA=AVX2` shows what torch alone does there.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from ds_rvqvae.process.command import begin_program, run_program

if __name__ == "__main__":
    begin_program()  # before the slow imports

from ds_rvqvae.bench.step import DEMO_CLIPS, DEMO_FRAMES, device_name, in_turns, make_trainer
from ds_rvqvae.cli.common import add_json_flag, count, print_result
from ds_rvqvae.config.profile import load_profile
from ds_rvqvae.data.demo import write_demo_motion
from ds_rvqvae.errors import ExitStatus, UserError
from ds_rvqvae.host import bf16_arithmetic_text, has_bf16_arithmetic


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--profile", default="baseline")
    parser.add_argument("--batch", type=count, default=4, help="windows per step (default: 4)")
    parser.add_argument("--window_size", type=count, default=128)
    parser.add_argument("--rounds", type=count, default=9, help="steps in each precision (default: 9)")
    add_json_flag(parser)
    return _print(parser.parse_args())


def _print(args: argparse.Namespace) -> int:
    result = measure(args.profile, args.batch, args.window_size, args.rounds)
    print_result(args, result, text_of(result))
    return ExitStatus.DONE


def measure(name: str, batch: int, window_size: int, rounds: int) -> dict[str, Any]:
    """Returns the median seconds per step in each precision, and the median of the ratios within a round."""
    with tempfile.TemporaryDirectory(prefix="cpu-bf16-") as folder:
        motion = write_demo_motion(Path(folder) / "motion", DEMO_CLIPS, DEMO_FRAMES)
        trainers = {}
        for precision in ("fp32", "bf16"):
            settings = {
                "train_micro_batch_size_per_gpu": batch,
                "rvqvae.data.path": str(motion),
                "rvqvae.data.window_size": window_size,
                "rvqvae.training.gradient_checkpointing": "false",
                "bf16.enabled": str(precision == "bf16").lower(),
            }
            profile = load_profile(name, [f"{key}={value}" for key, value in settings.items()])
            trainers[precision] = make_trainer(profile, Path(folder) / precision)
            trainers[precision].initialize_codebooks()
        device = trainers["bf16"].device
        if device.type != "cpu":
            raise UserError("this measures CPUs: set DS_ACCELERATOR=cpu")
        ways = {precision: trainer.step for precision, trainer in trainers.items()}
        seconds = in_turns(ways, device, rounds, progress=False)
        for trainer in trainers.values():
            trainer.close()
    ratios = [bf16 / fp32 for fp32, bf16 in zip(seconds["fp32"], seconds["bf16"], strict=True)]
    return {
        "device": device_name(device),
        "cpu_bf16": bf16_arithmetic_text(),
        "cpu_bf16_native": has_bf16_arithmetic(),
        "fp32_s": statistics.median(seconds["fp32"]),
        "bf16_s": statistics.median(seconds["bf16"]),
        "ratio": statistics.median(ratios),
        "ratio_spread": [min(ratios), max(ratios)],
    }


def text_of(result: dict[str, Any]) -> str:
    least, most = result["ratio_spread"]
    return (
        f"{result['device']}\n{result['cpu_bf16']}\n"
        f"fp32 {result['fp32_s']:.4f} s per step, bf16 {result['bf16_s']:.4f} s: "
        f"{result['ratio']:.2f} times ({least:.2f} to {most:.2f})"
    )


if __name__ == "__main__":
    run_program(main)
