"""Many clips in one npz: their frame rate."""

import json

import numpy as np
import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.readers import open_reader
from ds_rvqvae.errors import UserError
from tests.data.motion import write_packed


def layout(**kinds: int) -> np.ndarray:
    """Returns a layout of these kinds and widths, one after another."""
    entries, start = [], 0
    for kind, width in kinds.items():
        entries.append({"name": kind, "kind": kind, "columns": [start, start + width]})
        start += width
    return np.array(json.dumps(entries))


def reader_of(file, **settings):
    return open_reader(file, DataConfig(**settings))


@pytest.mark.parametrize("changes", [{}, {"layout": layout(position=3, feature=2)}])
def test_columns_of_unknown_meaning_keep_their_rate(tmp_path, changes):
    file = write_packed(tmp_path / "all.npz", fps=np.array(60), **changes)
    reader = reader_of(file, fps=30.0)
    clip = reader.read("clip0")
    assert reader.fps == clip.fps == 60 and clip.motion[:, 0].tolist() == list(range(40))
    assert reader.notes == (
        "the file's own 60 fps is kept: feature matrices are never resampled, rvqvae.data.fps 30 is not used",
    )
    assert reader_of(file, fps=60.0).notes == ()
    before = reader_of(file, fps=30.0, reading_version=1)
    assert before.read("clip0").motion[:, 0].tolist() == list(range(0, 40, 2))
    assert before.notes[0].startswith("read as versions up to 0.2 did: features are resampled from 60 to 30 fps")


def test_columns_of_known_meaning_are_resampled(tmp_path):
    file = write_packed(tmp_path / "all.npz", width=3, fps=np.array(60), layout=layout(position=3))
    reader = reader_of(file, fps=30.0)
    clip = reader.read("clip0")
    assert reader.fps == clip.fps == 30 and clip.motion[:, 0].tolist() == list(range(0, 40, 2)) and reader.notes == ()


@pytest.mark.parametrize("fps", [30.0, 20.0, 120.0])
def test_velocities_are_metres_a_frame_of_the_rate_they_end_at(tmp_path, fps):
    speed = np.array([1.5, 0.0, -0.75])  # metres a second
    motion = np.tile(speed / 60, (40, 1))
    motion[:, 1], motion[0, [0, 2]] = 1, 0
    file = write_packed(tmp_path / "all.npz", (40,), 3, motion=motion, fps=np.array(60), layout=layout(translation=3))
    clip = reader_of(file, fps=fps).read("clip0")
    assert np.allclose(clip.motion[1:], speed / fps + np.array([0, 1, 0]), atol=1e-6) and np.allclose(
        clip.motion[0], [0, 1, 0]
    )
    before = reader_of(file, fps=fps, reading_version=1).read("clip0")
    assert np.allclose(before.motion[2:-1, 0], speed[0] / 60, atol=1e-2)
    kept = reader_of(file, fps=60.0).read("clip0")
    assert np.array_equal(kept.motion, motion.astype(np.float32))


@pytest.mark.parametrize("key", ["fps", "frame_rate"])
def test_any_key_of_a_rate_will_do_and_none_is_refused_with_the_flag(tmp_path, key):
    file = write_packed(tmp_path / "all.npz", **{"fps": None, key: np.array("60")})
    assert reader_of(file, fps=30.0).fps == 60
    file = write_packed(tmp_path / "none.npz", fps=None)
    with pytest.raises(
        UserError, match=r"no key fps; it has motion, .*; --source_fps N \(rvqvae.data.source_fps\) sets the frame rate"
    ):
        reader_of(file)
    reader = reader_of(file, source_fps=50.0)
    assert reader.fps == 50 and reader.take("clip0").fps == 50


def test_a_rate_that_is_given_goes_before_the_files(tmp_path):
    file = write_packed(tmp_path / "all.npz", width=3, fps=np.array(60), layout=layout(position=3))
    reader = reader_of(file, fps=30.0, source_fps=120.0)
    assert "but rvqvae.data.source_fps 120 is used" in reader.notes[0]
    clip = reader.read("clip0")
    assert clip.motion[:, 0].tolist() == list(range(0, 40, 4))
