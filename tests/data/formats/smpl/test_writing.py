"""npz files of SMPL's joints written back in the form of their source."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.writing import WRITERS, open_motion_file
from ds_rvqvae.motion.clip import ClipError
from ds_rvqvae.motion.layout import SMPLX_JOINTS, Channels, joint_layout, select_columns
from tests.data.formats.smpl.published import aist_arrays, save, smpl_arrays, split_arrays


def write(file, out, fps=30.0, body_part=None, change=False, source=True, **settings):
    """Reads a file, writes its features with the file as source, and returns the new file and what the writer said."""
    config = DataConfig(fps=fps, **settings)
    reader = open_motion_file(file, config)
    clip = reader.read(reader.clip_names()[0])
    motion, layout = clip.motion, clip.layout
    if body_part:
        columns, layout = select_columns(layout, body_part)
        motion = motion[:, columns]
    motion = np.roll(motion, 20, axis=0) if change else motion
    return out, WRITERS[reader.key].write(out, motion, layout, fps, file if source else None, config)


FORMS = {
    "smpl": smpl_arrays,
    "aist": aist_arrays,
    **{
        f"{names}_{form}_{'flat' if flat else 'deep'}": (
            lambda form=form, names=names, flat=flat: split_arrays(form=form, names=names, flat=flat)
        )
        for names in ("smplx", "amass")
        for form in ("axis_angle", "matrix", "rows_6d", "columns_6d")
        for flat in (True, False)
    },
}


@pytest.mark.parametrize("up_axis", [None, "z"])
@pytest.mark.parametrize("name", FORMS)
def test_what_is_written_is_the_source_in_its_own_form(tmp_path, name, up_axis):
    arrays = {**FORMS[name](), "labels": np.array(["walk", "run"])}
    rate = 60.0 if name in ("smpl", "aist") else 30.0
    file = save(tmp_path / "a.npz", **arrays)
    out, written = write(file, tmp_path / "b.npz", rate, up_axis=up_axis)
    found = np.load(out)
    assert found.files == list(arrays) and written.source_fps == rate and written.notes == ()
    for key, values in arrays.items():
        assert found[key].shape == values.shape and found[key].dtype == values.dtype, key
        if values.dtype.kind == "f":
            bound = 2e-5 * (100 if key == "smpl_trans" else 1)
            assert np.abs(found[key] - values).max() < bound, key
        else:
            assert np.array_equal(found[key], values), key


@pytest.mark.parametrize("name", ["smpl", "aist", "smplx_matrix_deep", "amass_rows_6d_flat"])
def test_joints_without_codes_are_exactly_those_of_the_source(tmp_path, name):
    arrays = FORMS[name]()
    rate = 60.0 if name in ("smpl", "aist") else 30.0
    file = save(tmp_path / "a.npz", **arrays)
    out, _ = write(file, tmp_path / "b.npz", rate, "lower", change=True)
    found = np.load(out)
    key = next(key for key in ("poses", "smpl_poses", "body_pose", "pose_body") if key in arrays)
    first = 0 if "poses" in key else 1
    there = arrays[key].reshape(len(arrays[key]), (24 if first == 0 else 21), -1)
    now = found[key].reshape(there.shape)
    upper = [joint - first for joint in (3, 6, 9, *range(12, 22))]
    lower = [joint - first for joint in (1, 2, 4, 5, 7, 8)]
    assert np.array_equal(now[:, upper], there[:, upper])
    assert np.abs(now[:, lower] - there[:, lower]).max() > 0.01
    for other in ("trans", "transl", "smpl_trans", "left_hand_pose", "pose_hand", "betas"):
        if other in arrays:
            assert np.array_equal(found[other], arrays[other])


def test_keys_beside_poses_are_written_with_them(tmp_path):
    arrays = split_arrays(names="amass")
    parts = ("root_orient", "pose_body", "pose_jaw", "pose_eye", "pose_hand")
    arrays["poses"] = np.concatenate([arrays[key] for key in parts], axis=1)
    out, _ = write(save(tmp_path / "a.npz", **arrays), tmp_path / "b.npz", body_part="whole_trans", change=True)
    found = np.load(out)
    assert np.array_equal(np.concatenate([found[key] for key in parts], axis=1), found["poses"])
    assert np.abs(found["pose_body"] - arrays["pose_body"]).max() > 0.01
    assert open_motion_file(out, DataConfig()).take("b").notes == ()


@pytest.mark.parametrize("name", ["smpl", "aist", "smplx_columns_6d_deep"])
def test_a_source_at_another_rate_is_resampled_in_its_form(tmp_path, name):
    arrays = {**FORMS[name](), "markers": np.zeros((len(next(iter(FORMS[name]().values()))), 4))}
    frames = 120 if name == "aist" else 80
    arrays["markers"] = np.arange(4.0 * frames).reshape(frames, 4)
    file = save(tmp_path / "a.npz", **arrays)
    out, written = write(file, tmp_path / "b.npz", 20.0)
    reader = open_motion_file(out, DataConfig(fps=20.0))
    assert reader.take("b").fps == 20
    before = open_motion_file(file, DataConfig(fps=20.0)).read("a")
    assert np.abs(reader.read("b").motion - before.motion).max() < 1e-5
    found = np.load(out)
    new = len(before.motion)
    step = 3 if name != "smplx_columns_6d_deep" else 1.5
    rows = np.round(np.arange(new) * step).astype(int)
    assert np.array_equal(found["markers"], arrays["markers"][rows.clip(0, frames - 1)])
    assert written.notes == (
        "the source has other arrays of each frame; at the new rate they are those of the nearest frames",
    )
    assert "markers" in written.details[0]
    for key in arrays:
        assert found[key].shape[1:] == arrays[key].shape[1:], key


@pytest.mark.parametrize(
    ("joints", "model", "columns"),
    [
        (SMPLX_JOINTS[:22], "SMPL-H's 52", 156),
        ((*SMPLX_JOINTS[:22], "left_hand", "right_hand"), "SMPL's 24", 72),
        (SMPLX_JOINTS, "SMPL-X's 55", 165),
    ],
)
def test_without_a_source_amass_keys_are_written(tmp_path, joints, model, columns):
    layout = joint_layout(joints, "translation")
    rng = np.random.default_rng(0)
    matrices = Rotation.from_rotvec(rng.normal(size=(40 * len(joints), 3))).as_matrix()
    motion = np.zeros((40, layout[-1].stop), np.float32)
    motion[:, :-3] = matrices[:, :2].reshape(40, -1)
    motion[:, -2] = 0.9
    out = tmp_path / "a.npz"
    written = WRITERS["smpl"].write(out, motion, layout, 25.0, None, DataConfig())
    assert written.notes[0] == f"written with {model} joints and y up"
    found = np.load(out)
    assert found.files == ["trans", "gender", "mocap_frame_rate", "betas", "poses"]
    assert found["poses"].shape == (40, columns) and found["mocap_frame_rate"] == 25 and found["gender"] == "neutral"
    clip = open_motion_file(out, DataConfig(fps=25.0)).read("a")
    chosen = [part.name for part in clip.layout]
    for part in layout:
        there = clip.layout[chosen.index(part.name)]
        assert np.abs(clip.motion[:, there.start : there.stop] - motion[:, part.start : part.stop]).max() < 1e-5


@pytest.mark.parametrize(("key", "suffix"), [("smpl", ".npz"), ("motionx", ".npy")])
@pytest.mark.parametrize("part", ["upper", "lower_trans"])
def test_without_a_source_z_points_up_as_in_the_files_that_were_encoded(tmp_path, key, suffix, part):
    config = DataConfig(up_axis="z")
    clip = open_motion_file(save(tmp_path / "a.npz", **split_arrays()), DataConfig()).read("a")
    columns, layout = select_columns(clip.layout, part)
    out = tmp_path / f"b{suffix}"
    WRITERS[key].write(out, clip.motion[:, columns], layout, 30.0, None, config)
    again = open_motion_file(out, config).read("b")
    chosen, _ = select_columns(again.layout, part)
    assert np.abs(again.motion[:, chosen] - clip.motion[:, columns]).max() < 1e-5
    if part == "upper":
        assert np.allclose(again.motion[:, :6], [1, 0, 0, 0, 1, 0], atol=1e-6)


@pytest.mark.parametrize(
    "channels", [Channels("left_index1", "rotation_6d", 0, 6), Channels("expressions", "expression", 0, 6)]
)
def test_columns_that_the_source_does_not_have_are_refused(tmp_path, channels):
    file = save(tmp_path / "a.npz", **smpl_arrays())
    with pytest.raises(ClipError, match=f"{channels.name} .* cannot be stored in an npz of SMPL's joints"):
        WRITERS["smpl"].write(
            tmp_path / "b.npz", np.ones((80, 6), np.float32), (channels,), 60.0, file, DataConfig(fps=60.0)
        )
    assert not (tmp_path / "b.npz").exists()
