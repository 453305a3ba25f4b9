import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.readers import open_reader
from ds_rvqvae.data.formats.smpl.beat2 import Beat2Reader
from ds_rvqvae.data.formats.smpl.forms import write_rotation_6d
from ds_rvqvae.data.formats.smpl.poses import SmplReader
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import ClipError
from ds_rvqvae.motion.layout import SMPLH_JOINTS, SMPLX_JOINTS, joint_layout, select_columns
from tests.data.motion import beat2_arrays, write_beat2


def write_smpl(file, joints=52, frames=240, **changes):
    """Writes one clip with AMASS's keys and dtypes; a change to None drops the key."""
    rng = np.random.default_rng(joints)
    content = {
        "trans": np.array([0.1, -0.2, 0.9]) + np.cumsum(rng.normal(size=(frames, 3)) * 0.002, axis=0),
        "gender": np.array("female"),
        "mocap_framerate": np.array(120.00004577),
        "betas": np.zeros(16),
        "dmpls": np.zeros((frames, 8)),
        "poses": np.cumsum(rng.normal(size=(frames, 3 * joints)) * 0.01, axis=0),
        **changes,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **{key: values for key, values in content.items() if values is not None})
    return file


def by_scipy(axis_angle):
    """Converts `[frames, 3 * joints]` to 6D."""
    matrices = Rotation.from_rotvec(axis_angle.reshape(-1, 3).astype(np.float64)).as_matrix()
    return matrices[:, :2].reshape(len(axis_angle), -1)


def by_us(axis_angle):
    out = np.full((len(axis_angle), axis_angle.shape[1] * 2 + 3), 7.0)
    write_rotation_6d(axis_angle, out[:, :-3])
    assert (out[:, -3:] == 7).all()
    return out[:, :-3]


def test_an_smplh_clip_of_amass(tmp_path):
    file = write_smpl(tmp_path / "walk_poses.npz")
    source = np.load(file)
    (clip,) = open_reader(file, DataConfig()).clips()
    assert clip.layout == joint_layout(SMPLH_JOINTS, "translation") and clip.motion.shape == (60, 315)
    assert clip.fps == 30 and clip.split is None
    assert np.allclose(clip.motion[:, :312], by_scipy(source["poses"][::4]), atol=1e-6)
    x, y, z = clip.motion[:, 312:].T
    places = source["trans"][::4]
    assert np.allclose(np.cumsum(x), places[:, 0] - places[0, 0], atol=1e-6)
    assert np.allclose(np.cumsum(z), places[:, 2] - places[0, 2], atol=1e-6)
    assert np.allclose(y, places[:, 1], atol=1e-6)


@pytest.mark.parametrize(
    ("part", "joints", "has_translation"),
    [
        ("hands", range(22, 52), False),
        ("whole", range(52), False),
        ("whole_trans", range(52), True),
        ("upper", [3, 6, 9, *range(12, 22)], False),
        ("lower", [0, 1, 2, 4, 5, 7, 8, 10, 11], False),
        ("lower_trans", [0, 1, 2, 4, 5, 7, 8, 10, 11], True),
    ],
)
def test_body_parts_of_smplh_are_those_of_its_joint_table(part, joints, has_translation):
    columns, _ = select_columns(joint_layout(SMPLH_JOINTS, "translation"), part)
    expected = [6 * joint + k for joint in joints for k in range(6)] + [312, 313, 314] * has_translation
    assert columns.tolist() == expected


def test_smplh_has_no_face():
    with pytest.raises(UserError, match="face needs expressions"):
        select_columns(joint_layout(SMPLH_JOINTS, "translation"), "face")


VECTORS = arrays(np.float64, (5, 6), elements=st.floats(-4, 4))


@settings(max_examples=300, deadline=None)
@given(vectors=VECTORS, length=st.sampled_from([None, 0.0, 1e-300, 1e-160, 1e-9, np.pi, np.nextafter(np.pi, 4), 6.5]))
def test_rotations_are_scipys(vectors, length):
    if length is not None:  # every vector that has a direction, scaled to this angle
        each = vectors.reshape(-1, 3)
        norms = np.linalg.norm(each, axis=1, keepdims=True)
        vectors = np.where(norms > 1e-3, each / np.maximum(norms, 1e-3) * length, 0).reshape(5, 6)
    assert np.abs(by_us(vectors) - by_scipy(vectors)).max() <= 1e-12


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2", "<i8"])
def test_rotations_of_any_type_order_and_number_of_frames(dtype):
    vectors = np.random.default_rng(0).normal(size=(1025, 9)).astype(dtype)  # two blocks and a frame
    for each in (vectors, np.asfortranarray(vectors), vectors[:1], vectors[::-1]):
        assert np.abs(by_us(each) - by_scipy(each)).max() <= 1e-12


