import numpy as np
import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.demo import write_demo_motion
from ds_rvqvae.data.formats.readers import open_reader
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import Clip


def contents(folder) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_demo_motion(tmp_path / name, clips=4, frames=60, seed=seed)
    first, second, other = (contents(tmp_path / name) for name in "abc")
    assert first == second
    clips = [name for name in first if name.endswith(".npz")]
    assert len(clips) == 4 and all(first[name] != other[name] for name in clips)


def test_it_has_beat2s_keys_and_dtypes(demo_folder):
    with np.load(demo_folder / "smplxflame_30" / "1_beat_0_1_1.npz", allow_pickle=False) as arrays:
        found = {key: (arrays[key].dtype.str, arrays[key].shape) for key in arrays.files}
    assert found == {
        "betas": ("<f4", (300,)),
        "poses": ("<f4", (160, 165)),
        "expressions": ("<f8", (160, 100)),
        "trans": ("<f8", (160, 3)),
        "model": ("<U9", ()),
        "gender": ("<U7", ()),
        "mocap_frame_rate": ("<i4", ()),
    }


def test_the_beat2_reader_reads_every_clip_and_split(demo_folder):
    clips = list(open_reader(demo_folder, DataConfig()).clips())
    assert all(isinstance(clip, Clip) for clip in clips) and len(clips) == 6
    assert {clip.split for clip in clips} == {"train", "val", "test"}


def test_it_moves_smoothly(demo_folder):
    for file in (demo_folder / "smplxflame_30").iterdir():
        with np.load(file, allow_pickle=False) as arrays:
            poses = arrays["poses"]
        speed = np.abs(np.diff(poses, axis=0))
        assert speed.max() < 0.5  # radians per frame; the real clip reaches 0.36
        assert np.abs(np.diff(poses, n=2, axis=0)).max() < 0.15


def test_it_has_phrases_and_pauses(tmp_path):
    for file in (write_demo_motion(tmp_path / "demo", clips=4) / "smplxflame_30").iterdir():
        with np.load(file, allow_pickle=False) as arrays:
            elbow = arrays["poses"].reshape(-1, 55, 3)[:, 19, 1]
        resting = np.abs(np.diff(elbow)) < 0.001
        assert 0.03 < resting.mean() < 0.5 and np.ptp(elbow) > 0.4


def test_it_is_made_once_and_never_over_other_files(tmp_path):
    folder = write_demo_motion(tmp_path / "demo", clips=2, frames=40)
    times = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    assert write_demo_motion(folder, clips=2, frames=40) == folder
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == times
    with pytest.raises(UserError, match="something other than this demo motion"):
        write_demo_motion(folder, clips=3, frames=40)
    assert [entry.name for entry in tmp_path.iterdir() if entry.name != "cache"] == ["demo"]
