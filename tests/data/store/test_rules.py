import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.bvh.reader import BvhReader
from ds_rvqvae.data.formats.packed import PackedReader
from ds_rvqvae.data.formats.smpl.beat2 import Beat2Reader
from ds_rvqvae.data.store.rules import Cut, cut_take, find_pieces
from ds_rvqvae.motion.clip import ClipError, Take
from ds_rvqvae.motion.layout import Channels, joint_layout
from tests.data.motion import beat2_arrays, write_beat2, write_packed

JOINTS = ("hips", "spine", "neck", "left", "right", "tail")
OFF = {"reference_pose": False, "dropouts": False, "max_joint_step": None, "max_root_step": None}


def config(fps: float = 30, **rules) -> DataConfig:
    return DataConfig(fps=fps, rules=rules)


def cut_file(file: Path, data: DataConfig) -> Cut:
    reader = Beat2Reader(file, data)
    return cut_take(reader, reader.take(file.stem), data.rules)


def turned(angles: np.ndarray) -> np.ndarray:
    """Returns 6D columns `[frames, 6 * joints]` for axis times angle `[frames, joints, 3]`."""
    matrices = Rotation.from_rotvec(angles.reshape(-1, 3)).as_matrix()
    return matrices[:, :2].reshape(len(angles), -1)


def angles(frames: int = 60, joints: int = len(JOINTS), seed: int = 0) -> np.ndarray:
    """Returns a pose in which every joint is rotated, with small movements about it."""
    rng = np.random.default_rng(seed)
    walk = np.cumsum(rng.normal(size=(frames, joints, 3)) * 0.01, axis=0)
    return rng.choice([-1, 1], size=(joints, 3)) * rng.uniform(0.4, 0.9, size=(joints, 3)) + walk


