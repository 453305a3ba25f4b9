"""Predicts the throughput of 1 to 1,024 GPUs from operations, counted bytes and stated speeds of GPUs and links.

    python benchmarks/scaling.py [--profile baseline] [--card 4090] [--bench FILE] [--mfu 0.4] [--json [FILE]]
    python benchmarks/scaling.py --ranks 7 --host_ms 0,5,10,20 [--late]
    python benchmarks/scaling.py --check 1,2,3,7

A step consists of compute and of the communication that compute does not hide.

Compute is the forward pass, the recomputation that the profile asks for, and the backward pass. Its time comes from
`ds-rvqvae bench --json` (`--bench FILE`), or from the operations and the GPU's stated bf16 rate times `--mfu`. The
layers share that time by their operations.

Gradients are reduced in buckets during the backward pass. A bucket is ready when the backward pass has computed its
last gradient. Its all-reduce then begins, or when the all-reduce before it ends. At most two buckets are in flight: the
backward pass waits with the third. The statistics of the codebooks are summed first, from the end of the last forward
pass on. What ends after the backward pass adds to the step. So does the all-gather of the weights, and with several
micro batches an all-reduce of the gradient norm. A run on several GPUs has two NCCL communicators, but all these go
through DeepSpeed's, one after another, so their times add. Codebooks are computed while the weights are gathered; that
arithmetic and the optimizer's are not counted, so they hide
nothing. The request to stop a run is not counted either: the hosts exchange one number during the step. A compiled
backward pass hides no gradients.

`--late` is DeepSpeed's own way, which version 0.7.0 used, and which a profile keeps that the short step cannot train. A
bucket's all-reduce begins when the next gradient no longer fits into the bucket, the last one after the backward pass.
One bucket is in flight: the backward pass waits with the second. The norm and a flag are reduced, and the codebooks'
statistics are summed after the step.

`--host_ms` is the time in which the host launches a step. Compute takes at least that long, on one GPU and on many.
Communication that compute does not hide comes on top: the host reads the gradient norm in each step, and launches the
rest of the step only then. It is taken as spread over the passes as their operations are, and none of it as after the
norm, which no compute could hide: with a slow host the figures are too good, on one GPU as on many.

Collectives are rings. Their bytes cross the slowest link, and each hop has a latency. A link has the speed that its
maker states, times `--efficiency`. Every rank has the profile's micro batch, so the global batch grows with the number
of ranks. The efficiency is the time of a step on one GPU divided by the time on all of them.

`--check` starts that many CPU ranks, counts the collectives and bytes that a step hands to torch.distributed, and
compares.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from ds_rvqvae.process.command import begin_program, run_program

if __name__ == "__main__":
    begin_program()  # before the slow imports

from ds_rvqvae.cli.common import add_json_flag, print_result
from ds_rvqvae.config.profile import Profile, load_profile
from ds_rvqvae.data.columns import columns_in_use
from ds_rvqvae.data.demo import write_demo_motion
from ds_rvqvae.gpu.activations import Activations, activations_of
from ds_rvqvae.gpu.cards import CARDS
from ds_rvqvae.gpu.sizes import (
    BUCKETS_IN_FLIGHT,
    Transfer,
    bucket_bounds,
    needs_long_step,
    parameter_sizes,
    recomputes_at_once,
    transfers_of,
)

RANKS = (1, 2, 4, 7, 8, 16, 32, 64, 128, 256, 512, 1024)
A_NODE = 8
"""Ranks on one machine, which use its network together."""


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
CHECKED_BUCKET = 250_000
"""Elements per bucket under `--check`; the demo's net has five buckets of them, four as DeepSpeed fills them."""
WIDTHS = (9, 9, 10, 8, 9, 10)
HEAD = (
    f"{'':>16}{'effi-':>8}{'':>9}{'compute':>9}{'not hidden, ms':>32}",
    f"{'ranks':>5}{'windows/s':>11}{'ciency':>8}{'step, ms':>9}{'or host':>9}"
    f"{'gradients':>10}{'norm':>8}{'weights':>9}{'codebooks':>10}",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", action="append", help="repeatable (default: baseline and large)")
    parser.add_argument("--card", choices=CARDS, default="4090")
    parser.add_argument("--bench", type=Path, metavar="FILE", help="from `ds-rvqvae bench --json`, for one profile")
    parser.add_argument("--mfu", type=float, default=0.4, help="fraction of the GPU's bf16 rate, without --bench (0.4)")
    parser.add_argument("--efficiency", type=float, default=0.7, help="fraction of a link's stated rate (0.7)")
    parser.add_argument("--ranks", type=numbers, metavar="N,N", help="numbers of GPUs (default: 1 to 1,024)")
    parser.add_argument("--host_ms", type=numbers, metavar="MS,MS", help="milliseconds of the host per step (0)")
    parser.add_argument("--late", action="store_true", help="gradients are reduced DeepSpeed's own way, as by 0.7.0")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="sets a key of the profile")
    parser.add_argument("--check", type=numbers, metavar="N,N", help="count the bytes of a step on so many CPU ranks")
    add_json_flag(parser)
    args = parser.parse_args()
    if args.check:
        sys.exit(check(args.check, args.late))
    rows = []
    for name in args.profile or ["baseline", "large"]:
        profile, compute, source = compute_seconds(load_profile(name, args.set), args)
        for cluster, host, ranks in product(CLUSTERS, args.host_ms or [0], args.ranks or RANKS):
            found = predict(profile, cluster, ranks, compute, args.efficiency, host / 1e3, args.late)
            rows.append({"profile": name, "cluster": cluster, "compute": source, **found})
    print_result(args, rows, text(rows))


