"""SMPL with 24 joints, split keys, matrices, 6D, and AIST++."""

import itertools
import json

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.readers import open_reader
from ds_rvqvae.data.formats.smpl.fields import find_fields
from ds_rvqvae.data.store.prepare import prepare
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import ClipError, LeftOut
from ds_rvqvae.motion.layout import (
    SMPL_JOINTS,
    SMPLX_JOINTS,
    SMPLX_PARENTS,
    joint_layout,
    select_columns,
)
from ds_rvqvae.motion.skeleton import builtin_skeleton, joint_places
from tests.data.formats.smpl.published import (
    AIST_NAMES,
    aist_arrays,
    in_form,
    path,
    save,
    smpl_arrays,
    split_arrays,
    turning,
    write_aist,
)

FORMS = ("axis_angle", "matrix", "rows_6d", "columns_6d")


def rows_of(vectors):
    """Converts axis-angle `[frames, joints, 3]` to 6D `[frames, 6 * joints]` by scipy."""
    return in_form(vectors, "rows_6d").reshape(len(vectors), -1)


def take_of(file, **settings):
    return open_reader(file, DataConfig(**settings)).take(file.stem)


def test_smpl_with_24_joints(tmp_path):
    file = save(tmp_path / "a.npz", **smpl_arrays())
    take = take_of(file)
    assert take.layout == joint_layout(SMPL_JOINTS, "translation") and take.fps == 60 and take.notes == ()
    assert np.abs(take.motion[:, :144] - rows_of(turning(80, 24, 0))).max() < 1e-12
    assert np.array_equal(take.motion[:, 144:], path(80, 0))
    clip = open_reader(file, DataConfig()).read("a")
    assert clip.fps == 30 and clip.motion.shape == (40, 147)


@pytest.mark.parametrize(("part", "columns"), [("whole", 144), ("whole_trans", 147)])
def test_whole_of_smpl_is_its_24_joints(part, columns):
    chosen, own = select_columns(joint_layout(SMPL_JOINTS, "translation"), part)
    assert chosen.tolist() == list(range(columns)) and own[23].name == "right_hand"


