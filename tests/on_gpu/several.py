"""Checks of several GPUs: links, the README's line, scaling, equal losses, other numbers of ranks, two runs, a body."""

import importlib.util
import sys
from types import ModuleType

from ds_rvqvae.config.profile import load_profile
from tests.on_gpu.box import Box
from tests.on_gpu.claims import CheckError, Claim, at_least, at_most, figure, same, true
from tests.on_gpu.speed import measured
from tests.on_gpu.start import exact_run, exact_settings, falling, fewer_ranks, largest_difference, stray_lines
from tests.on_gpu.watching import listed_processes, readings
from tests.ranks import ROOT

_SIZES = (35_000_000, 4_000_000, 4)
"""Bytes of `baseline`'s gradients, of its codebooks, and of one number."""
_WITHOUT_PEERS = {"NCCL_P2P_DISABLE": "1"}
_DEFAULT_SLOTS = [*range(1, 8)]
"""The GPUs that the launcher takes if none are named."""


def all_reduce(box: Box) -> list[Claim]:
    """All-reduces of 35 MB, 4 MB and 4 B, with and without direct transfers between GPUs."""
    sizes = list(_SIZES) if box.on_gpu else [350_000, 40_000, 4]
    claims, works = [], {}
    for name, variables in (("peer-to-peer on", {}), ("peer-to-peer off", _WITHOUT_PEERS)):
        try:
            ranks = box.probe("all_reduce", slots=box.slots, variables=variables, sizes=sizes, repeats=box.steps(20, 3))
        except CheckError as error:  # with some drivers GPUs hang in direct transfers: the other figures still count
            claims.append(true(name, False, str(error), "all sums"))
            continue
        works[name] = True
        claims.append(same(f"{name}: sums are right", all(row["right"] for rows in ranks for row in rows), True))
        slowest = [max(rows, key=lambda row: row["seconds"]) for rows in zip(*ranks, strict=True)]
        for row in slowest:
            time = f"{name}: {row['bytes']:,} B in {1e3 * row['seconds']:.3f} ms"
            if row["bytes"] == sizes[0]:
                claims.append(at_least(time, row["bytes_per_s"] / 1e9, 3.0, "GB/s", gpu_only=True))
            else:
                claims.append(figure(time, row["bytes_per_s"] / 1e9, "GB/s"))
    if "peer-to-peer off" in works and "peer-to-peer on" not in works:
        box.variables.update(_WITHOUT_PEERS)  # the other checks would hang too, and take all the time
        claims.append(figure("all later checks have", "NCCL_P2P_DISABLE=1"))
    return claims


