"""Motion-X: 322 columns in its published folder."""

import numpy as np
import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.readers import READERS, open_reader
from ds_rvqvae.data.formats.smpl.motionx import COLUMNS, WIDTH, MotionXReader
from ds_rvqvae.data.formats.writing import WRITERS, open_motion_file
from ds_rvqvae.data.store.prepare import prepare
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.layout import SMPLX_JOINTS, feature_layout, select_columns
from tests.data.formats.smpl.published import MOTIONX_NAMES, in_form, motionx_matrix, path, turning, write_motionx
from tests.data.formats.smpl.test_writing import write

JOINTS = [name for name in SMPLX_JOINTS if not name.endswith("_eye")]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DS_RVQVAE_CACHE", str(tmp_path / "cache"))


def test_columns_are_those_of_the_readme():
    starts = dict(zip(COLUMNS, np.cumsum([0, *COLUMNS.values()]).tolist(), strict=False))
    assert starts == {
        "root_orient": 0,
        "pose_body": 3,
        "pose_hand": 66,
        "pose_jaw": 66 + 90,
        "face_expr": 159,
        "face_shape": 209,
        "trans": 309,
        "betas": 312,
    }
    assert WIDTH == 322


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("at", [".", "motion_data", "motion_data/smplx_322"])
def test_motion_x_as_published(tmp_path, at):
    folder = write_motionx(tmp_path / "datasets")
    store = prepare(DataConfig(path=str(folder / at)), workers=1).store
    splits = dict(zip(MOTIONX_NAMES, ("train", "val", "test", "additional"), strict=True))
    assert {one.name: one.split for one in store.segments} == splits and store.fps == 30
    names = [part.name for part in store.layout]
    assert names == [*JOINTS, "translation", "expressions"] and store.layout[-1].stop == 371
    values, motion = motionx_matrix(), store.clip(MOTIONX_NAMES[0])
    vectors = turning(80, 53, 0)
    by_name = {joint: vectors[:, index] for index, joint in enumerate([*JOINTS[:22], *JOINTS[23:], "jaw"])}
    wanted = np.stack([by_name[joint] for joint in JOINTS], axis=1)
    assert np.abs(motion[:, :318] - in_form(wanted, "rows_6d").reshape(80, -1)).max() < 1e-5
    assert np.abs(motion[:, 319] - path(80, 0)[:, 1]).max() < 1e-6
    assert np.array_equal(motion[:, 321:], values[:, 159:209])
    assert np.allclose(store.mean, motion.mean(axis=0), atol=1e-5)
    report = store.report()
    assert f"{WIDTH} columns are Motion-X's, 30 fps; rvqvae.data.format features reads them raw" in report["readings"]
    passed = {one["reason"] for one in report["file_counts"][-1]["passed_over"]}
    assert ("of the face alone" in passed) == (at == ".")


def test_parts_of_motion_x(tmp_path):
    np.save(tmp_path / "a.npy", motionx_matrix())
    layout = open_reader(tmp_path, DataConfig()).take("a").layout
    widths = {"upper": 78, "hands": 180, "lower": 54, "lower_trans": 57, "whole": 312, "whole_trans": 315}
    for part, width in {**widths, "face": 50, "face_jaw": 56}.items():
        columns, own = select_columns(layout, part)
        assert len(columns) == width == own[-1].stop, part


def test_a_file_a_folder_and_raw_columns(tmp_path):
    np.save(tmp_path / "a.npy", motionx_matrix())
    np.save(tmp_path / "Mean.npy", np.zeros(322))
    for place in (tmp_path, tmp_path / "a.npy"):
        reader = open_reader(place, DataConfig())
        assert isinstance(reader, MotionXReader) and reader.clip_names() == ["a"]
        assert open_reader(place, DataConfig(format="features")).take("a").layout == feature_layout(322)
        assert open_reader(place, DataConfig(reading_version=1)).key == "features"
    assert open_motion_file(tmp_path / "a.npy", DataConfig()).key == "motionx"
    assert open_motion_file(tmp_path / "a.npy", DataConfig(), feature_layout(322)).key == "features"


def test_folders_of_other_formats_are_not_motion_x(tmp_path):
    for index in range(3):
        np.save(tmp_path / f"{index}.npy", np.zeros((20, 9), np.float32))
    np.save(tmp_path / "odd.npy", motionx_matrix())
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    assert open_reader(tmp_path, DataConfig()).key == "features"
    assert [reader for reader in READERS if reader.certainty and reader.matches(tmp_path)] == []
    with pytest.raises(UserError, match="is not of the format Motion-X"):
        open_reader(tmp_path, DataConfig(format="motionx"))


def test_another_rate_is_said(tmp_path):
    np.save(tmp_path / "a.npy", motionx_matrix())
    take = open_reader(tmp_path, DataConfig(source_fps=60)).take("a")
    assert take.fps == 60
    assert take.notes == ("Motion-X's 322 columns have 30 fps, but rvqvae.data.source_fps 60 is used",)
    assert open_reader(tmp_path, DataConfig(source_fps=29.97)).take("a").notes == ()


@pytest.mark.parametrize("up_axis", [None, "z"])
def test_motion_x_is_written_back_in_its_322_columns(tmp_path, up_axis):
    values = motionx_matrix()
    np.save(tmp_path / "a.npy", values)
    out, written = write(tmp_path / "a.npy", tmp_path / "b.npy", up_axis=up_axis)
    assert written.notes == () and written.source_fps == 30
    found = np.load(out)
    assert found.shape == values.shape and found.dtype == values.dtype
    assert np.abs(found - values).max() < 2e-5


def test_columns_that_are_not_coded_come_from_the_source(tmp_path):
    values = motionx_matrix()
    np.save(tmp_path / "a.npy", values)
    out, _ = write(tmp_path / "a.npy", tmp_path / "b.npy", body_part="upper", change=True)
    found = np.load(out)
    assert np.array_equal(found[:, 66:], values[:, 66:]) and np.array_equal(found[:, :3], values[:, :3])
    assert np.abs(found[:, 3:66] - values[:, 3:66]).max() > 0.1


def test_at_another_rate_a_note_says_how_to_read_it(tmp_path):
    np.save(tmp_path / "a.npy", motionx_matrix())
    out, written = write(tmp_path / "a.npy", tmp_path / "b.npy", fps=15.0)
    assert len(np.load(out)) == 40 and "read it with --source_fps 15" in written.notes[0]
    assert np.abs(np.load(out)[:, 209:309] - motionx_matrix()[::2, 209:309]).max() == 0


def test_without_a_source_the_shapes_are_zero(tmp_path):
    np.save(tmp_path / "a.npy", motionx_matrix())
    reader = open_motion_file(tmp_path / "a.npy", DataConfig())
    clip = reader.read("a")
    written = WRITERS["motionx"].write(tmp_path / "b.npy", clip.motion, clip.layout, 30.0, None, DataConfig())
    found = np.load(tmp_path / "b.npy")
    assert found.dtype == np.float32 and not found[:, 209:309].any() and not found[:, 312:].any()
    assert "no source file" in written.notes[0]
    again = open_motion_file(tmp_path / "b.npy", DataConfig()).read("b")
    assert np.abs(again.motion - clip.motion).max() < 1e-5