def test_a_joint_that_is_not_finite_stays_so_and_no_other():
    vectors = np.ones((4, 6))
    vectors[1, 2], vectors[2, 3], vectors[3, 0] = np.nan, np.inf, 1e300
    finite = np.isfinite(by_us(vectors).reshape(4, 2, 6)).all(axis=2)
    assert finite.tolist() == [[True, True], [False, True], [True, False], [False, True]]


@pytest.mark.real_data
def test_rotations_of_a_real_clip_are_scipys(real_data):
    (file,) = (real_data / "beat2").glob("*.npz")
    poses = np.load(file)["poses"]
    take = Beat2Reader(file, DataConfig()).take(file.stem)
    assert np.abs(take.motion[:, :330] - by_scipy(poses)).max() <= 1e-12
    smplx = SmplReader(file, DataConfig()).take(file.stem)
    assert np.array_equal(smplx.motion, take.motion[:, :333]) and smplx.layout == take.layout[:-1]


def test_z_up_is_turned_so_that_y_is(tmp_path):
    file = write_smpl(tmp_path / "a.npz")
    source = np.load(file)
    take = open_reader(file, DataConfig(up_axis="z")).take("a")
    upright = Rotation.from_euler("x", -90, degrees=True).as_matrix()
    root = upright @ Rotation.from_rotvec(source["poses"][:, :3]).as_matrix()
    assert np.abs(take.motion[:, :6] - root[:, :2].reshape(-1, 6)).max() < 1e-12
    assert np.abs(take.motion[:, -3:] - source["trans"] @ upright.T).max() < 1e-12
    assert abs(take.motion[0, -2] - 0.9) < 0.05  # the height
    assert np.array_equal(take.motion[:, 6:-3], open_reader(file, DataConfig()).take("a").motion[:, 6:-3])


def test_a_folder_of_amass(tmp_path):
    data = tmp_path / "ACCAD"
    write_smpl(data / "Female1" / "B3_walk_poses.npz")
    write_smpl(data / "Male2" / "C1_run_stageii.npz", 55, mocap_framerate=None, mocap_frame_rate=np.array(60))
    for name in ("shape.npz", "neutral_stagei.npz", "female_stagei.npz"):
        np.savez(data / "Female1" / name, betas=np.zeros(16), gender=np.array("female"))
    (tmp_path / "train.txt").write_text("ACCAD/Female1/B3_walk_poses.npz\nACCAD/gone\n")
    (tmp_path / "test.txt").write_text("Male2/C1_run_stageii\n")
    reader = open_reader(data, DataConfig())
    assert isinstance(reader, SmplReader) and reader.has_body_parts
    assert reader.clip_names() == ["ACCAD/gone", "Female1/B3_walk_poses", "Male2/C1_run_stageii"]
    _, walk, run = (clip for clip in reader.clips())
    assert (walk.name, walk.split, walk.motion.shape) == ("Female1/B3_walk_poses", "train", (60, 315))
    assert (run.name, run.split, run.motion.shape) == ("Male2/C1_run_stageii", "test", (120, 333))
    assert run.layout == joint_layout(SMPLX_JOINTS, "translation")
    assert len(reader.sources()) == 4 and reader.file_of(walk.name) == "Female1/B3_walk_poses.npz"
    assert reader.weight(walk.name) == (data / "Female1/B3_walk_poses.npz").stat().st_size > 0


