"""TensorBoard and the profile's other monitors: a failing one is reported once, and the others continue."""

import math
import shutil
import threading
from importlib.util import find_spec
from types import SimpleNamespace

import deepspeed
import numpy as np
import pytest
import torch

from ds_rvqvae.train.engine import Monitors
from ds_rvqvae.train.metrics import Board


@pytest.fixture
def make_board(one_rank, tmp_path, monkeypatch):
    """A board in `board`, with further monitors."""
    monkeypatch.setattr(deepspeed.comm, "get_rank", lambda: 0)
    monkeypatch.setattr(threading, "excepthook", lambda failed: None)

    def make(**sections):
        own = {"enabled": True, "output_path": str(tmp_path), "job_name": "board"}
        monitors = Monitors({"tensorboard": own, **sections})
        engine = SimpleNamespace(monitor=monitors, global_samples=0, global_steps=0, train_batch_size=lambda: 4)
        return Board(engine, tmp_path)

    return make


def write_all(board, sample):
    board.scalars({"loss": 0.5, "none": None}, sample)
    board.histogram("counts", torch.arange(9.0), sample)
    board.image("picture", np.zeros((4, 4, 3), np.uint8), sample)
    board.sync()


def test_a_folder_that_is_removed_is_said_once_and_other_monitors_go_on(make_board, tmp_path, caplog):
    board = make_board(csv_monitor={"enabled": True, "output_path": str(tmp_path), "job_name": "csv"})
    write_all(board, 4)
    assert list((tmp_path / "board").iterdir()) and caplog.messages == []
    shutil.rmtree(tmp_path / "board")
    for sample in (8, 12):
        write_all(board, sample)
    (said,) = caplog.messages
    assert said.startswith("tensorboard: gets no more data until a restart: No such file or directory: ")
    assert (tmp_path / "csv" / "loss.csv").read_text().split() == ["step,loss", "4,0.5", "8,0.5", "12,0.5"]
    shutil.rmtree(tmp_path / "csv")
    write_all(board, 16)
    write_all(board, 20)
    assert len(caplog.messages) == 2 and caplog.messages[1].startswith("csv_monitor: gets no more data")


@pytest.mark.skipif(find_spec("fsspec") is None, reason="no fsspec")
def test_a_folder_in_a_store_of_objects_gets_all(make_board, tmp_path, caplog, monkeypatch):
    import fsspec

    monkeypatch.chdir(tmp_path)  # DeepSpeed creates a folder with this name
    board = make_board(tensorboard={"enabled": True, "output_path": "memory://runs", "job_name": "board"})
    sizes = []
    for sample in (4, 8):
        write_all(board, sample)
        (file,) = fsspec.filesystem("memory").ls("/runs/board")
        sizes.append(file["size"])
    assert caplog.messages == [] and sizes[1] > sizes[0] > 0


def test_a_folder_that_cannot_be_made_is_said_and_nothing_is_shown(make_board, tmp_path, caplog):
    (tmp_path / "board").write_text("in the way")
    write_all(make_board(), 4)
    assert caplog.messages == [f"tensorboard: cannot be written: File exists: {tmp_path / 'board'}"]


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_a_monitor_that_is_not_installed_is_said(make_board, tmp_path, caplog):
    write_all(make_board(wandb={"enabled": True}), 4)
    (said,) = caplog.messages
    assert said.startswith("wandb: cannot be written: ") and list((tmp_path / "board").iterdir())


def test_numbers_that_are_not_finite_silence_nothing(make_board, tmp_path, caplog):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = make_board()
    board.scalars({"loss": math.nan}, 4)
    board.histogram("counts", torch.tensor([math.nan, math.inf]), 4)
    board.histogram("counts", torch.tensor([1.0, math.nan, 2.0]), 8)
    board.scalars({"loss": 0.5}, 8)
    board.sync()
    assert caplog.messages == []
    shown = EventAccumulator(str(tmp_path / "board")).Reload()
    assert [event.step for event in shown.Scalars("loss")] == [4, 8]
    (counts,) = shown.Histograms("counts")
    assert counts.histogram_value.num == 2