def take_of(rotations: np.ndarray, positions: np.ndarray | None = None, kind: str = "position", **changes) -> Take:
    places = np.tile([0.0, 0.9, 0.0], (len(rotations), 1)) if positions is None else positions
    motion = np.concatenate([rotations, places], axis=1)
    return Take("clip", motion, 30.0, joint_layout(JOINTS[: rotations.shape[1] // 6], kind), **changes)


def pieces(take: Take, **rules) -> list[tuple[int, int]]:
    return find_pieces(take, config(**rules).rules)[0]


def test_a_clip_without_fault_comes_out_as_it_is_read(tmp_path):
    file = write_beat2(tmp_path / "clip.npz")
    cut = cut_file(file, config())
    whole = Beat2Reader(file, config()).read("clip")
    assert cut.quarantined == [] and [clip.name for clip in cut.clips] == ["clip"]
    assert np.array_equal(cut.clips[0].motion, whole.motion) and cut.clips[0].fps == 30


def test_a_bad_span_splits_a_clip_and_the_pieces_are_resampled_each_for_itself(tmp_path):
    arrays = beat2_arrays(100, fps=60)
    arrays["expressions"][[50, 51], 7] = np.nan
    file = write_beat2(tmp_path / "clip.npz", **arrays)
    cut = cut_file(file, config())
    assert [(clip.name, len(clip.motion)) for clip in cut.clips] == [("clip#0", 25), ("clip#1", 24)]
    assert [tuple(entry) for entry in cut.quarantined] == [
        ("clip.npz", "not_finite", (50, 52), "NaN or infinite values")
    ]
    reader = Beat2Reader(file, config())
    again = reader.clip(reader.take("clip"), "clip", 52, 100)
    assert np.array_equal(cut.clips[1].motion, again.motion) and (cut.clips[1].motion[0, [330, 332]] == 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_a_clip_of_which_only_the_ends_are_cut_keeps_its_name(tmp_path, value):
    arrays = beat2_arrays(40)
    arrays["expressions"][[0, 1, 39], 99] = value
    cut = cut_file(write_beat2(tmp_path / "clip.npz", **arrays), config(**OFF))
    assert [(clip.name, len(clip.motion)) for clip in cut.clips] == [("clip", 37)]
    assert [entry.frames for entry in cut.quarantined] == [(0, 2), (39, 40)]


def test_frames_of_zeros_are_dropouts_unless_the_rule_is_off(tmp_path):
    arrays = beat2_arrays(60)
    for key in ("poses", "trans", "expressions"):
        arrays[key][20:23] = 0
    file = write_beat2(tmp_path / "clip.npz", **arrays)
    cut = cut_file(file, config())
    assert [(entry.rule, entry.frames) for entry in cut.quarantined] == [("dropouts", (20, 23))]
    assert [len(clip.motion) for clip in cut.clips] == [20, 37]
    assert [len(clip.motion) for clip in cut_file(file, config(**OFF)).clips] == [60]


def test_rows_of_zeros_count_where_a_format_has_no_raw_numbers(tmp_path):
    motion = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    motion[30] = 0
    motion[31, 1:] = 0
    file = write_packed(tmp_path / "pack.npz", (60,), motion=motion)
    reader = PackedReader(file, config())
    cut = cut_take(reader, reader.take("clip0"), config().rules)
    assert [(entry.file, entry.frames) for entry in cut.quarantined] == [("pack.npz: clip0", (30, 31))]


@pytest.mark.parametrize(("held", "dropped"), [(1, 0), (1, 3), (5, 0), (4, 2)])
def test_a_reference_pose_before_the_motion_is_cut_with_the_dropouts_after_it(held, dropped):
    motion = angles()
    motion[:held, :4] = 0  # two of six joints are turned in the reference pose as well
    motion[:held, 4:] = 0.3
    motion[held : held + dropped] = 0
    empty = np.zeros(60, bool)
    empty[held : held + dropped] = True
    take = take_of(turned(motion), empty=empty)
    spans, faults = find_pieces(take, config().rules)
    assert spans == [(held + dropped, 60)]
    assert [(fault.rule, fault.start, fault.stop) for fault in faults][-1] == ("reference_pose", 0, held)
    assert len(faults) == 1 + bool(dropped)


def test_a_reference_pose_after_lost_frames_is_found():
    motion = angles()
    motion[3] = 0
    take = take_of(turned(motion))
    take.motion[:3] = np.nan
    assert pieces(take) == [(4, 60)] and pieces(take, reference_pose=False, max_joint_step=None) == [(3, 60)]


def test_joints_that_never_move_do_not_hide_a_reference_pose():
    motion = angles(joints=6)
    motion[:, 2:5] = motion[0, 2:5]  # a hand that was not recorded, in one pose throughout
    motion[0, [0, 1, 5]] = 0
    assert pieces(take_of(turned(motion))) == [(1, 60)]


def test_motion_in_which_some_joints_were_lost_is_no_reference_pose():
    motion = angles()
    motion[0] = 0
    motion[1:12, :4] = 0  # as the start of CMU's 03_02: the legs walk, the upper body is not rotated
    assert pieces(take_of(turned(motion)), max_joint_step=None) == [(1, 60)]


def test_rest_is_no_reference_pose_where_little_moves():
    still, one = np.zeros((60, 6, 3)), np.zeros((60, 6, 3))
    one[20:, 2] = angles(40, 1)[:, 0]
    assert pieces(take_of(turned(still))) == [(0, 60)]
    assert pieces(take_of(turned(one))) == [(0, 60)]
    middle = angles()
    middle[30] = 0
    assert pieces(take_of(turned(middle)), max_joint_step=None) == [(0, 60)]


@pytest.mark.parametrize("frame", [0, 25, 254, 255, 256, 511, 598])
def test_a_clip_is_cut_where_its_joints_jump_and_no_frame_is_dropped(frame):
    motion = angles(600)
    motion[frame + 1 :] *= -1
    spans, faults = find_pieces(take_of(turned(motion)), config(reference_pose=False).rules)
    assert spans == [(0, frame + 1), (frame + 1, 600)]
    step = Rotation.from_rotvec(motion[frame]).inv() * Rotation.from_rotvec(motion[frame + 1])
    degrees = np.degrees(step.magnitude()).mean()
    words = f"jump between frames {frame} and {frame + 1}: joints turn {degrees:.0f} degrees on average"
    assert faults == [("max_joint_step", frame, frame + 2, words)]
    assert pieces(take_of(turned(motion)), max_joint_step=degrees + 0.01, reference_pose=False) == [(0, 600)]
    assert pieces(take_of(turned(motion)), max_joint_step=None, reference_pose=False) == [(0, 600)]


@given(st.integers(0, 1000), st.floats(0.5, 120))
@settings(deadline=None, max_examples=50)
def test_jumps_are_those_whose_mean_angle_is_over_the_limit(seed, limit):
    rng = np.random.default_rng(seed)
    motion = np.cumsum(rng.normal(size=(40, 3, 3)) * rng.uniform(0, 1.5, size=(40, 1, 1)), axis=0)
    rotations = [Rotation.from_rotvec(motion[:, joint]) for joint in range(3)]
    steps = np.degrees(np.mean([(one[:-1].inv() * one[1:]).magnitude() for one in rotations], axis=0))
    _, faults = find_pieces(take_of(turned(motion)), config(**OFF | {"max_joint_step": limit}).rules)
    found = np.zeros(39, bool)
    for fault in faults:
        found[fault.start : fault.stop - 1] = True
    assert np.array_equal(found, steps > limit)


def test_jumps_that_follow_one_another_are_one_span_and_what_lies_between_is_no_piece():
    motion = angles(100)
    motion[[51, 53]] *= -1
    spans, faults = find_pieces(take_of(turned(motion)), config().rules)
    assert spans == [(0, 51), (54, 100)]
    assert [(fault.start, fault.stop) for fault in faults] == [(50, 55)]
    assert faults[0].reason.startswith("jumps between all frames from 50 to 54: joints turn ")


def root_jump(kind: str, has_positions: bool) -> Take:
    """The jump between frames 29 and 30 is a little more than half a metre."""
    positions = np.tile([0.0, 0.9, 0.0], (60, 1))
    if kind == "position" or has_positions:
        positions[30:] += [0.3, 0.0, 0.45]
    else:
        positions[30, [0, 2]] = 0.3, 0.45
    return take_of(turned(angles()), positions, kind, has_positions=has_positions)


@pytest.mark.parametrize(
    ("kind", "has_positions"), [("position", False), ("translation", True), ("translation", False)]
)
def test_a_clip_is_cut_where_its_root_jumps(kind, has_positions):
    take = root_jump(kind, has_positions)
    spans, faults = find_pieces(take, config().rules)
    assert spans == [(0, 30), (30, 60)]
    assert faults == [("max_root_step", 29, 31, "jump between frames 29 and 30: the root moves 0.541 metres")]
    assert pieces(take, max_root_step=0.55) == [(0, 60)] == pieces(take, max_root_step=None)


def test_height_counts_by_its_steps_where_the_columns_are_velocities():
    places = np.tile([0.1, 5.0, 0.1], (60, 1))
    places[40:, 1] = 5.6
    assert pieces(take_of(turned(angles()), places, "translation")) == [(0, 40), (40, 60)]


@pytest.mark.parametrize("scale", [0.01, 1.0, 1e30])
def test_rotations_that_are_not_of_unit_length_are_compared_by_their_angle(scale):
    motion = angles(60)
    motion[31:] *= -1
    rotations = turned(motion) * scale
    assert pieces(take_of(rotations), reference_pose=False) == [(0, 31), (31, 60)]
    rotations[40, :] = 0  # not rotations at all, so they are compared with nothing
    rotations[45, 6:12] = 1
    assert pieces(take_of(rotations), reference_pose=False) == [(0, 31), (31, 60)]


def test_what_is_too_short_is_left_out_and_pieces_kept_are_numbered(tmp_path):
    arrays = beat2_arrays(100, fps=60)
    arrays["expressions"][[30, 70], 0] = np.nan
    file = write_beat2(tmp_path / "clip.npz", **arrays)
    cut = cut_file(file, config())
    assert [(clip.name, len(clip.motion)) for clip in cut.clips] == [("clip#0", 20)]
    assert [(entry.rule, entry.frames) for entry in cut.quarantined] == [
        ("too_short", (0, 30)),
        ("not_finite", (30, 31)),
        ("not_finite", (70, 71)),
        ("too_short", (71, 100)),
    ]
    assert cut.quarantined[0].reason == "15 frames at 30 fps, fewer than the 16 a clip needs"
    nothing = cut_file(file, config(min_frames=21))
    assert nothing.clips == [] and [tuple(entry) for entry in nothing.quarantined] == [
        (
            "clip.npz",
            "too_short",
            None,
            "the longest piece left has 20 frames at 30 fps, fewer than the 21 a clip needs; "
            "NaN or infinite values in 2 of 100 frames: 30, 70",
        )
    ]


@pytest.mark.parametrize(("frames", "fps", "made"), [(9, 30, 9), (60, 120, 15), (1, 30, 1), (12, 25, 14)])
def test_a_short_clip_is_left_out_whole(tmp_path, frames, fps, made):
    cut = cut_file(write_beat2(tmp_path / "clip.npz", **beat2_arrays(frames, fps)), config())
    reason = f"{made} frame{'s' * (made > 1)} at 30 fps, fewer than the 16 a clip needs"
    assert cut.clips == [] and [tuple(entry) for entry in cut.quarantined] == [("clip.npz", "too_short", None, reason)]


@pytest.mark.parametrize(
    ("key", "value", "rule", "words"),
    [
        ("trans", np.nan, "not_finite", "NaN or infinite values in 30 of 30 frames: 0-29"),
        ("poses", 0, "dropouts", "every value is zero in 30 of 30 frames: 0-29"),
    ],
)
def test_a_clip_of_nothing_but_faults_names_the_rule(tmp_path, key, value, rule, words):
    arrays = beat2_arrays(30)
    arrays["trans"][:], arrays["expressions"][:] = 0, 0
    arrays[key][:] = value
    cut = cut_file(write_beat2(tmp_path / "clip.npz", **arrays), config())
    assert cut.clips == [] and [tuple(entry) for entry in cut.quarantined] == [("clip.npz", rule, None, words)]


def test_noise_is_left_out_whole_with_its_first_jump(tmp_path):
    poses = np.random.default_rng(0).uniform(-3, 3, size=(40, 165))
    cut = cut_file(write_beat2(tmp_path / "clip.npz", 40, poses=poses), config())
    assert len(cut.quarantined) == 1 and cut.quarantined[0].rule == "max_joint_step"
    words = "fewer than the 16 a clip needs; jumps between all frames from 0 to 39: joints turn "
    assert words in cut.quarantined[0].reason and cut.clips == []


def test_an_unknown_split_leaves_a_clip_out(tmp_path):
    file = write_beat2(tmp_path / "clip.npz")
    reader = Beat2Reader(file, config())
    cut = cut_take(reader, replace(reader.take("clip"), split="train and val"), config().rules)
    reason = "its split is 'train and val', none of train, val, test, additional"
    assert cut == ([], [("clip.npz", "split", None, reason)])


def test_what_only_resampling_finds_is_a_clip_error(tmp_path):
    layout = (Channels("hips", "rotation_6d", 0, 6),)
    file = write_packed(tmp_path / "pack.npz", (60,))
    reader = PackedReader(file, config())
    degenerate = replace(reader.take("clip0"), motion=np.ones((60, 6)), fps=25.0, layout=layout)
    with pytest.raises(ClipError, match="rotation 0 span no plane in frame 0"):
        cut_take(reader, degenerate, config().rules)
    positions = np.zeros((60, 9))
    positions[:, :6], positions[::2, 6], positions[1::2, 6] = np.eye(3)[:2].reshape(6), 3e38, -3e38
    layout = joint_layout(("hips",), "translation")
    far = replace(degenerate, motion=positions, fps=30.0, layout=layout, has_positions=True)
    with pytest.raises(ClipError, match="NaN or infinite"):
        cut_take(reader, far, config(**OFF).rules)


@pytest.mark.real_data
def test_the_real_clip_of_beat2_is_not_cut(real_data):
    cut = cut_file(real_data / "beat2" / "2_scott_0_1_1.npz", config(max_joint_step=4.5, max_root_step=0.024))
    assert [len(clip.motion) for clip in cut.clips] == [1906] and cut.quarantined == []


@pytest.mark.real_data
def test_reference_poses_and_dropouts_of_cmu_are_found_and_nothing_else(real_data, tmp_path):
    names = ("03/03_02", "05/05_16", "07/07_12", "09/09_10")  # lost joints, the largest step, dropouts, dropouts
    with tarfile.open(real_data / "cmu" / "bvh.tar.xz") as archive:
        for member in archive:
            if member.name.endswith(tuple(f"bvh/{name}.bvh" for name in names)):
                file = tmp_path / member.name.rpartition("bvh/")[2]
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(archive.extractfile(member).read())
    converted = np.load(real_data / "cmu" / "motion_6d.npz")
    reader = BvhReader(tmp_path, config())
    assert reader.clip_names() == list(names)
    dropped = {"07/07_12": [("dropouts", (1, 2))], "09/09_10": [("dropouts", (1, 5))]}
    for name in names:
        cut = cut_take(reader, reader.take(name), config(max_joint_step=20.0, max_root_step=0.21).rules)
        found = [(entry.rule, entry.frames) for entry in cut.quarantined]
        assert found == [("reference_pose", (0, 1)), *dropped.get(name, [])]
        index = converted["clip_name"].tolist().index(f"bvh/{name}.bvh")
        first, after = converted["clip_start"][index : index + 2]
        assert [clip.name for clip in cut.clips] == [name]
        assert np.allclose(cut.clips[0].motion, converted["motion"][first:after], atol=1e-5)
