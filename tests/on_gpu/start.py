"""Checks of the first run: versions, the launch line, memory against the plan, and going on after a stop."""

import math
import re
import shutil
import signal
import subprocess

from ds_rvqvae.gpu.plan import CONTEXT_BYTES, WORKSPACE_BYTES
from ds_rvqvae.text import MIB
from tests.on_gpu.box import Box, Ran
from tests.on_gpu.claims import CheckError, Claim, at_most, between, figure, same, true
from tests.train.small import EXACT, SMALL

STRAY = re.compile(
    r"\[(WARNING|INFO|ERROR)\]|\[rank\d+\]|\w+Warning: |NCCL (WARN|INFO|version)|^Traceback|/site-packages/|deprecated"
    r"|CUDA_HOME|libaio|^\[?[WIE]\d{4}|^USDT|OMP_NUM_THREADS|OVERFLOW"
)
"""Lines of libraries, which a user of the launcher should not see."""


def stray_lines(ran: Ran) -> list[str]:
    """Returns the lines that a library has printed into a command's output."""
    return [line[:200] for line in ran.said if STRAY.search(line) and not line.startswith(("WARNING: ", "warning: "))]


def topology() -> str:
    """Returns the links between the GPUs, as nvidia-smi draws them."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "not known: no nvidia-smi"
    try:
        ran = subprocess.run([program, "topo", "-m"], capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return "not known: nvidia-smi topo -m does not end"
    return ran.stdout.strip() or f"not known: nvidia-smi topo -m ended with {ran.returncode}"


def versions(box: Box) -> list[Claim]:
    """torch and DeepSpeed see every GPU, and it computes in bf16."""
    (found,) = box.probe("machine", sees=box.slots)
    names = ", ".join(sorted(set(found["names"]))) or "CPU"
    return [
        same("accelerator", found["accelerator"], "cuda" if box.on_gpu else "cpu"),
        same("GPUs that torch sees", found["devices"], len(box.slots), gpu_only=True),
        true("bf16 product", found["bf16_product_is_right"], str(found["bf16_product_is_right"]), "True"),
        figure("GPU", names),
        figure("torch", found["torch"]),
        figure("CUDA of torch", found["cuda"]),
        figure("cuDNN", found["cudnn"]),
        figure("NCCL", found["nccl"]),
        figure("deepspeed", found["deepspeed"]),
    ]


def first_run(box: Box) -> Ran:
    """The first run on one slot, which several checks look at."""
    flags = [f"--total_iter={box.steps(400, 16)}"]
    return box.once("first run", lambda: box.train("first", *flags, slots=box.slots[:1]))


def first_metrics(box: Box) -> list[dict]:
    if (ran := first_run(box)).status != 0:
        raise CheckError(f"the first run ended with {ran.status}: {ran.reason()}")
    return box.metrics("first")


def exact_settings(box: Box) -> tuple[int, list[str]]:
    """Windows per rank, and flags with which nothing is random or rounded. The global batch also suits fewer ranks."""
    return 2 * fewer_ranks(box), [*EXACT, "--total_iter=6", "--nb_code=64"]


def fewer_ranks(box: Box) -> int:
    """Ranks of a run that goes on on fewer GPUs: 5 of 7."""
    return max(1, len(box.slots) * 5 // 7)


def exact_run(box: Box) -> list[dict]:
    """The logged lines of such a run on all slots."""
    each, flags = exact_settings(box)
    return box.once("exact run", lambda: box.trained("exact", *flags, f"--batch_size={each}"))


def launch(box: Box) -> list[Claim]:
    """The launch line on one GPU ends with status 0, without a line of any library."""
    ran = first_run(box)
    stray = stray_lines(ran)
    lines = box.metrics("first")
    claims = [
        same("status", ran.status, 0),
        true("stray lines", not stray, f"{len(stray)}" + (f", first: {stray[0]}" if stray else ""), "0"),
        same("steps", len(lines), box.steps(400, 16)),
        same("processes left", ran.left, []),
    ]
    if ran.status:
        claims.append(figure("it said", ran.reason()))
    elif len(lines) > 1:
        claims.append(figure("samples per second", lines[-1]["samples_per_s"]))
        claims += falling(lines)
    return claims


def falling(lines: list[dict]) -> list[Claim]:
    """That the losses of a run are finite, and fall from its first quarter to its last."""
    quarter = max(1, len(lines) // 4)
    first, last = (sum(line["loss"] for line in part) / quarter for part in (lines[:quarter], lines[-quarter:]))
    finite = all(math.isfinite(line["loss"]) for line in lines)
    return [
        true("losses are finite", finite, str(finite), "True"),
        # The few steps of a rehearsal tell nothing about it.
        at_most("loss, last quarter / first", last / first, 0.9, gpu_only=True),
    ]


def memory(box: Box) -> list[Claim]:
    """The peak of torch's tensors and of the GPU against the memory plan; context and workspaces, which it assumes."""
    first_metrics(box)
    summary = box.summary("first")
    (rank,), planned = summary["ranks"], summary["planned"]
    (taken,) = box.probe("overheads")
    assumed = (CONTEXT_BYTES + WORKSPACE_BYTES) / MIB
    claims = [
        at_most("outside torch's allocator", taken["outside_bytes"] / MIB, assumed, "MiB", gpu_only=True),
        figure("CUDA context at once", taken["context_bytes"] / MIB, "MiB"),
    ]
    if not planned:
        return [true("resident", rank["resident_gib"] > 0, f"{rank['resident_gib']:.2f} GiB", "over 0"), *claims]
    tensors = (rank["step_allocated_gib"] or rank["allocated_gib"]) / planned["allocated_gib"]
    return [
        between("tensors / planned", tensors, 0.7, 1.05, gpu_only=True),
        at_most("GPU used / planned", rank["used_gib"] / planned["total_gib"], 1.05, gpu_only=True),
        figure("tensors planned", planned["allocated_gib"], "GiB"),
        figure("GPU planned", planned["total_gib"], "GiB"),
        figure("peak of tensors", rank["allocated_gib"], "GiB"),
        figure("reserved", rank["reserved_gib"], "GiB"),
        *claims,
    ]