def test_lists_beside_the_folder_that_name_other_data_are_passed_over(tmp_path):
    write_smpl(tmp_path / "data" / "a.npz")
    (tmp_path / "train.txt").write_text("something/else\n")
    (clip,) = open_reader(tmp_path / "data", DataConfig()).clips()
    assert clip.split is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"poses": np.zeros((240, 69))},
            r"\[240, 69\], not \[frames, 165 \(SMPL-X, 55 joints\), 156 \(SMPL-H, 52\), 72 \(SMPL, 24\) or 66",
        ),
        ({"poses": np.zeros((240, 52, 4))}, r"poses has shape \[240, 52, 4\]"),
        ({"trans": None}, "no key trans or transl: the translation of the root is missing"),
        ({"trans": np.zeros((239, 3))}, "240 and 239 frames"),
        ({"trans": np.zeros((240, 2))}, r"not \[frames, 3\]"),
        (
            {"mocap_framerate": None},
            "no key mocap_frame_rate, .* or frame_rate; it has trans, gender.*; give --source_fps N",
        ),
        ({"mocap_framerate": np.array(np.nan)}, "mocap_framerate is nan"),
        ({"poses": np.full((240, 156), None, object)}, "never loaded"),
    ],
)
def test_what_is_wrong_with_a_clip_is_told(tmp_path, changes, reason):
    file = write_smpl(tmp_path / "a.npz", **changes)
    with pytest.raises(ClipError, match=reason) as refusal:
        open_reader(file, DataConfig()).take("a")
    assert "\n" not in str(refusal.value)


def fps_of_file(folder, **settings):
    return open_reader(folder, DataConfig(format="smpl", **settings)).take("a").fps


@pytest.mark.parametrize("key", ["mocap_frame_rate", "mocap_framerate", "fps", "mocap_fps", "frame_rate"])
@pytest.mark.parametrize("value", [20, np.float32(20), [20], [[20]], b"20", "20", [b"20.0"]])
@pytest.mark.parametrize("write", [write_smpl, write_beat2])
def test_the_rate_of_a_file_is_read_under_each_key(tmp_path, key, value, write):
    own = "mocap_framerate" if write is write_smpl else "mocap_frame_rate"
    write(tmp_path / "a.npz", **{own: None, key: np.array(value)})
    assert fps_of_file(tmp_path) == open_reader(tmp_path, DataConfig()).take("a").fps == 20


def test_rates_that_disagree_and_files_without_one_are_refused_unless_the_rate_is_given(tmp_path):
    write_smpl(tmp_path / "a.npz", fps=np.array(30))
    with pytest.raises(ClipError, match="mocap_framerate is 120, but fps is 30; --source_fps N"):
        fps_of_file(tmp_path)
    assert fps_of_file(tmp_path, source_fps=60) == 60
    write_smpl(tmp_path / "a.npz", mocap_framerate=None)
    with pytest.raises(ClipError, match=r"give --source_fps N \(rvqvae.data.source_fps\)"):
        fps_of_file(tmp_path)
    assert fps_of_file(tmp_path, source_fps=60) == 60
    write_smpl(tmp_path / "a.npz", fps=np.array(None, object))
    assert fps_of_file(tmp_path, source_fps=60) == 60


@pytest.mark.parametrize("write", [write_smpl, write_beat2])
def test_a_rate_that_is_taken_in_place_of_the_files_own_is_said(tmp_path, write):
    own = "mocap_framerate" if write is write_smpl else "mocap_frame_rate"
    file = write(tmp_path / "a.npz", **{own: np.array(120)})
    said = "the file gives 120 fps, but rvqvae.data.source_fps 60 is used"
    assert open_reader(file, DataConfig(source_fps=60)).take("a").notes == (said,)
    assert open_reader(file, DataConfig(source_fps=120)).take("a").notes == ()


def test_the_rate_that_beat2_files_do_not_say_is_said(tmp_path):
    write_beat2(tmp_path / "a.npz", mocap_frame_rate=None)
    take = open_reader(tmp_path, DataConfig()).take("a")
    said = "the file gives no frame rate: BEAT2's 30 fps is assumed; --source_fps N (rvqvae.data.source_fps) sets"
    assert take.fps == 30 and take.notes == (f"{said} another",)


