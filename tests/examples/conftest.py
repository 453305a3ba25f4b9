"""The folder in which the examples run, with the tiny tokenizer that the first of them trains."""

import importlib
from pathlib import Path

import pytest
from filelock import FileLock

from tests.ranks import ROOT

EXAMPLES = ROOT / "examples"
TINY = "--width=16 --depth=1 --code_dim=8 --nb_code=16 --num_quantizers=2 --batch_size=4 --num_workers=1"


@pytest.fixture
def example_folder(tmp_path_factory, worker_id, monkeypatch) -> Path:
    """The folder, in which the test then stands; all workers of a test run share it, since training takes longest."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "examples"
    folder.mkdir(exist_ok=True)
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.chdir(folder)
    # The script sets the first two on a machine without a GPU.
    for name, value in (("DS_ACCELERATOR", "cpu"), ("LOCAL_SIZE", "1"), ("PYTHONPATH", str(ROOT))):
        monkeypatch.setenv(name, value)
    with FileLock(folder / "lock"):
        if not Path("runs/example/scores.json").is_file():
            tokenizer = importlib.import_module("train_on_bvh").main(["--steps=3", *TINY.split()])
            assert tokenizer == Path("runs/example/run/tokenizer")
    return folder