def numbers(text: str) -> list[int]:
    """Returns the integers of a list such as `1,2,7`."""
    return [int(number) for number in text.split(",")]


def compute_seconds(profile: Profile, args: argparse.Namespace) -> tuple[Profile, float, str]:
    """Returns the profile with the recomputation that the time includes, the seconds of a step on one rank without
    communication, and their source in words."""
    if args.bench:
        found = json.loads(args.bench.read_text(encoding="utf-8"))
        recomputes = profile.rvqvae.training.gradient_checkpointing
        seconds = found.get("checkpointed_step_s") if recomputes else None
        if seconds is None:
            seconds, recomputes = found["step_s"], found["activation_checkpointing"]
        profile = profile.with_values({"rvqvae.training.gradient_checkpointing": recomputes})
        return profile, seconds, f"measured on {found['device']}"
    activations = activations_in(profile)
    flops = (activations.flops + activations.recomputed_flops) * profile.gradient_accumulation_steps
    seconds = flops / (args.mfu * CARDS[args.card].bf16_flops)
    return profile, seconds, f"{args.mfu:g} of the bf16 rate of {CARDS[args.card].name}"


def columns_of(profile: Profile) -> int:
    return columns_in_use(profile.rvqvae.data, None)


def activations_in(profile: Profile) -> Activations:
    return activations_of(profile, columns_of(profile), profile.train_micro_batch_size_per_gpu)


