"""Wrong input: each kind gives one clear line, exit status 2, and leaves nothing behind."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.ranks import ROOT, bare_environment

GOOD_FLAGS = ["--profile=demo", "--data_path={data}", "--include=localhost:0,1"]


def _profile(folder: Path, change) -> str:
    values = json.loads((ROOT / "ds_configs" / "demo.json").read_text())
    text = change(values) or json.dumps(values)
    (folder / "mine.json").write_text(text)
    return f"--profile={folder / 'mine.json'}"


def _motion(folder: Path, **changes) -> str:
    """Makes a folder with one BEAT2 clip, changed."""
    frames = changes.pop("frames", 100)
    arrays = {
        "poses": np.full((frames, 165), 0.1, np.float32),
        "trans": np.zeros((frames, 3)),
        "expressions": np.zeros((frames, 100)),
        "betas": np.zeros(300, np.float32),
        "mocap_frame_rate": np.int32(30),
        **changes,
    }
    (folder / "motion").mkdir()
    np.savez(
        folder / "motion" / "1_a_0_1_1.npz", **{name: value for name, value in arrays.items() if value is not None}
    )
    return f"--data_path={folder / 'motion'}"


def _broken(folder: Path, content: bytes) -> str:
    (folder / "motion").mkdir()
    (folder / "motion" / "1_a_0_1_1.npz").write_bytes(content)
    return f"--data_path={folder / 'motion'}"


def _truncated(folder: Path) -> str:
    flag = _motion(folder)
    file = folder / "motion" / "1_a_0_1_1.npz"
    file.write_bytes(file.read_bytes()[:1000])
    return flag


def _with_nan(folder: Path) -> str:
    poses = np.zeros((100, 165), np.float32)
    poses[40:45, 7] = np.nan
    return _motion(folder, poses=poses)


def _packed(folder: Path, **changes) -> str:
    arrays = {"motion": np.zeros((200, 12), np.float32), "clip_start": np.array([0, 200]), "clip_name": np.array(["a"])}
    np.savez(folder / "packed.npz", **{**arrays, "fps": 30, **changes})
    return f"--data_path={folder / 'packed.npz'}"


def _empty(folder: Path) -> str:
    (folder / "motion").mkdir()
    return f"--data_path={folder / 'motion'}"


def _foreign(folder: Path) -> str:
    (folder / "motion").mkdir()
    (folder / "motion" / "song.mp3").write_bytes(b"ID3")
    return f"--data_path={folder / 'motion'}"


def _wide_statistics(folder: Path) -> list[str]:
    np.save(folder / "mean.npy", np.zeros(5))
    np.save(folder / "std.npy", np.ones(5))
    return [f"--mean_file={folder / 'mean.npy'}", f"--std_file={folder / 'std.npy'}"]


def _out_is_a_file(folder: Path) -> str:
    (folder / "out").write_text("")
    return f"--out={folder / 'out'}"


def _taken_name(folder: Path) -> list[str]:
    (folder / "out" / "mine").mkdir(parents=True)
    return [f"--out={folder / 'out'}", "--name=mine"]


def _set(*keys, value):
    def change(values):
        for key in keys[:-1]:
            values = values.setdefault(key, {})
        values[keys[-1]] = value

    return change


WRONG = {
    # the profile
    "misspelt key of ours": (
        lambda f: _profile(f, _set("rvqvae", "model", "widht", value=3)),
        "widht.*did you mean width",
    ),
    "misspelt top-level key": (
        lambda f: _profile(f, _set("gradient_cliping", value=1)),
        "did you mean gradient_clipping",
    ),
    "misspelt DeepSpeed key": (
        lambda f: _profile(f, _set("activation_checkpointing", "partition_activation", value=True)),
        "did you mean partition_activations",
    ),
    "wrong type": (lambda f: _profile(f, _set("rvqvae", "model", "width", value="wide")), r"rvqvae\.model\.width"),
    "bf16 is no object": (lambda f: _profile(f, _set("bf16", value=True)), "bf16"),
    "negative number": (lambda f: _profile(f, _set("rvqvae", "model", "depth", value=-1)), r"rvqvae\.model\.depth"),
    "no rvqvae object": (lambda f: _profile(f, lambda values: values.pop("rvqvae") and None), "rvqvae: missing"),
    "not JSON": (lambda f: _profile(f, lambda values: "{"), "mine.json:1: not JSON"),
    "a key twice": (lambda f: _profile(f, lambda values: '{"bf16": {}, "bf16": {}}'), "the key .*bf16.* appears twice"),
    "a list": (lambda f: _profile(f, lambda values: "[]"), "is a JSON object"),
    "no such profile": (lambda f: "--profile=basline", "no such profile.*baseline"),
    "ZeRO stage 3": (lambda f: "--set=zero_optimization.stage=3", r"zero_optimization\.stage"),
    "batch for another number of ranks": (lambda f: "--set=train_batch_size=48", "train_batch_size: 48 is not"),
    "override without a value": (lambda f: "--set=rvqvae.model.width", "path.to.key=value"),
    # the flags
    "misspelt flag": (lambda f: "--widht=3", "did you mean --width"),
    "flag of the wrong type": (lambda f: "--batch_size=many", "train_micro_batch_size_per_gpu"),
    "window of 130": (lambda f: "--window_size=130", "130 is not a multiple.*128 or 132"),
    "unknown body part": (lambda f: "--body_part=arm", "arm.*upper"),
    "unknown loss": (lambda f: "--recons_loss=l3", "l3"),
    "milestones out of order": (lambda f: "--milestones=20,10", "ascending order"),
    "learning rate of zero": (lambda f: "--lr=0", r"optimizer\.params\.lr"),
    # the motion
    "no motion named": (lambda f: "--data_path=", "--data_path.*DS_RVQVAE_DATA.*--demo"),
    "missing folder": (lambda f: f"--data_path={f / 'nowhere'}", "nowhere"),
    "empty folder": (_empty, "motion"),
    "files of no known format": (_foreign, "song.mp3"),
    "npz without poses": (lambda f: _motion(f, poses=None), "1_a_0_1_1.npz.*poses"),
    "poses of another width": (lambda f: _motion(f, poses=np.zeros((100, 72), np.float32)), "1_a_0_1_1.npz.*72"),
    "object arrays": (lambda f: _motion(f, poses=np.array([{}], dtype=object)), "1_a_0_1_1.npz"),
    "NaN frames": (_with_nan, "1_a_0_1_1.npz.*40"),
    "truncated npz": (_truncated, "1_a_0_1_1.npz"),
    "empty npz": (lambda f: _broken(f, b""), "1_a_0_1_1.npz"),
    "text called npz": (lambda f: _broken(f, b"hello"), "1_a_0_1_1.npz"),
    "clip of 10 frames": (lambda f: _motion(f, frames=10), "1_a_0_1_1.npz.*10"),
    "clips shorter than a window": (lambda f: [_motion(f, frames=60)], "window_size.*--window_size"),
    "packed clips out of range": (lambda f: _packed(f, clip_start=np.array([0, 500])), "packed.npz.*clip_start"),
    "packed layout of another width": (
        lambda f: _packed(f, layout=json.dumps([{"name": "a", "kind": "feature", "columns": [0, 6]}])),
        "packed.npz.*layout",
    ),
    "speakers that are not there": (lambda f: "--speakers=77", "77"),
    "statistics of another width": (_wide_statistics, "mean.npy.*5 columns"),
    "a mean without a std": (lambda f: f"--mean_file={f / 'mean.npy'}", "mean_file and std_file together"),
    # the run's folder
    "out is a file": (_out_is_a_file, "is a file"),
    "name with a slash": (lambda f: "--name=a/b", "without slashes"),
    "name that is taken": (_taken_name, "--resume"),
    # the devices
    "no such slot": (lambda f: "--include=localhost:0,5", "--include localhost:0,1"),
    "include without a host": (lambda f: "--include=0,1", "--include"),
    "port out of range": (lambda f: "--master_port=70000", "70000"),
}


def _launch(folder: Path, flags: list[str], **environment: str) -> subprocess.CompletedProcess:
    (folder / "here").mkdir()
    cpu = {"DS_ACCELERATOR": "cpu", "LOCAL_SIZE": "2", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, str(ROOT / "launch" / "train_8x4090.py"), *flags],
        cwd=folder / "here",
        env=bare_environment(folder, **{**cpu, **environment}),
        capture_output=True,
        text=True,
        timeout=60,
    )


def _assert_refused(result: subprocess.CompletedProcess, folder: Path, pattern: str) -> None:
    # Warnings may come first; the refusal itself is one line.
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("warning: ", "reading ", "still "))]
    assert result.returncode == 2, result.stderr
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    assert re.search(pattern, lines[0]), lines[0]
    assert "Traceback" not in result.stderr and result.stdout == ""
    assert list((folder / "here").iterdir()) == []


@pytest.mark.parametrize(("make", "pattern"), WRONG.values(), ids=WRONG.keys())
def test_refused_in_one_line(tmp_path, demo_folder, make, pattern):
    made = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    flags = [flag.format(data=demo_folder) for flag in GOOD_FLAGS] + ([made] if isinstance(made, str) else made)
    result = _launch(tmp_path, flags)
    _assert_refused(result, tmp_path, pattern)
    # A store of good motion may stay in the cache; nothing else may.
    own = {tmp_path / "home", tmp_path / "here"}
    left = [path for path in sorted(tmp_path.rglob("*")) if path not in before and path not in own]
    assert all((tmp_path / "cache") in (path, *path.parents) for path in left), left


def test_a_port_that_is_taken(tmp_path, demo_folder):
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = listener.getsockname()[1]
        flags = [flag.format(data=demo_folder) for flag in GOOD_FLAGS]
        result = _launch(tmp_path, [*flags, f"--master_port={port}"])
    _assert_refused(result, tmp_path, f"--master_port {port}")


def test_a_folder_that_cannot_be_written(tmp_path, demo_folder):
    flags = [flag.format(data=demo_folder) for flag in GOOD_FLAGS]
    # Nobody, not even root, can make a folder in /proc.
    result = _launch(tmp_path, [*flags, "--out=/proc/self/runs"])
    _assert_refused(result, tmp_path, "--out.*/proc")


@pytest.mark.parametrize(
    ("make", "device", "pattern"),
    [
        (lambda f: "--window_size=130", "cpu", "window_size"),
        (lambda f: _motion(f, poses=None), "cpu", "poses"),
        (lambda f: "--name=one", "cuda", "DS_ACCELERATOR=cuda, so this run is meant for GPUs, but torch "),
    ],
)
def test_ranks_started_by_hand_refuse_in_one_line_too(tmp_path, demo_folder, make, device, pattern):
    made = make(tmp_path)
    command = [sys.executable, "-m", "ds_rvqvae.train", "--profile=demo", f"--data_path={demo_folder}", made]
    environment = {**os.environ, "DS_ACCELERATOR": device, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    (tmp_path / "here").mkdir()
    result = subprocess.run(command, cwd=tmp_path / "here", env=environment, capture_output=True, text=True, timeout=60)
    result.stderr = result.stderr.removeprefix("importing torch and DeepSpeed\n")  # torch tells whether it finds a GPU
    _assert_refused(result, tmp_path, pattern)


def test_every_way_is_counted():
    assert len(WRONG) >= 25
