"""Everything that only decorates or reports fails at once in a run, and training is not affected."""

import os
import shutil
import subprocess
import time
from contextlib import suppress

import pytest

from ds_rvqvae.data.formats.smpl.beat2 import CLIP_FOLDER
from ds_rvqvae.model.losses import Losses
from tests.e2e.running import LAUNCHER
from tests.ranks import bare_environment
from tests.train.small import SMALL, read_metrics

pytestmark = pytest.mark.processes
NAME = "$\\bad{0$ 动作 "
"""Text that matplotlib would take for mathematics, and characters that neither its font nor a terminal may have."""
STEPS = 20


@pytest.fixture
def named_folder(tmp_path, demo_folder):
    """Returns demo motion in which every clip has such a name."""
    folder = shutil.copytree(demo_folder, tmp_path / "motion")
    listed = (folder / "train_test_split.csv").read_text()
    for clip in (folder / CLIP_FOLDER).iterdir():
        listed = listed.replace(clip.stem, clip.stem + NAME.rstrip())
        clip.rename(clip.with_stem(clip.stem + NAME.rstrip()))
    (folder / "train_test_split.csv").write_text(listed)
    return folder


@pytest.fixture
def temporary(tmp_path):
    """Yields a folder for temporary files with little room, if this user may mount one."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and bool(shutil.which("mount")) and not subprocess.run(mount).returncode
    yield folder
    if mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def start(tmp_path, data, *flags, **variables):
    environment = bare_environment(tmp_path, DS_ACCELERATOR="cpu", LOCAL_SIZE="1", OMP_NUM_THREADS="1", **variables)
    line = [*LAUNCHER, *SMALL, f"--data_path={data}", "--include=localhost:0", "--batch_size=4", *flags]
    line += [f"--total_iter={STEPS}"]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, cwd=tmp_path, env=environment, stdout=pipe, stderr=subprocess.STDOUT)


def test_a_body_trains_amid_failures_as_without(tmp_path, named_folder, temporary):
    body, metrics = tmp_path / "runs" / "body", tmp_path / "runs" / "body" / "upper" / "metrics.jsonl"
    variables = {"PYTHONWARNINGS": "error", "LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii:strict"}
    variables |= {"TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1", "PYTHONHASHSEED": "random"}
    run = start(tmp_path, named_folder, "--body_part=upper,hands", "--name=body", **variables)
    try:
        deadline = time.monotonic() + 300
        while not (metrics.is_file() and metrics.read_bytes()):
            assert run.poll() is None and time.monotonic() < deadline, run.communicate()[0].decode()
            time.sleep(0.02)
        shutil.rmtree(body / "upper" / "tensorboard")
        with suppress(OSError), (temporary / "filler").open("wb", buffering=0) as filler:
            while shutil.disk_usage(temporary).total < 1 << 20:
                filler.write(b"x")
        assert len(read_metrics(body / "upper")) < STEPS
        said = run.communicate(timeout=400)[0].decode()
    finally:
        run.kill()
    assert run.returncode == 0, said
    assert "Traceback" not in said and "tokenizer of upper, hands: " in said
    log = (body / "upper" / "run.log").read_text()
    assert log.count("tensorboard: gets no more data until a restart: No such file or directory") == 1
    assert "Glyph" not in log + said  # letters that no font has are drawn as others
    assert "no picture" not in log and "until a restart" not in (body / "hands" / "run.log").read_text()
    for part in ("upper", "hands"):
        assert (body / part / "eval" / "reconstruction_train.png").read_bytes().startswith(b"\x89PNG")

    whole = start(tmp_path, named_folder, "--body_part=upper", "--name=whole")
    said = whole.communicate(timeout=400)[0].decode()
    assert whole.returncode == 0, said
    for mine, theirs in zip(read_metrics(body / "upper"), read_metrics(tmp_path / "runs" / "whole"), strict=True):
        for key in ("step", *Losses._fields, "perplexity", "usage", "lr", "grad_norm"):
            assert mine[key] == theirs[key], (mine["step"], key)
