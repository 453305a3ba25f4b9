"""Every check is ok with what a sound machine gives, and FAILED with what a broken one gives."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.on_gpu import failures
from tests.on_gpu.box import Box, Ran
from tests.on_gpu.checks import CHECKS
from tests.on_gpu.claims import CheckError
from tests.on_gpu.program import run_check
from tests.on_gpu.report import FAILED, OK
from tests.on_gpu.start import stray_lines
from tests.ranks import ROOT

GIB = 2**30
OVERFLOW = "[2026-01-01 00:00:00,000] [WARNING] [logging.py:123:log_dist] [Rank 0] [deepspeed] OVERFLOW! Skipping step."
SLOTS = [1, 2, 3, 4, 5, 6, 7]
GPU = {"name": "NVIDIA GeForce RTX 4090", "memory_total_bytes": 24_564 << 20, "memory_used_bytes": 1 << 20}
BENCH = {
    "step_s": 0.02,
    "model_s": 0.01,
    "times_plain_fp32": 1.5,
    "times_plain_bf16": 0.9,
    "conv_share": 0.5,
    "mfu": 0.3,
    "kernels": 1600,
    "device_busy_share": 0.6,
    "peak_memory_bytes": GIB,
    "micro_batch": 80,
    "accumulation": 1,
}
CONVOLUTION = {"forward_s": 1e-4, "backward_input_s": 1e-4, "backward_weight_s": 1e-4, "matmul_s": 5e-5, "error": 0.003}


class PlayedRunning:
    """A command of the played machine, which is over."""

    def __init__(self, box, name):
        self.box, self.name = box, name
        self.process = SimpleNamespace(pid=4000, send_signal=lambda number: None)

    def ranks(self):
        return [SimpleNamespace(pid=5000 + rank) for rank in range(self.box.rank_count)]

    def processes(self):
        return [*self.ranks(), SimpleNamespace(pid=4000)]

    def wait_until(self, condition, what):
        if not condition():
            raise CheckError(f"ended before {what}")

    def wait_after(self, words):
        return self.wait(), self.box.seconds_to_end

    def wait(self):
        return self.box.ends.get(self.name) or Ran(0, "", "", 20.0)

    def kill(self):
        pass


class Played(Box):
    """A machine of seven GPUs, whose commands and probes give what is written down here."""

    def __init__(self, folder):
        super().__init__(SLOTS, folder, folder, until=float("inf"))
        self.rank_count, self.compared = len(SLOTS), 0
        self.ends = {
            "killed": Ran(70, "", "training failed: rank 3 (process 5003) was killed", 9.0),
            "halted": Ran(70, "", "training failed: rank 3 (process 5003) has been stopped for 10 s", 19.0),
            "interrupted": Ran(75, "", "continue with: ds-rvqvae train --resume", 9.0),
            "too_large": Ran(70, "", "error: rank 6: OutOfMemory: micro batch 512 does not fit: …", 30.0),
            "nan": Ran(70, "", f"{3 * (_SKIPPED + chr(10))}{_NOT_FINITE}", 20.0),
            "nvidia-smi": Ran(0, "\n".join(f"{at}, {GPU['name']}, 24564, 1" for at in range(8)), "", 0.1),
        }
        self.ends["processes"] = Ran(0, "\n".join(map(str, [4000, *range(5000, 5007)])), "", 0.1)
        self.stopped_first = Ran(75, "", "", 9.0)
        self.idle = [0, 3, 0]
        self.steps_of = {"numbers": 6, "universal": 10, "alone": 6, "exact": 6, "compiled": 6, "in_fp32": 100}
        self.losses = {}
        self.probes = {
            "machine": {"accelerator": "cuda", "devices": 7, "bf16_product_is_right": True, "names": [GPU["name"]],
                        "torch": "2.13", "cuda": "13.0", "cudnn": 9, "nccl": [2], "deepspeed": "0.19.8"},
            "overheads": {"context_bytes": 4e8, "outside_bytes": 6e8},
            "waits": {"per_step": 7.0, "places": {"/site-packages/deepspeed/utils.py:1": 35}, "ours": {}},
            "codes": {"device_first_level": 1.0, "device_all_levels": 0.99, "batched": 1.0, "streamed": 1.0,
                      "used": 9.0, "codes": 100.0},
            "convolutions": [dict(CONVOLUTION, benchmark=on, dilation=wide) for on in (0, 1) for wide in (1, 3, 9)],
            "all_reduce": [{"bytes": size, "seconds": size / 1e10 + 1e-5, "bytes_per_s": 1.7e10, "right": True}
                           for size in (35_000_000, 4_000_000, 4)],
            "equal_ranks": [{"weights": "a" * 64, "codebooks": "b" * 64, "loss": str(rank)} for rank in SLOTS],
        }  # fmt: skip
        self.jsons = {"bench": dict(BENCH), "plan": {"allocated_bytes": GIB}, "monitor": {"gpus": self._gpus()}}
        rank = {"step_allocated_gib": 0.48, "allocated_gib": 0.49, "reserved_gib": 0.6, "used_gib": 1.2}
        self.memory = {"planned": {"allocated_gib": 0.5, "total_gib": 1.4}, "ranks": [rank]}
        self.fitted = {"train_micro_batch_size_per_gpu": 256, "gradient_accumulation_steps": 2}
        self.rate, self.seconds_to_end = 27_000.0, 9.0
        self.encoded = {"codes_cpu": 0, "codes_device": 0}
        """The codes in the files of a folder."""
        self.trained_with = []
        """Flags of every run on GPUs."""

    @staticmethod
    def _gpus():
        """One rank on each GPU of the run."""
        return [dict(GPU, index=at, processes=[{"pid": 5000 + at - 1}] if at else []) for at in range(8)]

    def probe(self, name, **arguments):
        found = self.probes[name]
        if name in ("all_reduce", "equal_ranks"):
            return found if name == "equal_ranks" else [found] * 7
        return [found]

    def start_probe(self, name, *arguments):
        (self.work / "held").touch()
        return [(PlayedRunning(self, name), None)]

    def start(self, *command, **variables):
        if command[0] == "nvidia-smi":
            return PlayedRunning(self, "nvidia-smi" if "--query-gpu" in command[1] else "processes")
        name = next((word.partition("=")[2] for word in command if word.startswith("--name=")), "monitor")
        if "train" in command:
            self.trained_with.append(list(command[command.index("train") + 1 :]))
        if command[0] == "bash":
            self.trained_with.append(list(command[2:]))
        if name == "monitor":
            (self.work / "large.csv").write_text("power_watts,pcie_received_MB_per_s,pcie_sent_MB_per_s\n300.5,1,2\n")
        if name == "stopped" and "--resume" not in command:
            self.stops_at = 100
            running = PlayedRunning(self, name)
            running.wait = self._stop
            return running
        return PlayedRunning(self, name)

    def _stop(self):
        return self.stopped_first

    def ds(self, *words, **variables):
        if words[0] == "monitor":
            return Ran(self.idle.pop(0), "", "error: --require_idle: GPU 1 is not idle: process 4000", 1.0)
        name = next((word.partition("=")[2] for word in words if word.startswith("--name=")), words[0])
        if words[0] == "encode":
            folder = Path(words[words.index("--out") + 1])
            folder.mkdir()
            np.savez(folder / "a.npz", codes=np.full((4, 3), self.encoded[folder.name]))
        if words[0] == "train" and "DS_ACCELERATOR" not in variables:
            self.trained_with.append(list(words[1:]))
        return self.ends.get(name) or Ran(0, "", "", 1.0)

    def train(self, name, *flags, slots=None, **variables):
        command = self.training(name, *flags, slots=slots)
        self.trained_with.append(command[command.index("train") + 1 :])
        with suppress(AttributeError):
            del self.stops_at
        return self.ends.get(name) or Ran(0, "", "", 20.0)

    def json_of(self, *words, **variables):
        return self.jsons[words[0]]

    def metrics(self, name):
        count = self.steps_of.get(name, {"readme": 40, "large": 100}.get(name, 400))
        if name == "stopped" and hasattr(self, "stops_at"):
            count = self.stops_at
        if name in ("interrupted", "killed", "halted"):
            count = 1
        if name in ("left", "right"):
            count = 200
        every = 50 if name == "readme" else 1
        ranks = int(name.rpartition("_")[2]) if name.startswith("scaled_") else 1
        loss = self.losses.get(name, lambda step: 1.0 / (1 + step / 100))
        return [
            {"step": (at + 1) * every, "loss": loss(at), "samples_per_s": self.rate / 7 * ranks} for at in range(count)
        ]

    def summary(self, name):
        return self.memory


_SKIPPED = "WARNING: step 2 skipped: a loss or gradient was not finite; its clips: a"
_NOT_FINITE = "error: rank 0: RuntimeError: 3 steps in a row had a loss or gradient that was not finite; …"


@pytest.fixture
def box(tmp_path, monkeypatch):
    monkeypatch.setattr(failures.os, "kill", lambda pid, number: None)
    played = Played(tmp_path)
    (tmp_path / "motion").mkdir()
    for part in ("upper", "hands", "lower_trans"):
        (tmp_path / "runs" / "body" / part / "tokenizer").mkdir(parents=True)
    (tmp_path / "runs" / "interrupted" / "checkpoints").mkdir(parents=True)
    (tmp_path / "runs" / "interrupted" / "checkpoints" / "latest").write_text("global_step9")
    (tmp_path / "runs" / "fitted").mkdir()
    return played


def outcome_of(name, box):
    (box.runs / "fitted" / "profile.json").write_text(json.dumps(box.fitted))
    (check,) = [check for check in CHECKS if check.name == name]
    return run_check(check, box, float("inf"))


@pytest.mark.parametrize("name", [check.name for check in CHECKS])
def test_a_sound_machine_is_ok(box, name):
    outcome = outcome_of(name, box)
    assert (outcome.status, outcome.reason) == (OK, ""), outcome.line(False)
    assert any(claim.expected for claim in outcome.claims)


@pytest.mark.parametrize(
    ("line", "stray"),
    [
        (OVERFLOW, True),
        (" [WARNING]  CUDA_HOME does not exist, unable to compile CUDA op(s)", True),
        ("/v/lib/python3.11/site-packages/torch/x.py:1: UserWarning: a", True),
        ("[rank1]:[W1130 20:00:00.1 ProcessGroupNCCL.cpp:1] a", True),
        ("W1130 20:00:00.100000 17 torch/distributed/run.py:1] a", True),
        ("NCCL version 2.28.9+cuda13.0", True),
        ("WARNING: step 2 skipped: a loss or gradient was not finite", False),
        ("warning: GPU 0 is included, so no GPU is left for the desktop and for evaluation", False),
        ("run: /home/numa/warnings/runs/one", False),
        ("2 ranks, ZeRO stage 2, bf16, activation checkpointing on", False),
    ],
)
def test_a_stray_line_is_one_of_a_library(line, stray):
    assert stray_lines(Ran(0, "", line, 1.0)) == ([line] if stray else [])


def ends(name, status=70, err="", **more):
    return lambda box: box.ends.update({name: Ran(status, more.pop("out", ""), err, more.pop("seconds", 9.0), **more)})


def finds(probe, **values):
    return lambda box: box.probes[probe].update(values)


def benched(**values):
    return lambda box: box.jsons["bench"].update(values)


def gpu(index, **values):
    return lambda box: box.jsons["monitor"]["gpus"][index].update(values)


def loses(name, loss):
    return lambda box: box.losses.update({name: loss})


def rows(probe, index, **values):
    return lambda box: box.probes[probe][index].update(values)


def attribute(name, value):
    return lambda box: setattr(box, name, value)


KILLED = "training failed: rank 3 (process 5003) was killed"
BROKEN = [
    ("versions", finds("machine", devices=6), "GPUs that torch sees"),
    ("versions", finds("machine", accelerator="cpu"), "accelerator"),
    ("versions", finds("machine", bf16_product_is_right=False), "bf16 product"),
    ("launch", ends("first", 0, OVERFLOW), "stray lines"),
    ("launch", ends("first", 70, "error: rank 0: no"), "status"),
    ("launch", ends("first", 0, left=["17 python"]), "processes left"),
    ("launch", loses("first", lambda step: 1.0 + step), "loss, last quarter / first"),
    ("launch", loses("first", lambda step: float("nan")), "losses are finite"),
    ("memory", lambda box: box.memory["ranks"][0].update(step_allocated_gib=0.6), "tensors / planned"),
    ("memory", lambda box: box.memory["ranks"][0].update(used_gib=1.6), "GPU used / planned"),
    ("memory", finds("overheads", outside_bytes=1e9), "outside torch's allocator"),
    ("readme_line", gpu(0, processes=[{"pid": 5000}]), "processes on other GPUs"),
    ("readme_line", gpu(4, processes=[]), "processes on each GPU"),
    ("readme_line", attribute("rank_count", 6), "ranks"),
    ("readme_line", ends("readme", 70), "status"),
    ("all_reduce", rows("all_reduce", 0, right=False), "peer-to-peer on: sums are right"),
    ("all_reduce", rows("all_reduce", 0, bytes_per_s=1e9), "peer-to-peer on: 35,000,000 B"),
    ("resume", attribute("stopped_first", Ran(70, "", "", 9.0)), "status after SIGTERM"),
    ("resume", ends("stopped", 70, "error: no"), "status after --resume"),
    ("resume", loses("stopped", lambda step: 2.0), "largest difference of the loss after it"),
    ("bench", benched(times_plain_fp32=0.4), "speed / plain fp32 loop"),
    ("bench", benched(times_plain_bf16=0.4), "speed / plain bf16 loop"),
    ("bench", benched(conv_share=1.7), "convolutions, share of a step"),
    ("bench_large", benched(mfu=0.05), "share of the rate of matrix products"),
    ("bench_large", benched(device_busy_share=1.3), "busy share"),
    ("host_cost", benched(kernels=0), "now"),
    ("equal_ranks", rows("equal_ranks", 4, codebooks="c" * 64), "different codebooks"),
    ("equal_ranks", rows("equal_ranks", 0, weights="c" * 64), "different weights"),
    ("equal_ranks", lambda box: [rank.update(loss="1") for rank in box.probes["equal_ranks"]], "their batches differ"),
    ("killed", ends("killed", 70, f"{KILLED}\nerror: rank 2: RuntimeError: lost"), "it said"),
    ("killed", ends("killed", 75, KILLED), "status"),
    ("killed", ends("killed", 70, KILLED, left=["5004 python"]), "processes left"),
    ("killed", ends("killed", 70, f"{KILLED}\nTraceback (most recent call last):"), "no traceback"),
    ("stopped", ends("halted", 70, "training failed: the ranks are stuck"), "it said"),
    ("interrupted", ends("interrupted", 70, ""), "status"),
    ("interrupted", ends("interrupted", 75, ""), "lines with 'continue with:'"),
    ("interrupted", lambda box: (box.runs / "interrupted/checkpoints/latest").unlink(), "checkpoint"),
    ("out_of_memory", ends("too_large", 70, "training failed: the ranks are stuck"), "it said"),
    ("out_of_memory", lambda box: box.ends["too_large"].__dict__.update(err="restart 1 of 2 in 5 s"), "no restart"),
    ("out_of_memory", ends("too_large", 0), "status"),
    ("out_of_memory", attribute("seconds_to_end", 180.0), "seconds from this line to the end"),
    ("not_finite", ends("nan", 0), "status"),
    ("not_finite", ends("nan", 70, OVERFLOW), "stray lines"),
    ("not_finite", ends("nan", 70, _NOT_FINITE), "steps skipped"),
    ("universal", ends("universal", 70, "error: no"), ""),
    ("universal", loses("universal", lambda step: 1.0 + 9 * (step > 4)), "mean loss after / before"),
    ("waits", finds("waits", ours={"/p/ds_rvqvae/train/trainer.py:9": 5}), "of this project"),
    ("waits", finds("waits", per_step=30.0), "per step"),
    ("bf16", loses("in_fp32", lambda step: 2.0), "difference of the last losses"),
    ("codes", finds("codes", device_first_level=0.9), "equal with the CPU, first level"),
    ("codes", finds("codes", batched=0.99), "equal in a batch"),
    ("codes", finds("codes", streamed=0.99), "equal in a stream"),
    ("codes", ends("encode", 2), "status of encode, by device"),
    ("codes", lambda box: box.encoded.update(codes_device=1), "encoded files equal with the CPU's"),
    ("scaling", attribute("rate", 5_000.0), "1 ranks: "),
    ("same_batch", loses("exact", lambda step: 1.01 / (1 + step / 100)), "largest difference of 6 losses"),
    ("convolutions", rows("convolutions", 2, error=0.1), "largest error, relative"),
    ("convolutions", rows("convolutions", 5, backward_weight_s=1.0), "dilation 9, benchmark on"),
    ("monitor", gpu(3, memory_total_bytes=8 << 30), "largest difference of all memory"),
    ("monitor", gpu(3, memory_used_bytes=8 << 30), "largest difference of memory in use"),
    ("monitor", gpu(3, name="Tesla"), "names"),
    ("require_idle", attribute("idle", [0, 0, 0]), "status in use"),
    ("require_idle", attribute("idle", [0, 3, 3]), "status when idle again"),
    ("auto_batch", lambda box: box.fitted.update(train_micro_batch_size_per_gpu=512), "micro batch"),
    ("auto_batch", lambda box: box.fitted.update(gradient_accumulation_steps=1), "windows per GPU"),
    ("compile", ends("compiled", 2, "error: no compiler"), "status"),
    ("compile", loses("compiled", lambda step: 2.0), "largest difference of 6 losses"),
    ("large", lambda box: box.memory["ranks"][0].update(used_gib=2.0), "GPU used / planned"),
    ("other_number", ends("numbers", 70), "status on 7 ranks"),
    ("other_number", loses("numbers", lambda step: 1.0 + step), "largest difference of 6 losses"),
    ("two_runs", ends("right", 70), "status of right"),
    ("body", lambda box: os.rmdir(box.runs / "body/hands/tokenizer"), "tokenizers"),  # noqa: PTH106
]


@pytest.mark.parametrize(("name", "broken", "claim"), BROKEN, ids=[f"{one[0]}-{at}" for at, one in enumerate(BROKEN)])
def test_a_broken_machine_fails(box, name, broken, claim):
    broken(box)
    outcome = outcome_of(name, box)
    assert outcome.status == FAILED
    failed = [found.name for found in outcome.claims if found.fails(rehearsal=False)]
    assert any(found.startswith(claim) for found in failed) if claim else outcome.reason, outcome.line(False)


def test_every_check_is_seen_to_fail():
    assert {name for name, *_ in BROKEN} == {check.name for check in CHECKS}


_DRY_RUNS = """
import json, sys
from ds_rvqvae.launch import main as launcher
for flags in json.load(open(sys.argv[1])):
    if (status := launcher.main([*flags, "--dry_run"])) != 0:
        print(status, flags, file=sys.stderr)
        sys.exit(1)
"""


def test_the_launcher_takes_every_run_of_the_checks_on_gpus(box, stand_in, tmp_path):
    (tmp_path / "motion").rmdir()
    for check in CHECKS:
        run_check(check, box, float("inf"))
    shutil.rmtree(box.runs)
    flags = [[word for word in line if word != "--resume"] for line in box.trained_with]
    assert len(flags) > 20
    (tmp_path / "flags.json").write_text(json.dumps(flags))
    command = [sys.executable, "-c", _DRY_RUNS, str(tmp_path / "flags.json")]
    environment = {**stand_in.environment, "PYTHONPATH": str(ROOT)}
    for name in ("DS_ACCELERATOR", "LOCAL_SIZE"):
        environment.pop(name, None)
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert "warning: the global batch" not in ran.stderr