def test_versions_before_took_the_first_of_two_keys_and_it_is_said(tmp_path):
    write_smpl(tmp_path / "a.npz", mocap_frame_rate=np.array(60), fps=np.array(30))
    take = open_reader(tmp_path, DataConfig(reading_version=1)).take("a")
    assert take.fps == 60 and take.notes == (
        "read as versions up to 0.2 did: 60 fps, but its keys say two rates or none; prepare again with "
        "reading_version 2 to use them",
    )
    write_beat2(tmp_path / "b" / "a.npz", mocap_frame_rate=None, fps=np.array(25))
    take = open_reader(tmp_path / "b", DataConfig(reading_version=1)).take("a")
    assert take.fps == 30 and len(take.notes) == 1 and "but its keys say 25;" in take.notes[0]
    write_smpl(tmp_path / "c" / "a.npz", mocap_framerate=None, fps=np.array(25))
    with pytest.raises(ClipError, match="no key mocap_frame_rate or mocap_framerate; it has"):
        open_reader(tmp_path / "c", DataConfig(reading_version=1)).take("a")
    write_smpl(tmp_path / "d" / "a.npz", fps=np.array(None, object))
    assert open_reader(tmp_path / "d", DataConfig(reading_version=1)).take("a").fps == 120.00004577


def test_files_called_as_those_of_shapes_are_passed_over_only_without_motion(tmp_path):
    write_smpl(tmp_path / "shape.npz")
    write_smpl(tmp_path / "walk.npz")
    np.savez(tmp_path / "neutral_stagei.npz", betas=np.zeros(16))
    (tmp_path / "broken_shape.npz").write_bytes(b"PK")
    reader = open_reader(tmp_path, DataConfig())
    assert reader.clip_names() == ["broken_shape", "shape", "walk"]
    assert reader.why_passed_over(tmp_path / "neutral_stagei.npz") == "without poses, so without motion"
    assert open_reader(tmp_path, DataConfig(reading_version=1)).clip_names() == ["walk"]
    (tmp_path / "walk.npz").unlink()
    with pytest.raises(UserError, match="no reader knows"):
        open_reader(tmp_path, DataConfig(reading_version=1))
    assert open_reader(tmp_path, DataConfig()).take("shape").motion.shape == (240, 315)


def test_expressions_that_are_not_read_are_said(tmp_path):
    for name in ("b", "c", "d"):
        write_smpl(tmp_path / "x" / f"{name}.npz", 55)
    write_beat2(tmp_path / "z" / "a.npz")
    reader = open_reader(tmp_path, DataConfig())
    assert [len(reader.take(name).notes) for name in reader.clip_names()] == [0, 0, 0, 1]
    assert open_reader(tmp_path, DataConfig(format="smpl")).take("z/a").notes == ()


def test_frames_of_zeros_are_dropouts_although_their_rotations_are_not(tmp_path):
    poses, trans = np.ones((40, 156)), np.ones((40, 3))
    poses[[3, 5]], trans[[3, 4]] = 0, 0
    poses[7], trans[7] = 0, np.nan
    take = open_reader(write_smpl(tmp_path / "a.npz", poses=poses, trans=trans), DataConfig()).take("a")
    assert np.flatnonzero(take.empty).tolist() == [3]


def test_files_with_expressions_are_beat2_unless_smpl_is_asked_for(tmp_path):
    write_beat2(tmp_path / "1_a.npz", mocap_frame_rate=None)
    write_smpl(tmp_path / "more" / "b.npz")
    write_smpl(tmp_path / "more" / "c.npz")
    for path in (tmp_path, tmp_path / "1_a.npz"):
        assert isinstance(open_reader(path, DataConfig()), Beat2Reader)
        reader = open_reader(path, DataConfig(format="smpl"))
        assert isinstance(reader, SmplReader) and reader.take("1_a").motion.shape == (60, 333)
        assert reader.take("1_a").fps == 30
    np.savez(tmp_path / "2_b.npz", **{key: values for key, values in beat2_arrays().items() if key != "expressions"})
    assert isinstance(open_reader(tmp_path / "2_b.npz", DataConfig()), SmplReader)
    with pytest.raises(UserError, match="only a BEAT2 folder has speakers"):
        open_reader(tmp_path / "more", DataConfig(speakers=[1]))


def test_a_long_clip_takes_little_more_memory_than_its_motion(tmp_path):
    file = write_smpl(tmp_path / "a.npz", frames=20_000)
    reader = open_reader(file, DataConfig())
    tracemalloc.start()
    try:
        take = reader.take("a")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < take.motion.nbytes + 20_000 * (156 + 3) * 8 + 8e6