@pytest.mark.parametrize(("part", "columns"), [("upper", 78), ("lower", 54), ("lower_trans", 57)])
def test_parts_of_smpl_are_those_that_its_joints_have(part, columns):
    layout = joint_layout(SMPL_JOINTS, "translation")
    chosen, own = select_columns(layout, part)
    assert len(chosen) == columns and chosen.tolist() == select_columns(
        joint_layout(SMPLX_JOINTS, "translation"), part
    )[0].tolist()[: 6 * (columns // 6)] + [144, 145, 146] * (columns % 6 != 0)
    assert own[-1].stop == columns


@pytest.mark.parametrize(("part", "needs"), [("hands", "left_index1"), ("face", "expressions"), ("face_jaw", "jaw")])
def test_parts_that_smpl_does_not_have_are_refused(part, needs):
    has = "they have the parts upper, lower, lower_trans, whole, whole_trans$"
    with pytest.raises(UserError, match=f"{part} needs {needs}, .* {has}"):
        select_columns(joint_layout(SMPL_JOINTS, "translation"), part)


@pytest.mark.parametrize("names", ["smplx", "amass"])
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_split_keys_in_every_form_are_the_same_motion(tmp_path, form, flat, names):
    file = save(tmp_path / "a.npz", **split_arrays(form=form, flat=flat, names=names))
    take = take_of(file)
    assert take.layout == joint_layout(SMPLX_JOINTS, "translation") and take.fps == 30
    assert np.abs(take.motion[:, :330] - rows_of(turning(80, 55, 0))).max() < 1e-6
    assert np.abs(take.motion[:, 330:] - path(80, 0)).max() < 1e-6
    said = {
        "axis_angle": "",
        "matrix": "rotation matrices, by the width",
        "rows_6d": "the first two rows of rotation matrices, one after the other, as pytorch3d writes them (assumed)",
        "columns_6d": "the first two columns of rotation matrices, side by side (3 x 2, row by row), by the width",
    }[form]
    assert len(take.notes) == (form != "axis_angle") and said in " ".join(take.notes)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("joints", "key"), [(24, "poses"), (52, "poses"), (22, "poses"), (55, "poses")])
def test_poses_in_every_form(tmp_path, form, joints, key):
    vectors = turning(40, joints, 3)
    for shape in ((40, -1), (40, joints, -1)):
        values = in_form(vectors, form).reshape(shape)
        take = take_of(save(tmp_path / "a.npz", **{key: values, "trans": path(40, 3), "fps": np.array(30)}))
        assert len(take.layout) == joints + 1
        assert np.abs(take.motion[:, :-3] - rows_of(vectors)).max() < 1e-12


def test_a_body_without_hands_and_face_and_one_of_smpl(tmp_path):
    arrays = split_arrays()
    body = {key: arrays[key] for key in ("global_orient", "body_pose", "transl", "fps")}
    take = take_of(save(tmp_path / "a.npz", **body))
    assert take.layout == joint_layout(SMPLX_JOINTS[:22], "translation")
    hands = {**body, "body_pose": np.concatenate([body["body_pose"], np.full((80, 6), 0.1, np.float32)], axis=1)}
    take = take_of(save(tmp_path / "b.npz", **hands))
    assert take.layout == joint_layout(SMPL_JOINTS, "translation")
    assert take.motion[:, 6 * 22 : 6 * 24].std() > 0
    with pytest.raises(
        ClipError, match="SMPL's 23 joints with one per hand, and left_hand_pose is of SMPL-X or SMPL-H"
    ):
        take_of(save(tmp_path / "c.npz", **{**hands, "left_hand_pose": arrays["left_hand_pose"]}))


def test_no_two_forms_of_a_key_have_the_same_shape():
    shapes = []
    for counts in ((22, 24, 52, 55), (21, 23), (1,), (2,), (15,), (30,)):
        found = [
            shape
            for count in counts
            for width in (3, 6, 9)
            for shape in {(count * width,), (count, width)} | ({(count, 3, 3)} if width == 9 else set())
        ]
        assert len(found) == len(set(found)), counts
        shapes.append(found)
    assert (3, 3) not in itertools.chain(*shapes)  # a root's matrices without an axis for the joint


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"left_hand_pose": np.zeros((80, 6))}, "left_hand_pose has 6 columns: the hands are PCA components"),
        ({"left_hand_pose": np.zeros((80, 12))}, "left_hand_pose has 12 columns: the hands are PCA components"),
        ({"right_hand_pose": np.zeros((80, 24))}, "right_hand_pose has 24 columns: the hands are PCA components"),
        ({"use_pca": np.array(True)}, "use_pca is set: the hands are PCA components"),
        ({"pose_hand": np.zeros((80, 90))}, "pose_hand both hold left_index1"),
        ({"body_pose": np.zeros((80, 66))}, r"body_pose has shape \[80, 66\], not \[frames, 63 or 69\]"),
        ({"body_pose": np.zeros((79, 63))}, "80, 79, .* frames; they must be equal"),
        ({"global_orient": np.ones((80, 9))}, "global_orient has matrices that are not rotations: joint 0 in frame 0"),
        ({"global_orient": np.tile(-np.eye(3), (80, 1, 1))}, "matrices that are not rotations"),
        ({"global_orient": np.ones((80, 6))}, "6D that are neither rows nor columns of rotation matrices: joint 0"),
        ({"trans": np.zeros((80, 3))}, "trans and transl are both there, and differ"),
        ({"transl": None}, "no key trans or transl"),
        ({"transl": np.zeros((80, 2))}, r"transl has shape \[80, 2\], not \[frames, 3\]"),
        ({"fps": None}, "no key mocap_frame_rate, .*; give --source_fps N"),
        ({"jaw_pose": np.full((80, 3), "a")}, "jaw_pose holds <U1, not numbers"),
    ],
)
def test_what_is_not_clear_in_split_keys_is_refused(tmp_path, changes, reason):
    arrays = {key: values for key, values in {**split_arrays(), **changes}.items() if values is not None}
    with pytest.raises(ClipError, match=reason) as refusal:
        take_of(save(tmp_path / "a.npz", **arrays))
    assert "\n" not in str(refusal.value)


def test_6d_that_both_orders_fit_is_refused():
    # A turn about x by half a turn: the same vectors are orthonormal as rows and as columns.
    value = np.array([1.0, 0, 0, 0, 0, 1])
    assert abs(value[0::2] @ value[1::2]) < 1e-9
    arrays = {
        "root_orient": np.tile(value, (20, 1)),
        "pose_body": np.zeros((20, 63)),
        "trans": np.zeros((20, 3)),
    }
    with pytest.raises(ClipError, match="root_orient: its 6D rotations can be two rows or two columns"):
        find_fields(arrays)


