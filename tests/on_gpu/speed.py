"""Checks of speed: training steps beside plain loops, the rows of a step's cost, convolutions, torch.compile."""

import importlib.util
from typing import Any

from ds_rvqvae.gpu.plan import WORKSPACE_BYTES
from ds_rvqvae.text import GIB
from tests.on_gpu.box import Box
from tests.on_gpu.claims import Claim, at_least, at_most, between, figure, same, true
from tests.on_gpu.start import exact_run, exact_settings, largest_difference, stray_lines


def measured(box: Box, profile: str, rounds: int, *flags: str, plain: bool = False) -> dict[str, Any]:
    """Returns what `ds-rvqvae bench --json` measures on the first slot; a rehearsal takes a small net."""
    small = [f"rvqvae.model.{key}" for key in ("width=32", "depth=2", "code_dim=8", "nb_code=16", "num_quantizers=3")]
    sets = [] if box.on_gpu else [word for value in small for word in ("--set", value)]
    way = [] if plain and importlib.util.find_spec("vector_quantize_pytorch") else ["--no_plain"]
    visible = {"CUDA_VISIBLE_DEVICES": str(box.slots[0])} if box.on_gpu else {"LOCAL_SIZE": "1"}
    shown = profile if box.on_gpu else "demo"
    return box.json_of("bench", shown, "--json", f"--rounds={rounds}", *way, *sets, *flags, **visible)


def _sane(found: dict[str, Any]) -> list[Claim]:
    """Bounds of every measurement: shares are shares, and a step has kernels."""
    claims = [
        between("convolutions, share of a step", found["conv_share"], 0.0, 1.0),
        between("share of the rate of matrix products", found["mfu"], 0.0, 1.0),
        at_least("kernels per step", found["kernels"], 1),
    ]
    if found["device_busy_share"] is not None:
        claims.append(between("busy share", found["device_busy_share"], 0.0, 1.0))
    return claims


def bench_baseline(box: Box) -> list[Claim]:
    """The step of `baseline` beside plain PyTorch loops."""
    found = measured(box, "baseline", box.steps(7, 2), plain=True)
    claims = [figure("step", 1e3 * found["step_s"], "ms"), figure("model alone", 1e3 * found["model_s"], "ms")]
    if "times_plain_fp32" in found:
        claims.append(at_least("speed / plain fp32 loop", found["times_plain_fp32"], 0.5, gpu_only=True))
    else:
        claims.append(figure("plain loops", "not measured: vector_quantize_pytorch is not installed"))
    if "times_plain_bf16" in found:
        claims.append(at_least("speed / plain bf16 loop", found["times_plain_bf16"], 0.5, gpu_only=True))
    box.kept["bench baseline"] = found
    windows = found["micro_batch"] * found["accumulation"] / found["step_s"]
    return [*claims, *_sane(found), figure("windows per second", windows)]


def bench_large(box: Box) -> list[Claim]:
    """The step of `large`."""
    found = measured(box, "large", box.steps(5, 2))
    return [
        figure("step", 1e3 * found["step_s"], "ms"),
        at_least("share of the rate of matrix products", found["mfu"], 0.1, gpu_only=True),
        figure("peak memory", found["peak_memory_bytes"] / GIB, "GiB"),
        *_sane(found),
    ]


_ROWS = {
    "now": [],
    "without overlap": ["--set", "zero_optimization.overlap_comm=false"],
    "ZeRO stage 1": ["--set", "zero_optimization.stage=1"],
    "recomputed": ["--checkpointing"],
    "fp32": ["--set", "bf16.enabled=false"],
}
"""Settings of a step, each measured alone."""


def host_cost(box: Box) -> list[Claim]:
    """Milliseconds, kernels and busy share of a step under several settings."""
    claims = []
    for name, flags in list(_ROWS.items())[: None if box.on_gpu else 2]:
        found = measured(box, "baseline", box.steps(5, 1), *flags)
        busy = found["device_busy_share"]
        shown = f", busy {100 * busy:.0f} %" if busy is not None else ""
        text = f"{1e3 * found['step_s']:.1f} ms, {found['kernels']:,} kernels{shown}"
        claims.append(true(name, found["kernels"] > 0 and found["step_s"] > 0, text, "a time and kernels"))
    return claims


