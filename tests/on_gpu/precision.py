"""Checks of the numbers: bf16 beside fp32, codes of GPU and CPU, and where a step waits."""

import json
import os
import statistics
from pathlib import Path

import numpy as np

from ds_rvqvae.files import read_json
from tests.on_gpu.box import FAULTS, Box
from tests.on_gpu.claims import Claim, at_least, at_most, figure, same, true
from tests.on_gpu.start import first_metrics
from tests.ranks import ROOT


def bf16(box: Box) -> list[Claim]:
    """The first run, in bf16, has the losses of one in fp32 over 100 steps."""
    steps = box.steps(100, 16)
    in_bf16 = first_metrics(box)[:steps]
    flags = ["--mixed_precision=no", f"--total_iter={steps}"]
    in_fp32 = box.trained("in_fp32", *flags, slots=box.slots[:1])
    last = [statistics.mean(line["loss"] for line in lines[-steps // 4 :]) for lines in (in_bf16, in_fp32)]
    return [
        at_most("difference of the last losses", abs(last[0] / last[1] - 1), 0.05),
        figure("loss in bf16", last[0]),
        figure("loss in fp32", last[1]),
    ]


def codes(box: Box) -> list[Claim]:
    """A clip has the same codes on GPU and CPU, alone and in a batch, at once and streamed."""
    first_metrics(box)
    tokenizer = box.runs / "first" / "tokenizer"
    (found,) = box.probe("codes", tokenizer=str(tokenizer), motion=str(box.motion), frames=box.steps(1700, 150))
    named = {"cpu": "cpu", "device": f"cuda:{box.slots[0]}" if box.on_gpu else "cpu"}
    folders = {name: box.work / f"codes_{name}" for name in named}
    statuses = []
    for name, device in named.items():
        flags = ["--out", str(folders[name]), "--device", device]
        statuses.append(box.ds("encode", str(tokenizer), str(box.motion), *flags).status)
    return [
        at_least("equal with the CPU, first level", found["device_first_level"], 0.99),
        at_least("equal with the CPU, all levels", found["device_all_levels"], 0.95),
        same("equal in a batch", found["batched"], 1.0),
        same("equal in a stream", found["streamed"], 1.0),
        at_least("codes in use", found["used"], 2),
        figure("codes compared", found["codes"]),
        same("status of encode, by device", statuses, [0, 0]),
        at_least("encoded files equal with the CPU's", _equal_files(folders["cpu"], folders["device"]), 0.95),
    ]


def _equal_files(wanted: Path, found: Path) -> float:
    """The fraction of equal codes in two folders of codes files; 0 if the files differ."""
    names = [sorted(file.relative_to(folder) for file in folder.rglob("*.npz")) for folder in (wanted, found)]
    if not names[0] or names[0] != names[1]:
        return 0.0
    equal = count = 0
    for name in names[0]:
        rows = []
        for folder in (wanted, found):
            with np.load(folder / name) as file:
                rows.append(file["codes"])
        if rows[0].shape != rows[1].shape:
            return 0.0
        equal, count = equal + int((rows[0] == rows[1]).sum()), count + rows[0].size
    return equal / count


def waits(box: Box) -> list[Claim]:
    """Lists each place of a step at which the host waits for the GPU; none is this project's."""
    flags = box.settings("--log_every=100000", "--total_iter=100000")
    (found,) = box.probe("waits", flags=flags, folder=str(box.work / "waits"), steps=5)
    places = [f"{_short(place)} ({count / 5:g})" for place, count in found["places"].items()]
    ours = [_short(place) for place in found["ours"]]
    return [
        same("of this project", ours, []),
        at_most("per step", found["per_step"], 12.0),
        figure("places (per step)", places),
    ]


def _short(place: str) -> str:
    """A place in the code without the folder of its package."""
    for mark in ("/site-packages/", f"{ROOT}/"):
        place = place.rpartition(mark)[2]
    return place


def out_of_memory_settings(box: Box) -> tuple[list[str], dict[str, str]]:
    """Flags of a batch that is too large for the last rank, and the variables that make it so: on a GPU the rank may
    take what the plan needs for half of the batch."""
    batch, limit = (512, _planned(box, 256)) if box.on_gpu else (12, 0)
    fault = json.dumps({"rank": len(box.slots) - 1, "bytes": limit, "windows": 8})
    flags = [f"--batch_size={batch}", *(["--window_stride=4"] if box.on_gpu else [])]
    path = f"{FAULTS}{os.pathsep}{box.environment['PYTHONPATH']}"
    return flags, {"ON_GPU_FAULT": fault, "PYTHONPATH": path}


def _planned(box: Box, batch: int) -> int:
    setting = f"train_micro_batch_size_per_gpu={batch}"
    plan = box.json_of("plan", "baseline", "--gpus", str(len(box.slots)), "--set", setting, "--json")
    return int(plan["allocated_bytes"])


def auto_batch_size(box: Box) -> list[Claim]:
    """--auto_batch_size finds a batch that fits, and keeps the global batch."""
    batch, variables = out_of_memory_settings(box)
    ran = box.train("fitted", *batch, "--total_iter=3", "--auto_batch_size", **variables)
    if ran.status:
        return [same("status", ran.status, 0), figure("it said", ran.reason())]
    asked = int(batch[0].partition("=")[2])
    profile = read_json(box.runs / "fitted" / "profile.json")
    micro = profile["train_micro_batch_size_per_gpu"]
    accumulation = profile["gradient_accumulation_steps"]
    return [
        same("status", ran.status, 0),
        true("micro batch", 0 < micro < asked, str(micro), f"1 to {asked - 1}"),
        same("windows per GPU", micro * accumulation, asked),
        figure("seconds", ran.seconds, "s"),
    ]
