"""The content of a store, in words and numbers."""

import numpy as np
import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.store.prepare import prepare_store
from ds_rvqvae.data.store.summary import (
    channel_groups,
    clips_of_rows,
    hours_words,
    layout_words,
    some,
    split_totals,
    store_totals,
)
from ds_rvqvae.motion.layout import Channels
from tests.data.motion import write_packed

LAYOUT = (
    Channels("Hips", "rotation_6d", 0, 6),
    Channels("Head", "rotation_6d", 6, 12),
    Channels("translation", "translation", 12, 15),
    Channels("hand", "position", 15, 18),
    Channels("expressions", "feature", 18, 28),
    Channels("jaw", "feature", 28, 29),
)


@pytest.fixture
def store(tmp_path):
    """Three clips of 40, 30 and 50 frames."""
    data = write_packed(tmp_path / "data.npz", split=np.array(["train", "val", "train"]))
    return prepare_store(DataConfig(path=str(data)), tmp_path / "store")


def test_totals_are_those_of_all_clips_and_of_each_split(store):
    seconds = {"train": 90 / 30, "val": 30 / 30}
    splits = {
        "train": {"clips": 2, "frames": 90, "hours": pytest.approx(seconds["train"] / 3600)},
        "val": {"clips": 1, "frames": 30, "hours": pytest.approx(seconds["val"] / 3600)},
    }
    assert split_totals(store) == splits
    assert store_totals(store) == {
        "clips": 3,
        "frames": 120,
        "hours": pytest.approx(4 / 3600),
        "columns": 5,
        "fps": 30.0,
        "splits": splits,
    }


def test_a_clip_that_time_cuts_counts_in_every_split(tmp_path):
    data = write_packed(tmp_path / "data.npz", lengths=(100, 50))
    store = prepare_store(DataConfig(path=str(data), split="time"), tmp_path / "store")
    totals = split_totals(store)
    assert {split: of["clips"] for split, of in totals.items()} == {"train": 2, "val": 2, "test": 2}
    assert sum(of["frames"] for of in totals.values()) == 150


@pytest.mark.parametrize(
    ("first", "stop", "names"),
    [
        (0, 120, ["clip0", "clip1", "clip2"]),
        (0, 40, ["clip0"]),
        (39, 41, ["clip0", "clip1"]),
        (40, 70, ["clip1"]),
        (69, 70, ["clip1"]),
        (70, 71, ["clip2"]),
    ],
)
def test_rows_belong_to_the_clips_that_they_touch(store, first, stop, names):
    assert clips_of_rows(store, first, stop) == names


def test_a_layout_in_a_line_and_in_groups():
    assert layout_words(LAYOUT) == "2 rotations, translation, 1 position, 10 expressions, 1 jaw"
    assert layout_words(LAYOUT[:1]) == "1 rotation"
    assert channel_groups(LAYOUT) == [
        {"kind": "rotation_6d", "channels": 2, "columns": [0, 12]},
        {"kind": "translation", "channels": 1, "columns": [12, 15]},
        {"kind": "position", "channels": 1, "columns": [15, 18]},
        {"kind": "feature", "channels": 2, "columns": [18, 29]},
    ]


def test_words_of_numbers():
    assert [hours_words(hours) for hours in (0.2, 1.0, 1234.5)] == ["12.0 minutes", "1.00 hours", "1,234.50 hours"]
    assert some(["a", "b", "c"]) == "a, b, c" and some(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    assert some([]) == "" and some(["a", "b"], most=1) == "a and 1 more"