def predict(
    profile: Profile,
    cluster: str,
    ranks: int,
    compute: float,
    efficiency: float = 0.7,
    host: float = 0.0,
    late: bool = False,
) -> dict[str, Any]:
    """Predicts a step on `ranks` ranks.

    Args:
        cluster: one of CLUSTERS.
        compute: seconds of a step on one rank without communication.
        efficiency: fraction of a link's stated rate.
        host: seconds in which the host launches a step.
        late: whether gradients are reduced DeepSpeed's own way.
    """
    inside, between = CLUSTERS[cluster]
    link = inside if ranks <= A_NODE else between
    rate, rounds = efficiency * link.bytes_per_s, 2 * (ranks - 1)
    busy, asked, late = max(compute, host), late, late or bool(needs_long_step(profile))
    seconds = {"host" if host > compute else "compute": busy}
    gradients, weights, codebooks = transfers_of(profile, columns_of(profile), ranks)
    latency = rounds * link.hop_s
    summing = codebooks.sent_bytes / rate + latency
    seconds["codebooks"] = summing if late else max(0.0, summing - backward_seconds(profile, busy))
    before = 0.0 if late else summing
    seconds["gradients"] = gradients_seconds(
        profile, gradients, busy, rate, latency, late, before, recomputes_at_once(profile) and not asked
    )
    seconds["weights"] = weights.sent_bytes / rate + (ranks - 1) * link.hop_s
    seconds["norm"] = single_numbers(profile.gradient_accumulation_steps, late) * rounds * link.hop_s
    step = sum(seconds.values())
    windows = ranks * profile.train_micro_batch_size_per_gpu * profile.gradient_accumulation_steps
    return {
        "ranks": ranks,
        "host_s": host,
        "step_s": step,
        "parts_s": seconds,
        "windows_per_s": windows / step,
        "efficiency": busy / step,
        "bottleneck": max(seconds, key=lambda name: seconds[name]),
    }


def single_numbers(accumulation: int, late: bool) -> int:
    """How many all-reduces of a step are of one number: the norm of gradients that were summed over micro batches; in
    DeepSpeed's own step always the norm, and a flag."""
    return 2 if late else int(accumulation > 1)


def backward_seconds(profile: Profile, busy: float) -> float:
    """Seconds of the backward pass of a micro batch, with recomputation, in a step whose passes take `busy` seconds."""
    activations = activations_in(profile)
    flops = activations.flops + activations.recomputed_flops
    forward = sum(layer.flops for layer in activations.layers)
    return busy / profile.gradient_accumulation_steps * (1 - forward / flops)


def gradients_seconds(
    profile: Profile,
    gradients: Transfer,
    busy: float,
    rate: float,
    latency: float,
    late: bool = False,
    before: float = 0.0,
    at_once: bool = False,
) -> float:
    """Seconds per step of the gradients' reduction that the backward pass does not hide.

    Args:
        busy: seconds of the forward and backward passes of a step.
        rate: bytes per second of the link.
        latency: seconds of an all-reduce of nothing.
        before: seconds for which the link is not free when the last backward pass begins.
        at_once: whether the gradients of a recomputed stack are complete together.
    """
    zero, accumulation = profile.zero_optimization, profile.gradient_accumulation_steps
    backward = backward_seconds(profile, busy)
    complete = [backward * share for share in activations_in(profile).gradient_shares(at_once)]
    sizes = parameter_sizes(columns_of(profile), profile.rvqvae.model)
    bounds = buckets(sizes, zero.reduce_bucket_size, late)
    # Stage 2 reduces after each micro batch, stage 1 after the last.
    reductions = accumulation if zero.stage == 2 else 1
    of_an_element = gradients.sent_bytes / reductions / sum(sizes) / rate
    taken = [latency + of_an_element * sum(sizes[first:stop]) for first, stop in bounds]
    if not zero.overlap_comm or profile.rvqvae.training.compile:
        return reductions * sum(taken)
    ready = late_starts(complete, bounds) if late else [max(complete[first:stop]) for first, stop in bounds]
    in_flight = 1 if late else BUCKETS_IN_FLIGHT
    once = end_of_reductions(ready, taken, in_flight) - backward
    last = end_of_reductions(ready, taken, in_flight, before) - max(backward, before)
    return (reductions - 1) * once + last


def buckets(sizes: Sequence[int], most: int, late: bool) -> list[tuple[int, int]]:
    """As `bucket_bounds`; DeepSpeed fills its buckets from the last parameter."""
    if not late:
        return bucket_bounds(sizes, most)
    bounds, stop, elements = [], len(sizes), 0
    for index in reversed(range(len(sizes))):
        if elements and elements + sizes[index] > most:
            bounds.append((index + 1, stop))
            stop, elements = index + 1, 0
        elements += sizes[index]
    return [*bounds, (0, stop)]