def test_one_bad_matrix_is_named(tmp_path):
    arrays = split_arrays(form="matrix", flat=False)
    arrays["body_pose"][7, 4] *= 1.5
    with pytest.raises(ClipError, match="body_pose has matrices that are not rotations: joint 4 in frame 7"):
        take_of(save(tmp_path / "a.npz", **arrays))


def test_frames_without_numbers_are_dropouts_and_nan_is_left_to_the_rules(tmp_path):
    arrays = split_arrays(form="matrix", flat=False)
    for key, values in arrays.items():
        if key not in ("fps", "betas"):
            values[5] = 0
    arrays["global_orient"][9, 0, 0, 0] = np.nan
    take = take_of(save(tmp_path / "a.npz", **arrays))
    assert np.flatnonzero(take.empty).tolist() == [5]
    assert np.flatnonzero(~np.isfinite(take.motion).all(axis=1)).tolist() == [9]
    assert take.motion[5, :6].tolist() == [1, 0, 0, 0, 1, 0]
    arrays["body_pose"][11, 3] = 0  # one joint is no dropout
    with pytest.raises(ClipError, match="not rotations: joint 3 in frame 11"):
        take_of(save(tmp_path / "a.npz", **arrays))


def test_poses_beside_split_keys_are_read_and_a_difference_is_said(tmp_path):
    arrays = split_arrays(names="amass")
    parts = ("root_orient", "pose_body", "pose_jaw", "pose_eye", "pose_hand")
    poses = np.concatenate([arrays[key] for key in parts], axis=1)
    file = save(tmp_path / "a.npz", **arrays, poses=poses)
    assert take_of(file).notes == ()
    reader = open_reader(file, DataConfig())
    reader.check(["a"])
    assert f"poses is read; {', '.join(key for key in arrays if key in parts)} hold its joints again" in reader.readings
    arrays["pose_body"] = arrays["pose_body"] + np.float32(0.1)
    take = take_of(save(tmp_path / "a.npz", **arrays, poses=poses))
    assert take.notes == ("poses is read, and pose_body beside it differ",)
    assert np.abs(take.motion[:, :330] - rows_of(turning(80, 55, 0))).max() < 1e-6


def test_z_up_is_turned_in_split_keys(tmp_path):
    arrays = split_arrays(form="matrix")
    file = save(tmp_path / "a.npz", **arrays)
    take, upright = take_of(file, up_axis="z"), Rotation.from_euler("x", -90, degrees=True).as_matrix()
    assert np.abs(take.motion[:, 330:] - arrays["transl"] @ upright.T).max() < 1e-6
    root = upright @ arrays["global_orient"].reshape(80, 3, 3)
    assert np.abs(take.motion[:, :6] - root[:, :2].reshape(80, 6)).max() < 1e-6


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DS_RVQVAE_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(("kind", "clips"), [("crossmodal", (0, 1, 2)), ("pose", (2, 0, 1))])
@pytest.mark.parametrize("at", [".", "motions"])
def test_aist_as_published_but_for_the_pickles(tmp_path, kind, clips, at):
    folder = write_aist(tmp_path / "aist") / at
    store = prepare(DataConfig(path=str(folder), split_version=kind), workers=1).store
    wanted = {AIST_NAMES[clip]: split for clip, split in zip(clips, ("train", "val", "test"), strict=True)}
    assert {one.name: one.split for one in store.segments} == {**wanted, AIST_NAMES[3]: "additional"}
    assert store.layout == joint_layout(SMPL_JOINTS, "translation") and store.fps == 30
    motion = store.clip(AIST_NAMES[clips[0]])
    assert np.abs(motion[:, :144] - rows_of(turning(120, 24, clips[0]))[::2]).max() < 1e-6
    assert np.abs(motion[:, 145] - path(120, clips[0])[::2, 1]).max() < 1e-6
    assert np.allclose(store.mean[:144], motion[:, :144].mean(axis=0), atol=1e-6)
    report = store.report()
    assert report["frame_rates"][0]["fps"] == 60
    notes = " ".join(report["notes"])
    assert "AIST++'s 60 fps is assumed; --source_fps N" in notes and "count as additional" in notes
    assert "smpl_trans is divided by smpl_scaling, as AIST++'s own code does" in report["readings"]
    reasons = {one["reason"] for one in report["file_counts"][-1]["passed_over"]}
    assert reasons >= {"ignore_list.txt names it"} and ("not in motions/" in reasons) == (at == ".")


