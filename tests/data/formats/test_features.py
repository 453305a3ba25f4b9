import numpy as np
import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.features import FeatureFolderReader, HumanML3DReader, feature_weights
from ds_rvqvae.data.formats.readers import open_reader
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import Clip
from tests.data.motion import packed_arrays


def read(path, **settings):
    return {
        getattr(clip, "name", None) or clip.file: clip for clip in open_reader(path, DataConfig(**settings)).clips()
    }


def write_npy(file, frames=40, width=9, **arrays):
    """Writes a matrix, or an npz of `arrays` if given."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if arrays:
        np.savez(file, **arrays)
    else:
        np.save(file, np.random.default_rng(frames).normal(size=(frames, width)))


@pytest.mark.parametrize(("width", "fps"), [(263, 20.0), (251, 12.5)], ids=["HumanML3D", "KIT"])
def test_a_folder_in_the_form_of_humanml3d(tmp_path, width, fps):
    for name in ("000000", "M000000", "000001", "000002"):
        write_npy(tmp_path / "new_joint_vecs" / f"{name}.npy", width=width)
        np.save(tmp_path / f"{name}.npy", np.zeros((40, 22, 3)))  # joint positions are not features
    np.save(tmp_path / "Mean.npy", np.zeros(width))
    np.save(tmp_path / "Std.npy", np.ones(width))
    for split, text in {"train": "000000\nM000000\n", "val": "000001\n", "test": "000009\n"}.items():
        (tmp_path / f"{split}.txt").write_text(text)
    for path in (tmp_path, tmp_path / "new_joint_vecs"):
        reader = open_reader(path, DataConfig(fps=fps))
        assert type(reader) is HumanML3DReader and reader.key == "humanml3d"
        assert reader.clip_names() == ["000000", "000001", "000002", "000009", "M000000"]
        clips = read(path, fps=fps)
        splits = {name: clip.split for name, clip in clips.items() if isinstance(clip, Clip)}
        assert splits == {"000000": "train", "M000000": "train", "000001": "val", "000002": "additional"}
        assert clips["000000"].motion.shape == (40, width) and clips["000000"].fps == fps
        assert clips["000009.npy"].reason == "test.txt lists it, but there is no such file"
    mean, std = open_reader(tmp_path, DataConfig()).statistics()
    assert mean.shape == std.shape == (width,) and mean.dtype == np.float32


@pytest.mark.parametrize(("width", "joints"), [(263, 22), (251, 21)])
def test_weights_are_those_of_momask(width, joints):
    weights = feature_weights(width, 5)
    assert weights.dtype == np.float32 and weights.shape == (width,)
    body = slice(4, 4 + (joints - 1) * 9 + joints * 3)  # positions, rotations, velocities
    assert weights[:4].tolist() == weights[-4:].tolist() == [5] * 4 and body.stop == width - 4
    assert set(weights[body].tolist()) == {1}
    assert (feature_weights(width, 1) == 1).all()


def test_columns_of_unknown_meaning_have_no_weights():
    assert feature_weights(78, 5) is None


def test_a_folder_of_matrices_at_any_depth(tmp_path):
    data = tmp_path / "features"
    values = np.arange(360.0).reshape(40, 9)
    write_npy(data / "a.npy")
    write_npy(data / "day1" / "b.npz", motion=values, other=values, fps=np.array(30.0))
    write_npy(data / "day2" / "deep" / "c.npz", pose_features=values, names=np.array(["x"]), weight=np.ones(3))
    write_npy(data / "day2" / "deep" / "c.npy", 50)
    write_npy(data / ".hidden" / "d.npy")
    (tmp_path / "train.txt").write_text("features/a.npy\nb\n")
    clips = read(data, fps=30.0)
    assert {name: (clip.motion.shape, clip.split) for name, clip in clips.items()} == {
        "a": ((40, 9), "train"),
        "day1/b": ((40, 9), "train"),
        "day2/deep/c": ((50, 9), "val"),
        "day2/deep/c.npz": ((40, 9), "val"),
    }
    assert np.array_equal(clips["day1/b"].motion, values)
    assert type(open_reader(data, DataConfig())) is FeatureFolderReader
    assert open_reader(data, DataConfig()).file_of("day1/b") == "day1/b.npz"


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"a": np.zeros((40, 9)), "b": np.ones((40, 9))}, "or one called motion; it has a, b"),
        ({"a": np.zeros((40, 9, 2))}, "one called motion; it has none"),
        ({"motion": np.zeros((40, 9, 2))}, "the matrix has shape [40, 9, 2], not [frames, 9]"),
        ({"motion": np.zeros((40, 8))}, "the matrix has shape [40, 8], not [frames, 9]"),
        ({"motion": np.zeros((40, 9)), "fps": np.array(0)}, "fps is 0, not a frame rate"),
        (packed_arrays(width=9), "a packed npz of many clips"),
    ],
)
def test_an_npz_that_is_no_matrix_is_left_out_with_its_reason(tmp_path, arrays, reason):
    write_npy(tmp_path / "a.npy")
    write_npy(tmp_path / "b.npy")
    write_npy(tmp_path / "bad.npz", **arrays)
    clips = read(tmp_path)
    assert set(clips) == {"a", "b", "bad.npz"} and reason in clips["bad.npz"].reason


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_one_matrix_by_itself(tmp_path, name):
    values = np.ones((40, 9))
    np.save(tmp_path / name, values) if name == "a.npy" else np.savez(tmp_path / name, values)
    (clip,) = open_reader(tmp_path / name, DataConfig()).clips()
    assert clip.name == "a" and clip.motion.shape == (40, 9) and clip.split is None


def test_damaged_files_before_the_good_ones_do_not_hide_them(tmp_path):
    for index in range(40):
        (tmp_path / f"0{index}.npy").write_bytes(b"damaged")
        (tmp_path / f"1{index}.npz").write_bytes(b"damaged")
    write_npy(tmp_path / "9.npy")
    clips = read(tmp_path)
    assert len(clips) == 81 and isinstance(clips["9"], Clip)


def test_names_in_a_list_cannot_lead_out_of_the_folder(tmp_path):
    write_npy(tmp_path / "secret.npy")
    write_npy(tmp_path / "data" / "a.npy")
    (tmp_path / "data" / "train.txt").write_text("a\n../secret\n")
    clips = read(tmp_path / "data")
    assert set(clips) == {"a", "../secret.npy"} and "leads out of the folder" in clips["../secret.npy"].reason


def test_speakers_are_refused(tmp_path):
    write_npy(tmp_path / "a.npy")
    with pytest.raises(UserError, match="only a BEAT2 folder has speakers"):
        open_reader(tmp_path, DataConfig(speakers=[1]))


def reader_of(path, **settings):
    return open_reader(path, DataConfig(**settings))


@pytest.mark.parametrize(("width", "fps"), [(263, 20.0), (251, 12.5), (272, 30.0), (296, 30.0)])
def test_what_is_known_of_columns_tells_the_rate_also_of_one_file(tmp_path, width, fps):
    write_npy(tmp_path / "a.npy", width=width)
    for path in (tmp_path, tmp_path / "a.npy"):
        reader = reader_of(path, fps=25.0)
        (clip,) = reader.clips()
        assert reader.fps == clip.fps == fps and len(clip.motion) == 40
        (note,) = reader.notes
        assert note.startswith(f"{fps:g} fps is ") and f"by the {width} columns" in note
        assert "never resampled, rvqvae.data.fps 25 is not used" in note
        assert reader_of(path, fps=fps).notes == ()


def test_matrices_without_a_rate_take_that_of_the_settings_which_is_said(tmp_path):
    write_npy(tmp_path / "a.npy")
    reader = reader_of(tmp_path, fps=24.0)
    assert reader.fps == 24 and len(reader.read("a").motion) == 40
    (note,) = reader.notes
    assert note.startswith("no file gives its frame rate: 24 fps (rvqvae.data.fps) is assumed; ")
    assert note.endswith("--source_fps N (rvqvae.data.source_fps) sets another")
    reader = reader_of(tmp_path, fps=24.0, source_fps=60.0)
    assert reader.fps == 60 and len(reader.read("a").motion) == 40 and reader.notes == ()


@pytest.mark.parametrize("rate", [{"fps": 60.0}, {"frame_rate": b"60"}, {"mocap_framerate": [59.94]}, {"fps": [[60]]}])
def test_an_npz_keeps_the_rate_that_it_says(tmp_path, rate):
    values = np.random.default_rng(0).normal(size=(40, 9))
    for name in "ab":
        np.savez(tmp_path / f"{name}.npz", motion=values, **{key: np.array(value) for key, value in rate.items()})
    reader = reader_of(tmp_path, fps=30.0)
    assert reader.fps == pytest.approx(60, rel=2e-3)
    clip = reader.read("a")
    assert clip.fps == reader.fps and np.array_equal(clip.motion, values.astype(np.float32))
    assert "fps is the files' own: feature matrices are never resampled" in reader.notes[0]
    assert reader_of(tmp_path, fps=60.0).notes == ()


def test_files_of_another_rate_than_most_are_left_out(tmp_path):
    values = np.zeros((40, 9))
    for name, fps in {"a": 60, "b": 60.03, "c": 60, "d": 120}.items():
        write_npy(tmp_path / f"{name}.npz", motion=values, fps=np.array(fps))
    write_npy(tmp_path / "e.npy")
    write_npy(tmp_path / "f.npz", motion=values, fps=np.array(60), frame_rate=np.array(30))
    clips = read(tmp_path)
    assert {name for name, clip in clips.items() if isinstance(clip, Clip)} == {"a", "b", "c"}
    every = "--source_fps N (rvqvae.data.source_fps)"
    assert clips["d.npz"].reason == f"120 fps, but most of the files have 60 fps; {every} sets the rate of all"
    assert clips["e.npy"].reason.startswith("the file gives no frame rate, so 30 fps is assumed, but most of the files")
    assert clips["f.npz"].reason == f"fps is 60, but frame_rate is 30; {every} sets the frame rate"
    notes = [reader_of(tmp_path, source_fps=60.0).take(name).notes for name in "abcdef"]
    assert notes == [(), (), (), ("the file gives 120 fps, but rvqvae.data.source_fps 60 is used",), (), ()]
    clips = read(tmp_path, source_fps=50.0)
    assert all(isinstance(clip, Clip) and clip.fps == 50 and len(clip.motion) == 40 for clip in clips.values())


def test_files_that_say_another_rate_than_most_which_say_none_are_left_out(tmp_path):
    write_npy(tmp_path / "a.npz", motion=np.zeros((40, 9)), fps=np.array(60))
    for name in "bc":
        write_npy(tmp_path / f"{name}.npy")
    (note,) = reader_of(tmp_path).notes
    assert note.startswith("most files do not give their frame rate: 30 fps (rvqvae.data.fps) is assumed; ")


@pytest.mark.parametrize("fps", [1e-300, 0.3, 2e4])
def test_a_rate_that_no_motion_has_is_refused(tmp_path, fps):
    write_npy(tmp_path / "a.npz", motion=np.zeros((40, 9)), fps=np.array(fps))
    assert "is not a frame rate of motion" in read(tmp_path)["a.npz"].reason


def test_version_1_resamples_as_before(tmp_path):
    values = np.arange(360.0).reshape(40, 9)
    write_npy(tmp_path / "a.npz", motion=values, fps=np.array(60.0))
    reader = reader_of(tmp_path, fps=30.0, reading_version=1)
    assert reader.fps == 30 and np.array_equal(reader.read("a").motion, values[::2])
    (note,) = reader.notes
    assert note.startswith("read as versions up to 0.2 did: at 30 fps (rvqvae.data.fps), but the files")
    write_npy(tmp_path / "263" / "000001.npy", width=263)
    assert reader_of(tmp_path / "263", fps=30.0, reading_version=1).read("000001").fps == 30
