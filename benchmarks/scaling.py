"""Predicts the throughput of 1 to 1,024 GPUs from measured compute, counted bytes and stated link speeds.

    python benchmarks/scaling.py [--profile baseline] [--card 4090] [--bench FILE] [--mfu 0.4] [--json [FILE]]
    python benchmarks/scaling.py --check 1,2,3,7

A step consists of compute and of the communication that does not overlap with it. Compute comes from `ds-rvqvae bench
--json` (`--bench FILE`), or from the GPU's stated bf16 rate times `--mfu`. Gradients are reduced during the backward
pass, which is two thirds of the compute. Gathering weights and summing codebooks do not overlap with it. Collectives
are rings: their bytes cross the slowest link, and each hop has a latency. A link has the speed that its maker states,
times `--efficiency`. Every rank has the profile's micro batch, so the global batch grows with the number of ranks.

`--check` starts that many CPU ranks, counts the bytes that a step hands to torch.distributed, and compares.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_rvqvae.process.command import begin_program, run_program

if __name__ == "__main__":
    begin_program()  # before the slow imports

from ds_rvqvae.cli.common import add_json_flag, print_result
from ds_rvqvae.config.profile import Profile, load_profile
from ds_rvqvae.data.columns import columns_in_use
from ds_rvqvae.data.demo import write_demo_motion
from ds_rvqvae.gpu.activations import activations_of
from ds_rvqvae.gpu.cards import CARDS
from ds_rvqvae.gpu.sizes import transfers_of

RANKS = (1, 2, 4, 7, 8, 16, 32, 64, 128, 256, 512, 1024)
A_NODE = 8
"""Ranks on one machine, which use its network together."""
BACKWARD_SHARE = 2 / 3


@dataclass(frozen=True)
class Link:
    """The connection between two neighbours of the ring."""

    name: str
    bytes_per_s: float
    """In one direction, as stated by its maker."""
    hop_s: float
    """Latency of one hop; an assumption, of the order that NCCL's tests show."""


PCIE = Link("PCIe 4.0 x16, through the host", 31.5e9, 20e-6)
NVLINK = Link("NVLink 4", 450e9, 5e-6)
ETHERNET = Link("100 Gb/s Ethernet per machine", 12.5e9, 40e-6)
INFINIBAND = Link("400 Gb/s InfiniBand per GPU", 50e9, 10e-6)
CLUSTERS = {
    "PCIe, then Ethernet": (PCIE, ETHERNET),
    "NVLink, then Ethernet": (NVLINK, ETHERNET),
    "NVLink, then InfiniBand": (NVLINK, INFINIBAND),
}
"""The link within a machine of eight, and between machines."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", action="append", help="repeatable (default: baseline and large)")
    parser.add_argument("--card", choices=CARDS, default="4090")
    parser.add_argument("--bench", type=Path, metavar="FILE", help="from `ds-rvqvae bench --json`, for one profile")
    parser.add_argument("--mfu", type=float, default=0.4, help="fraction of the GPU's bf16 rate, without --bench (0.4)")
    parser.add_argument("--efficiency", type=float, default=0.7, help="fraction of a link's stated rate (0.7)")
    parser.add_argument("--check", metavar="N,N", help="count the bytes of a step on these numbers of CPU ranks")
    add_json_flag(parser)
    args = parser.parse_args()
    if args.check:
        sys.exit(check([int(count) for count in args.check.split(",")]))
    rows = []
    for name in args.profile or ["baseline", "large"]:
        profile = load_profile(name)
        compute, source = compute_seconds(profile, args)
        for cluster in CLUSTERS:
            rows += [
                {
                    "profile": name,
                    "cluster": cluster,
                    "compute": source,
                    **predict(profile, cluster, ranks, compute, args),
                }
                for ranks in RANKS
            ]
    print_result(args, rows, text(rows))


def compute_seconds(profile: Profile, args: argparse.Namespace) -> tuple[float, str]:
    """Returns the seconds of a step on one rank without communication, and their source in words."""
    if args.bench:
        found = json.loads(args.bench.read_text(encoding="utf-8"))
        return found["step_s"], f"measured on {found['device']}"
    columns = columns_in_use(profile.rvqvae.data, None)
    flops = activations_of(profile, columns, profile.train_micro_batch_size_per_gpu).flops
    seconds = flops * profile.gradient_accumulation_steps / (args.mfu * CARDS[args.card].bf16_flops)
    return seconds, f"{args.mfu:g} of the bf16 rate of {CARDS[args.card].name}"


def predict(profile: Profile, cluster: str, ranks: int, compute: float, args: argparse.Namespace) -> dict[str, Any]:
    """Predicts a step on `ranks` ranks."""
    inside, between = CLUSTERS[cluster]
    link = inside if ranks <= A_NODE else between
    seconds = {"compute": compute}
    for transfer in transfers_of(profile, columns_in_use(profile.rvqvae.data, None), ranks):
        hops = (ranks - 1) * (2 if transfer.collective == "all-reduce" else 1)
        taken = transfer.sent_bytes / (args.efficiency * link.bytes_per_s) + hops * link.hop_s
        hidden = BACKWARD_SHARE * compute if transfer.name == "gradients" else 0.0
        seconds[transfer.name] = max(0.0, taken - hidden)
    step = sum(seconds.values())
    windows = ranks * profile.train_micro_batch_size_per_gpu * profile.gradient_accumulation_steps
    return {
        "ranks": ranks,
        "step_s": step,
        "parts_s": seconds,
        "windows_per_s": windows / step,
        "efficiency": compute / step,
        "bottleneck": max(seconds, key=lambda name: seconds[name]),
    }


def text(rows: list[dict[str, Any]]) -> str:
    lines, before = [], None
    for row in rows:
        title = (row["profile"], row["cluster"])
        if title != before:
            lines += ["", f"{row['profile']}, {row['cluster']}; compute {row['compute']}"]
            lines.append(f"{'ranks':>6}{'step, ms':>12}{'windows/s':>14}{'efficiency':>12}  longest part")
            before = title
        lines.append(
            f"{row['ranks']:>6}{1e3 * row['step_s']:>12.2f}{row['windows_per_s']:>14,.0f}"
            f"{100 * row['efficiency']:>10.1f} %  {row['bottleneck']}"
        )
    return "\n".join(lines[1:])


def check(counts: list[int]) -> int:
    """Compares counted with predicted bytes; returns 1 if they differ by more than a thousandth, else 0."""
    wrong = 0
    script = Path(__file__).with_name("wire_bytes.py")
    with tempfile.TemporaryDirectory(prefix="scaling-") as folder:
        motion = write_demo_motion(Path(folder) / "motion", 6, 400)
        environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        for ranks in counts:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
            file = Path(folder) / f"{ranks}.json"
            command += [str(script), "--profile=demo", f"--data_path={motion}", "--batch_size=2", f"--json={file}"]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{ranks} ranks: {done.stderr[-2000:]}")
            result = json.loads(file.read_text(encoding="utf-8"))
            counted = sum(result["counted"].values())
            predicted = sum(transfer["payload_bytes"] for transfer in result["by_arithmetic"])
            if ranks == 1:
                print(f"1 rank: {counted:,} bytes handed over; there is no other rank to send them to")
                continue
            same = abs(counted - predicted) <= 1e-3 * predicted
            wrong += not same
            print(f"{ranks} ranks: {counted:,} bytes counted, {predicted:,} by arithmetic: {'same' if same else 'NOT'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    run_program(main)