def convolutions(box: Box) -> list[Claim]:
    """Convolutions with dilations 1, 3 and 9 beside matrix products; cuDNN's benchmark off and on."""
    # On a GPU 16 micro batches at once: the host takes longer to start one of them than the GPU to compute it.
    size = {"batch": 1280, "width": 512, "frames": 32} if box.on_gpu else {"batch": 4, "width": 32, "frames": 32}
    (rows,) = box.probe("convolutions", **size, dilations=[1, 3, 9], repeats=box.steps(20, 3))
    claims = [at_most("largest error, relative", max(row["error"] for row in rows), 0.02)]
    for row in rows:
        name = f"dilation {row['dilation']}, benchmark {'on' if row['benchmark'] else 'off'}"
        parts = (row["forward_s"], row["backward_input_s"], row["backward_weight_s"])
        shares = [row["matmul_s"] / seconds for seconds in parts]
        text = f"{', '.join(f'{1e3 * seconds:.3f}' for seconds in parts)} ms, matmul {1e3 * row['matmul_s']:.3f} ms"
        wanted = "a tenth of the matrix product's rate or more, each"
        claims.append(true(name, min(shares) >= 0.1, text, wanted, gpu_only=True))
    return claims


def compiled(box: Box) -> list[Claim]:
    """--compile trains as without it, from an empty cache."""
    each, flags = exact_settings(box)
    plain = exact_run(box)
    caches = {f"{name}_CACHE_DIR": str(box.work / "compiled") for name in ("TORCHINDUCTOR", "TRITON")}
    ran = box.train("compiled", *flags, f"--batch_size={each}", "--compile", **caches)
    if ran.status:
        return [same("status", ran.status, 0), figure("it said", ran.reason())]
    off = largest_difference(box.metrics("compiled"), plain, range(6))
    return [
        same("status", ran.status, 0),
        same("stray lines", stray_lines(ran), []),
        at_most("largest difference of 6 losses", off, 1e-2),
        figure("with an empty cache", ran.seconds, "s"),
    ]


def large(box: Box) -> list[Claim]:
    """100 steps of `large` on all GPUs: memory against the plan, power and PCIe traffic by the monitor."""
    csv = box.work / "large.csv"
    watching = box.start(*box.command("monitor", "1", "--csv", str(csv), "--count", "100000"))
    profile = ["--profile=large", "--eval_every=100000"] if box.on_gpu else []
    lines = box.trained("large", f"--total_iter={box.steps(100, 4)}", *profile)
    watching.kill()
    table = [row.split(",") for row in csv.read_text().splitlines()] if csv.is_file() else [[]]
    columns = {name: [row[index] for row in table[1:] if len(row) > index] for index, name in enumerate(table[0])}
    peak = {name: max((float(value) for value in values if _is_number(value)), default=None)
            for name, values in columns.items()}  # fmt: skip
    claims = [
        same("steps", len(lines), box.steps(100, 4)),
        figure("samples per second", lines[-1]["samples_per_s"]),
        at_least("rows of the monitor", len(table) - 1, 1),
        figure("largest power", peak.get("power_watts"), "W"),
    ]
    claims += [
        figure(f"most {way} over PCIe", _gigabytes(peak.get(f"pcie_{way}_MB_per_s")), "GB/s")
        for way in ("received", "sent")
    ]
    if planned := box.summary("large")["planned"]:
        used = max(rank["used_gib"] for rank in box.summary("large")["ranks"])
        claims.append(at_most("GPU used / planned", used / planned["total_gib"], 1.05))
        claims.append(figure("planned for workspaces", WORKSPACE_BYTES / GIB, "GiB"))
    return claims


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()


def _gigabytes(value: float | None) -> float | None:
    return None if value is None else value / 1e3