def resume(box: Box) -> list[Claim]:
    """SIGTERM saves and ends a run with status 75; --resume goes on with the losses of a run that was not stopped."""
    wanted = first_metrics(box)
    total = len(wanted)
    flags = [f"--total_iter={total}"]
    running = box.start(*box.training("stopped", *flags, slots=box.slots[:1]))
    running.wait_until(lambda: len(box.metrics("stopped")) >= total // 4, f"step {total // 4}")
    running.process.send_signal(signal.SIGTERM)
    stopped = running.wait()
    at = len(box.metrics("stopped"))
    again = box.train("stopped", *flags, "--resume", slots=box.slots[:1])
    found = box.metrics("stopped")
    claims = [
        same("status after SIGTERM", stopped.status, 75),
        same("status after --resume", again.status, 0),
        true("steps", [line["step"] for line in found] == [*range(1, total + 1)], str(len(found)), f"each of {total}"),
        true("stopped at", 0 < at < total, str(at), f"between 1 and {total - 1}"),
        same("processes left", [*stopped.left, *again.left], []),
    ]
    if again.status:
        return [*claims, figure("it said", again.reason())]
    # On a GPU sums are not made in one order, so that two runs drift apart; on a CPU they are equal.
    off = largest_difference(found, wanted, range(at, min(at + 20, total)))
    return [*claims, at_most("largest difference of the loss after it", off, 0.05 if box.on_gpu else 0.0)]


def largest_difference(found: list[dict], wanted: list[dict], steps: range) -> float:
    """Returns the largest relative difference of the losses; the steps count from 0."""
    if len(found) <= max(steps, default=0) or len(wanted) <= max(steps, default=0):
        raise CheckError(f"the runs have {len(found)} and {len(wanted)} logged steps")
    return max(abs(found[step]["loss"] / wanted[step]["loss"] - 1) for step in steps)


def universal(box: Box) -> list[Claim]:
    """A run of two CPU ranks goes on on one GPU: the optimizer's state is converted and moved there."""
    cpu = {"DS_ACCELERATOR": "cpu", "LOCAL_SIZE": "2", "OMP_NUM_THREADS": "1"}
    common = [*SMALL, "--batch_size=4", f"--data_path={box.motion}", f"--out={box.runs}", "--name=universal"]
    first = box.ds("train", "--include=localhost:0,1", *common, "--total_iter=4", **cpu)
    if first.status:
        raise CheckError(f"the run on two CPU ranks ended with {first.status}: {first.reason()}")
    again = box.ds("train", box.include(box.slots[:1]), *common, "--total_iter=10", "--resume")
    found = box.metrics("universal")
    claims = [
        same("status", again.status, 0),
        same("steps", [line["step"] for line in found], [*range(1, 11)]),
        same("stray lines", stray_lines(again), []),
    ]
    if again.status:
        return [*claims, figure("it said", again.reason())]
    before, after = (sum(line["loss"] for line in part) / len(part) for part in (found[:4], found[4:]))
    return [*claims, between("mean loss after / before", after / before, 0.5, 1.5)]