def readme_line(box: Box) -> list[Claim]:
    """README's line for 2,000 steps: one process on each GPU of the run, and none on another one."""
    steps = box.steps(2000, 12)
    every = box.steps(50, 1)
    running = box.start(*_readme_command(box, f"--total_iter={steps}", f"--log_every={every}"))
    running.wait_until(lambda: len(box.metrics("readme")) * every >= steps // 4, f"step {steps // 4}")
    family = {process.pid for process in running.processes()}
    ranks = len(running.ranks())
    listed = listed_processes(box)
    on = {gpu["index"]: [one["pid"] for one in gpu["processes"] or ()] for gpu in readings(box)}
    counts = [sum(pid in family for pid in on.get(slot, [])) for slot in box.slots]
    elsewhere = {slot: [pid for pid in pids if pid in family] for slot, pids in on.items() if slot not in box.slots}
    ran = running.wait()
    lines = box.metrics("readme")
    return [
        same("status", ran.status, 0),
        same("stray lines", stray_lines(ran), []),
        same("last step", lines[-1]["step"] if lines else None, steps),
        same("ranks", ranks, len(box.slots)),
        same("processes on each GPU", counts, [1] * len(box.slots), gpu_only=True)
        if listed is None or family & listed
        else figure("processes on each GPU", "not known: the driver gives them other numbers, as in some containers"),
        same("processes on other GPUs", sum(map(len, elsewhere.values())), 0),
        *(falling(lines) if lines else []),
        figure("samples per second", lines[-1]["samples_per_s"] if lines else None),
    ]


def _readme_command(box: Box, *flags: str) -> list[str]:
    """The script with `best`; it gets no GPUs where it takes those of the box by itself."""
    words = box.training("readme", *flags, *(["--profile=best"] if box.on_gpu else []))
    named = words[words.index("train") + 1 :]
    if box.on_gpu and box.slots == _DEFAULT_SLOTS:
        named.remove(box.include())
    return ["bash", str(ROOT / "launch" / "train_8x4090.sh"), *named]


def equal_ranks(box: Box) -> list[Claim]:
    """Weights and codebooks are equal on all ranks, bit for bit."""
    flags = box.settings("--log_every=100000", "--total_iter=100000")
    folder = str(box.work / "equal_ranks")
    found = box.probe("equal_ranks", slots=box.slots, flags=flags, folder=folder, steps=box.steps(50, 5))
    claims: list[Claim] = []
    for what in ("weights", "codebooks"):
        hashes = {rank[what] for rank in found}
        text = f"{len(hashes)} ({', '.join(sorted(one[:12] for one in hashes))})"
        claims.append(true(f"different {what} on {len(found)} ranks", len(hashes) == 1, text, "1"))
    losses = len({rank["loss"] for rank in found})
    return [*claims, true("their batches differ", losses > 1, f"{losses} losses", "more than 1")]


def scaling(box: Box) -> list[Claim]:
    """Windows per second on 1, 2, 4 and all GPUs beside the prediction of benchmarks/scaling.py."""
    bench = box.kept.get("bench baseline") or measured(box, "baseline", box.steps(5, 1))
    script = _script("scaling.py")
    profile = load_profile("baseline", ["rvqvae.training.gradient_checkpointing=false"])
    claims = []
    counts = sorted({1, 2, 4, len(box.slots)} & set(range(1, len(box.slots) + 1)))
    for ranks in counts if box.on_gpu else counts[-1:]:
        steps = box.steps(300, 8)
        flags = [f"--total_iter={steps}", "--gradient_checkpointing=off", f"--log_every={steps // 4}"]
        lines = box.trained(f"scaled_{ranks}", *flags, slots=box.slots[:ranks])
        rate = lines[-1]["samples_per_s"]
        wanted = script.predict(profile, "PCIe, then Ethernet", ranks, bench["step_s"])["windows_per_s"]
        name = f"{ranks} ranks: {rate:,.0f} windows/s, measured / predicted"
        claims.append(at_least(name, rate / wanted, 0.7, gpu_only=True))
        claims.append(true(f"{ranks} ranks train", rate > 0, f"{rate:,.0f} windows/s", "over 0"))
    return claims


def _script(name: str) -> ModuleType:
    """A program of benchmarks/, as a module."""
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name[:-3]}", ROOT / "benchmarks" / name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def same_batch(box: Box) -> list[Claim]:
    """One rank and all ranks have the same losses with the same global batch."""
    count = len(box.slots)
    each, flags = exact_settings(box)
    alone = box.trained("alone", *flags, f"--batch_size={each * count}", slots=box.slots[:1])
    off = largest_difference(exact_run(box), alone, range(6))
    return [at_most("largest difference of 6 losses", off, 1e-3), figure("ranks", [1, count])]


def other_number(box: Box) -> list[Claim]:
    """A run goes on on fewer ranks, and on all again, with the losses of one that was not stopped."""
    count, (each, exact) = len(box.slots), exact_settings(box)
    claims: list[Claim] = []
    for ranks, total in ((count, 2), (fewer_ranks(box), 4), (count, 6)):
        # The run keeps its global batch, which both numbers divide.
        flags = [*exact, f"--batch_size={each}", f"--total_iter={total}", *(["--resume"] if total > 2 else [])]
        ran = box.train("numbers", *flags, slots=box.slots[:ranks])
        claims.append(same(f"status on {ranks} ranks", ran.status, 0))
        if ran.status:
            return [*claims, figure("it said", ran.reason())]
    lines = box.metrics("numbers")
    claims.append(same("steps", [line["step"] for line in lines], [*range(1, 7)]))
    off = largest_difference(lines, exact_run(box), range(6))
    return [*claims, at_most("largest difference of 6 losses", off, 1e-3)]


def two_runs(box: Box) -> list[Claim]:
    """Two runs at once, each on its half of the GPUs."""
    half = len(box.slots) // 2
    parts = {"left": box.slots[:half], "right": box.slots[half : 2 * half]}
    flags = [f"--total_iter={box.steps(200, 6)}"]
    running = {name: box.start(*box.training(name, *flags, slots=slots)) for name, slots in parts.items()}
    ended = {name: run.wait() for name, run in running.items()}
    losses = [[line["loss"] for line in box.metrics(name)] for name in parts]
    return [
        *(same(f"status of {name}", ran.status, 0) for name, ran in ended.items()),
        same("steps", [len(one) for one in losses], [box.steps(200, 6)] * 2),
        figure("last losses", [one[-1] for one in losses if one]),
    ]


def body(box: Box) -> list[Claim]:
    """A body of three parts, trained in turn."""
    parts = ["upper", "hands", "lower_trans"]
    ran = box.train("body", f"--body_part={','.join(parts)}", f"--total_iter={box.steps(50, 2)}")
    made = [part for part in parts if (box.runs / "body" / part / "tokenizer").is_dir()]
    claims = [same("status", ran.status, 0), same("tokenizers", made, parts), same("processes left", ran.left, [])]
    return [*claims, *([figure("it said", ran.reason())] if ran.status else [])]