def late_starts(complete: Sequence[float], bounds: Sequence[tuple[int, int]]) -> list[float]:
    """When DeepSpeed begins to reduce each bucket: at the first gradient of the next, the last one at the end.

    Args:
        complete: when each gradient is complete, in the model's order.
        bounds: of `buckets`.
    """
    return [*(complete[stop - 1] for _, stop in bounds[1:]), max(complete)]


def end_of_reductions(ready: Sequence[float], taken: Sequence[float], in_flight: int, link_free: float = 0.0) -> float:
    """When the last of several buckets is reduced; the link reduces one after another.

    Args:
        ready: when the backward pass has each bucket ready, if it never waits.
        taken: duration of each reduction.
        in_flight: how many buckets may be ready and not yet reduced; the backward pass waits with the next.
        link_free: when the link can begin.
    """
    ends: list[float] = []
    held = 0.0
    for index, (time, duration) in enumerate(zip(ready, taken, strict=True)):
        begins = time + held
        if index >= in_flight:
            begins = max(begins, ends[index - in_flight])
        held = begins - time
        ends.append(max(begins, ends[-1] if ends else link_free) + duration)
    return ends[-1]


def text(rows: list[dict[str, Any]]) -> str:
    """Returns a table of 80 columns for each profile and cluster."""
    lines, before = [], None
    for row in rows:
        title = (row["profile"], row["cluster"], row["host_s"])
        if title != before:
            host = f"; host {1e3 * row['host_s']:.0f} ms per step" if row["host_s"] else ""
            lines += ["", f"{row['profile']}, {row['cluster']}{host}", f"compute: {row['compute']}", *HEAD]
            before = title
        parts = row["parts_s"]
        first = parts.get("host") or parts["compute"]
        shown = (row["step_s"], first, *(parts[name] for name in ("gradients", "norm", "weights", "codebooks")))
        lines.append(
            f"{row['ranks']:>5}{row['windows_per_s']:>11,.0f}{100 * row['efficiency']:>6.1f} %"
            + "".join(f"{1e3 * seconds:>{width}.2f}" for seconds, width in zip(shown, WIDTHS, strict=True))
        )
    return "\n".join(lines[1:])


def check(counts: list[int], late: bool) -> int:
    """Compares counted with predicted bytes and collectives; returns 1 if they differ, bytes by more than a thousandth,
    else 0."""
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="scaling-") as folder:
        motion = write_demo_motion(Path(folder) / "motion", 6, 400)
        for ranks in counts:
            result = counted_step(motion, ranks, Path(folder) / f"{ranks}.json", late)
            counted, calls = sum(result["counted"].values()), sum(result["calls"].values())
            if ranks == 1:
                print(f"1 rank: {counted:,} bytes handed over; there is no other rank to send them to")
                continue
            transfers = result["by_arithmetic"]
            predicted = sum(transfer["payload_bytes"] for transfer in transfers)
            # All transfers but the gradients are one collective each.
            gradients = len(buckets(result["parameters"], CHECKED_BUCKET, late))
            wanted = gradients + len(transfers) - 1 + single_numbers(1, late)
            same = abs(counted - predicted) <= 1e-3 * predicted and calls == wanted
            wrong += not same
            print(
                f"{ranks} ranks: {counted:,} bytes in {calls} collectives counted, "
                f"{predicted:,} in {wanted} by arithmetic: {'same' if same else 'NOT'}"
            )
    return 1 if wrong else 0


def counted_step(motion: Path, ranks: int, file: Path, late: bool) -> dict[str, Any]:
    """Returns what `wire_bytes.py` counts in a step on so many CPU ranks; DeepSpeed's own step if `late`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command += [str(Path(__file__).with_name("wire_bytes.py")), "--profile=demo", f"--data_path={motion}"]
    command += ["--batch_size=2", f"--set=zero_optimization.reduce_bucket_size={CHECKED_BUCKET}", f"--json={file}"]
    command += ["--set=wall_clock_breakdown=true"] if late else []
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{ranks} ranks: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    run_program(main)
