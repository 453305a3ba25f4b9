"""Features written back as motion files, which are written completely or not at all."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.npz import write_npz
from ds_rvqvae.data.formats.smpl.writing import read_beat2_source, rest_source, write_beat2
from ds_rvqvae.data.formats.writing import open_motion_file
from ds_rvqvae.data.formats.written import write_matrix
from ds_rvqvae.motion.clip import ClipError
from ds_rvqvae.motion.layout import BODY_PART_CHANNELS, SMPLX_JOINTS, Channels, select_columns
from tests.data.motion import beat2_arrays
from tests.data.motion import write_beat2 as write_clip


def features_of(file, body_part, fps=30.0, **settings):
    reader = open_motion_file(file, DataConfig(fps=fps, **settings))
    clip = reader.read(reader.clip_names()[0])
    columns, layout = select_columns(clip.layout, body_part)
    return clip.motion[:, columns], layout


def angles(first, second):
    """Returns degrees between two arrays of axis-angle poses, `[frames, 55]`."""
    turns = [Rotation.from_rotvec(poses.reshape(-1, 3)) for poses in (first, second)]
    return np.degrees((turns[0].inv() * turns[1]).magnitude()).reshape(len(first), -1)


@pytest.mark.parametrize("body_part", BODY_PART_CHANNELS)
def test_features_written_back_are_the_clip_they_came_from(tmp_path, body_part):
    file = tmp_path / "1_a.npz"
    with file.open("wb") as content:  # np.savez cannot write the key `file`
        write_npz(content, {**beat2_arrays(), "extra": np.arange(3), "file": np.array("a name")})
    motion, layout = features_of(file, body_part)
    write_beat2(tmp_path / "out.npz", motion, layout, 30.0, read_beat2_source(file))
    there, found = np.load(file), np.load(tmp_path / "out.npz")
    assert found.files == there.files
    covered = [SMPLX_JOINTS.index(part.name) for part in layout if part.name in SMPLX_JOINTS]
    others = [joint for joint in range(55) if joint not in covered]
    for key in there.files:
        assert found[key].dtype == there[key].dtype and found[key].shape == there[key].shape, key
        if key in ("trans", "expressions"):
            np.testing.assert_allclose(found[key], there[key], atol=2e-5)
        elif key != "poses":
            np.testing.assert_array_equal(found[key], there[key])
    assert angles(found["poses"], there["poses"]).max() < 1e-3
    poses = found["poses"].reshape(-1, 55, 3), there["poses"].reshape(-1, 55, 3)
    assert (poses[0][:, others] == poses[1][:, others]).all()


def test_translation_starts_where_the_source_does(tmp_path):
    file = write_clip(tmp_path / "1_a.npz")
    motion, layout = features_of(file, "lower_trans")
    changed = np.concatenate([motion[:, :54], motion[:, 54:] * 2], axis=1)
    write_beat2(tmp_path / "out.npz", changed, layout, 30.0, read_beat2_source(file))
    there, found = np.load(file)["trans"], np.load(tmp_path / "out.npz")["trans"]
    np.testing.assert_allclose(found[0, [0, 2]], there[0, [0, 2]])
    np.testing.assert_allclose(found[:, [0, 2]] - found[0, [0, 2]], 2 * (there - there[0])[:, [0, 2]], atol=1e-5)
    np.testing.assert_allclose(found[:, 1], 2 * there[:, 1], atol=1e-5)


def test_a_source_at_another_rate_is_resampled(tmp_path):
    file = write_clip(tmp_path / "1_a.npz", 121, mocap_frame_rate=np.array(60, np.int32))
    motion, layout = features_of(file, "upper")
    assert len(motion) == 61
    write_beat2(tmp_path / "out.npz", motion, layout, 30.0, read_beat2_source(file))
    there, found = np.load(file), np.load(tmp_path / "out.npz")
    assert found["mocap_frame_rate"] == 30 and found["mocap_frame_rate"].dtype == np.int32
    assert angles(found["poses"], there["poses"][::2]).max() < 1e-3
    np.testing.assert_allclose(found["expressions"], there["expressions"][::2])
    slow, layout = features_of(file, "upper", fps=12.5)
    write_beat2(tmp_path / "slow.npz", slow, layout, 12.5, read_beat2_source(file))
    found = np.load(tmp_path / "slow.npz")
    assert found["mocap_frame_rate"] == 12.5 and len(found["trans"]) == len(slow) == 26
    np.testing.assert_allclose(found["trans"][5], there["trans"][24])


def test_rates_a_hair_apart_keep_every_frame_and_the_rate_of_the_source(tmp_path):
    file = write_clip(tmp_path / "1_a.npz", mocap_frame_rate=np.array(29.97))
    motion, layout = features_of(file, "upper")
    write_beat2(tmp_path / "out.npz", motion, layout, 30.0, read_beat2_source(file))
    found = np.load(tmp_path / "out.npz")
    assert found["mocap_frame_rate"] == 29.97 and found["poses"].shape == (60, 165)


@pytest.mark.parametrize("body_part", ["whole_trans", "lower", "upper"])
def test_motion_with_z_up_is_written_back_with_z_up(tmp_path, body_part):
    file = write_clip(tmp_path / "1_a.npz")
    config = DataConfig(up_axis="z")
    motion, layout = features_of(file, body_part, up_axis="z")
    write_beat2(tmp_path / "out.npz", motion, layout, 30.0, read_beat2_source(file, config))
    there, found = np.load(file), np.load(tmp_path / "out.npz")
    np.testing.assert_allclose(found["trans"], there["trans"], atol=2e-5)
    assert angles(found["poses"], there["poses"]).max() < 1e-3
    again, _ = features_of(tmp_path / "out.npz", body_part, up_axis="z")
    np.testing.assert_allclose(again, motion, atol=1e-5)


@pytest.mark.parametrize("rate", [np.array(b"60"), np.array(["60"]), np.array(60), np.array([60.0])])
def test_a_rate_that_the_source_has_wrong_is_written_right(tmp_path, rate):
    changes = {"mocap_frame_rate": None, "fps": rate, "frame_rate": np.array(120)}
    file = write_clip(tmp_path / "1_a.npz", **changes)
    config = DataConfig(fps=120.0, source_fps=120.0)
    motion, layout = features_of(file, "upper", 120.0, source_fps=120.0)
    assert len(motion) == 60
    with pytest.raises(ClipError, match="fps is 60, but frame_rate is 120"):
        read_beat2_source(file)
    write_beat2(tmp_path / "out.npz", motion, layout, 120.0, read_beat2_source(file, config))
    assert open_motion_file(tmp_path / "out.npz", DataConfig()).take("out").fps == 120
    found = np.load(tmp_path / "out.npz")
    assert found["fps"].shape == rate.shape and "mocap_frame_rate" not in found.files and len(found["poses"]) == 60


def test_without_a_source_the_rest_is_at_rest(tmp_path):
    motion, layout = features_of(write_clip(tmp_path / "1_a.npz"), "upper")
    write_beat2(tmp_path / "out.npz", motion, layout, 30.0, rest_source(len(motion), 30.0))
    found, like = np.load(tmp_path / "out.npz"), beat2_arrays()
    for key, values in like.items():
        assert found[key].shape == values.shape and found[key].dtype == values.dtype, key
    poses = found["poses"].reshape(-1, 55, 3)
    upper = [SMPLX_JOINTS.index(part.name) for part in layout]
    assert (np.delete(poses, upper, axis=1) == 0).all() and (poses[1:, upper] != 0).any()
    assert (found["trans"] == 0).all() and found["gender"] == "neutral" and found["model"] == "smplx2020"
    reader = open_motion_file(tmp_path / "out.npz", DataConfig())
    np.testing.assert_allclose(reader.read("out").motion[:, 18:24], motion[:, :6], atol=1e-6)  # spine1


def test_python_objects_of_a_source_are_left_out(tmp_path):
    file = write_clip(tmp_path / "1_a.npz", notes=np.array([{"a": 1}], object))
    source = read_beat2_source(file)
    assert source.left_out == ["notes"] and "notes" not in source.arrays and "poses" in source.arrays


@pytest.mark.parametrize(
    ("frames", "layout", "pattern"),
    [
        (
            59,
            (Channels("spine1", "rotation_6d", 0, 6),),
            "the source has 60 frames at 30 fps, but the codes have 59",
        ),
        (60, (Channels("Hips", "rotation_6d", 0, 6),), "Hips .* cannot be stored"),
        (60, (Channels("features", "feature", 0, 6),), "features .* cannot be stored"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(tmp_path, frames, layout, pattern):
    source = read_beat2_source(write_clip(tmp_path / "1_a.npz"))
    with pytest.raises(ClipError, match=pattern):
        write_beat2(tmp_path / "out.npz", np.ones((frames, 6), np.float32), layout, 30.0, source)
    assert [file.name for file in tmp_path.iterdir()] == ["1_a.npz"]


def test_matrices_are_float32(tmp_path):
    write_matrix(tmp_path / "a" / "motion.npy", np.arange(6.0).reshape(2, 3))
    found = np.load(tmp_path / "a" / "motion.npy")
    assert found.dtype == np.float32 and found.tolist() == [[0, 1, 2], [3, 4, 5]]