@pytest.mark.usefixtures("cache")
def test_of_two_kinds_of_aist_lists_one_has_to_be_chosen(tmp_path):
    folder = write_aist(tmp_path / "aist")
    with pytest.raises(UserError, match="several kinds of split lists: crossmodal, pose; --split_version NAME"):
        open_reader(folder, DataConfig())
    with pytest.raises(UserError, match="split_version text is none of the split lists: crossmodal, pose"):
        open_reader(folder, DataConfig(split_version="text"))
    for file in (folder / "splits").glob("pose_*"):
        file.write_text((folder / "splits" / file.name.replace("pose", "crossmodal")).read_text())
    assert open_reader(folder, DataConfig()).take(AIST_NAMES[0]).split == "train"
    (folder / "motions" / f"{AIST_NAMES[1]}.npz").unlink()
    (clip,) = [one for one in open_reader(folder, DataConfig()).clips() if isinstance(one, LeftOut)]
    assert clip == (f"{AIST_NAMES[1]}.npz", "crossmodal_val.txt lists it, but there is no such file")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"smpl_scaling": None}, "no key smpl_scaling, which smpl_trans must be divided by"),
        ({"smpl_scaling": np.zeros(1)}, r"smpl_scaling is \[0.\], not one number above 0"),
        ({"smpl_scaling": np.ones(2)}, "not one number above 0"),
        ({"smpl_trans": None}, "no key smpl_trans, which files with smpl_poses have"),
    ],
)
def test_what_aist_files_lack_is_told(tmp_path, changes, reason):
    arrays = {key: values for key, values in {**aist_arrays(), **changes}.items() if values is not None}
    with pytest.raises(ClipError, match=reason):
        take_of(save(tmp_path / "a.npz", **arrays))


def test_a_rate_in_an_aist_file_goes_before_its_60(tmp_path):
    assert take_of(save(tmp_path / "a.npz", **aist_arrays(), fps=np.array(30))).fps == 30
    take = take_of(save(tmp_path / "b.npz", **aist_arrays()), source_fps=50)
    assert take.fps == 50 and take.notes == ()


def own_skeleton(scale=1.1, joints=SMPLX_JOINTS[:24]):
    figure = builtin_skeleton()
    count = len(joints)
    return {
        "joint_names": list(joints),
        "parents": list(SMPLX_PARENTS[:count]),
        "offsets": (scale * figure.offsets[:count]).tolist(),
    }


def test_a_skeleton_of_the_users_own_becomes_that_of_the_clips(tmp_path):
    file = save(tmp_path / "a.npz", **smpl_arrays())
    skeleton = own_skeleton(joints=SMPLX_JOINTS[:22])
    skeleton["joint_names"] += ["left_hand", "right_hand"]
    skeleton["parents"] += [20, 21]
    skeleton["offsets"] += [[0.09, 0, 0], [-0.09, 0, 0]]
    (tmp_path / "bones.json").write_text(json.dumps(skeleton))
    reader = open_reader(file, DataConfig(skeleton=str(tmp_path / "bones.json")))
    assert reader.take("a").skeleton == skeleton
    reader.check(["a"])
    assert reader.readings == ("joints' positions: by the bone lengths of rvqvae.data.skeleton",)
    plain = open_reader(file, DataConfig())
    plain.check(["a"])
    assert plain.take("a").skeleton is None and "built-in figure of 1.75 m" in plain.readings[0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"joint_names": ["Hips", *SMPLX_JOINTS[1:24]]}, "no joint is called pelvis; SMPL's are pelvis, left_hip"),
        ({"parents": [*SMPLX_PARENTS[:5], 1, *SMPLX_PARENTS[6:24]]}, "right_knee has another parent than SMPL's right"),
        ({"offsets": [[0, 0, 50]] * 24}, "use metres"),
    ],
)
def test_another_skeleton_than_smpls_is_refused(tmp_path, changes, reason):
    file = save(tmp_path / "a.npz", **smpl_arrays())
    with pytest.raises(UserError, match=f"rvqvae.data.skeleton: .*{reason}"):
        open_reader(file, DataConfig(skeleton={**own_skeleton(), **changes}))


def test_the_built_in_figure_moves_with_smpls_joints_and_leaves_out_its_hands(tmp_path):
    take = take_of(save(tmp_path / "a.npz", **smpl_arrays()))
    skeleton = builtin_skeleton()
    places = joint_places(take.motion, take.layout[:-1], skeleton)
    body = joint_places(take.motion, take.layout[:22], skeleton)
    assert places is not None and body is not None and np.array_equal(places, body)
    assert np.ptp(places[:, skeleton.joint_names.index("left_wrist")], axis=0).max() > 0.01
