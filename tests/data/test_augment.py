import numpy as np
import pytest

from ds_rvqvae.config.data import AugmentConfig
from ds_rvqvae.data.augment import Augment, Draws, Mirror
from ds_rvqvae.data.store.splits import balanced
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.layout import (
    SMPLX_JOINTS,
    Channels,
    feature_layout,
    joint_layout,
    rotation_columns,
    select_columns,
    smplx_layout,
)
from ds_rvqvae.motion.rotations import (
    axis_angle_to_matrix,
    matrix_to_rotation_6d,
    rotation_6d_to_matrix,
    translation_positions,
)
from ds_rvqvae.motion.sides import partners
from ds_rvqvae.motion.skeleton import Skeleton, builtin_skeleton, forward_kinematics, joint_places

BODY = joint_layout(SMPLX_JOINTS, "translation")
MIRROR_X = np.array([-1, 1, 1])


def smooth_motion(layout, frames=40, seed=0) -> np.ndarray:
    """Returns motion with joints that turn steadily about their own axes, and a moving root; float32 `[frames, C]`."""
    rng = np.random.default_rng(seed)
    motion = np.cumsum(rng.normal(size=(frames, layout[-1].stop)), axis=0) * 0.01
    columns = rotation_columns(layout)
    first = axis_angle_to_matrix(rng.normal(size=(len(columns), 3)))
    turns = axis_angle_to_matrix(np.arange(frames)[:, None, None] * rng.normal(size=(len(columns), 3)) * 0.05)
    motion[:, columns] = matrix_to_rotation_6d(first @ turns)
    return motion.astype(np.float32)


def on_the_other_side(names) -> list[int]:
    def refuse(name):
        raise AssertionError(name)

    return [list(names).index(other) for other in partners(names, refuse).values()]


@pytest.mark.parametrize("body_part", ["upper", "hands", "lower", "lower_trans", "whole_trans"])
def test_mirroring_twice_gives_the_motion_back(body_part):
    _, layout = select_columns(smplx_layout(), body_part)
    motion, mirror = smooth_motion(layout), Mirror(layout)
    assert np.array_equal(mirror(mirror(motion)), motion)
    assert np.abs(mirror(motion) - motion).max() > 0.1 and mirror(motion).dtype == np.float32


def test_a_mirrored_figure_stands_where_the_mirror_shows_it():
    skeleton, motion = builtin_skeleton(), smooth_motion(BODY)
    places = joint_places(motion, BODY, skeleton)
    mirrored = joint_places(Mirror(BODY)(motion), BODY, skeleton)
    assert np.ptp(places, axis=0).max() > 0.3  # it moves
    assert np.allclose(mirrored, places[:, on_the_other_side(SMPLX_JOINTS)] * MIRROR_X, atol=1e-6)


@pytest.mark.real_data
def test_a_mirrored_figure_of_the_cmu_data(real_data):
    with np.load(real_data / "cmu" / "motion_6d.npz") as arrays:
        names, parents, offsets = arrays["joint_names"].tolist(), arrays["parents"].tolist(), arrays["offsets_m"]
        starts, whole = arrays["clip_start"], arrays["motion"]
    layout = joint_layout(names, "position")
    other = on_the_other_side(names)
    assert sum(index != partner for index, partner in enumerate(other)) == 24
    for clip in (0, 60):
        motion, rest = whole[starts[clip] : starts[clip] + 200], offsets[clip].astype(np.float64)
        skeleton = {"joint_names": names, "parents": parents, "offsets": rest.tolist()}
        mirror = Mirror(layout, skeleton)
        assert mirror.axis == 0 and np.array_equal(mirror(mirror(motion)), motion)

        def places(motion, rest):
            rotations = rotation_6d_to_matrix(motion[:, :-3].reshape(len(motion), -1, 6).astype(np.float64))
            return forward_kinematics(rotations, rest, parents, motion[:, -3:])

        wanted = places(motion, rest)[:, other] * MIRROR_X
        # Exact for the mirror image of this body; for the body itself as far as its two sides are alike.
        assert np.allclose(places(mirror(motion), rest[other] * MIRROR_X), wanted, atol=1e-5)
        errors = np.linalg.norm(places(mirror(motion), rest) - wanted, axis=-1)
        assert errors.max() < 0.08 < np.ptp(wanted, axis=0).max()


def small_skeleton(axis: int) -> dict:
    """Returns a skeleton of hips, spine and two legs, one to each side along an axis."""
    offsets = np.array([[0, 1, 0], [0, 0.5, 0], [0, -0.1, 0], [0, -0.1, 0]], float)
    offsets[2:, axis] += [0.2, -0.2]
    names = ["Hips", "Spine", "LeftLeg", "RightLeg"]
    return {"joint_names": names, "parents": [-1, 0, 0, 0], "offsets": offsets.tolist()}


def test_the_mirror_stands_where_the_skeleton_has_its_sides():
    layout = joint_layout(small_skeleton(2)["joint_names"], "translation")
    motion = smooth_motion(layout)
    table = small_skeleton(2)
    skeleton = Skeleton(tuple(table["joint_names"]), tuple(table["parents"]), np.array(table["offsets"]), "small")
    mirrored = joint_places(Mirror(layout, table)(motion), layout, skeleton)
    assert np.allclose(mirrored, joint_places(motion, layout, skeleton)[:, [0, 1, 3, 2]] * [1, 1, -1], atol=1e-6)


def test_a_skeleton_without_mirror_images_is_refused():
    layout = joint_layout(small_skeleton(0)["joint_names"], "translation")
    along_the_bone = small_skeleton(0) | {"offsets": [[0, 1, 0], [0.5, 0, 0], [0.4, 0, 0], [0.4, 0, 0]]}
    with pytest.raises(UserError, match="not mirror images"):
        Mirror(layout, along_the_bone)
    with pytest.raises(UserError, match="along y, the axis that points up"):
        Mirror(layout, small_skeleton(1) | {"offsets": [[0, 0, 1], [0, 0, 0.5], [0, 0.2, 0], [0, -0.2, 0]]})


@pytest.mark.parametrize(
    ("layout", "complaint"),
    [
        (smplx_layout(), r"expressions \(100 columns of kind expression\) cannot be mirrored"),
        (feature_layout(263), r"features \(263 columns of kind feature\) cannot be mirrored"),
        (joint_layout(["Hips", "LeftLeg", "RightLeg", "LeftArm"], "translation"), "LeftArm has no partner"),
        (joint_layout(["joint0", "joint1"], "position"), "do not tell left from right: joint0, joint1"),
        ((Channels("root", "translation", 0, 2),), "root .2 columns of kind translation. cannot"),
    ],
)
def test_what_cannot_be_mirrored_is_refused_where_it_is_asked_for(layout, complaint):
    with pytest.raises(UserError, match=f"rvqvae.data.augment.mirror: .*{complaint}"):
        Augment(layout, AugmentConfig(mirror=0.5), seed=0)
    assert Augment(layout, AugmentConfig(noise=0.1), seed=0).draw(3) == Draws(False, 1.0)


def test_joints_of_the_middle_alone_can_be_mirrored():
    layout = joint_layout(["spine1", "neck"], "translation")
    assert np.array_equal(Mirror(layout).columns, np.arange(15))
    spine = Mirror(joint_layout(["Spine"], "position"), small_skeleton(0))
    assert spine.signs.tolist() == [1, -1, -1, -1, 1, 1, -1, 1, 1]


def test_a_window_at_its_own_speed_is_left_alone():
    augment, motion = Augment(BODY, AugmentConfig(time_scale=0.2), seed=0), smooth_motion(BODY)
    assert augment.needed(32, 1.0) == 32
    assert np.shares_memory(augment.apply(motion, Draws(False, 1.0), 32), motion)
    assert np.array_equal(augment.apply(motion, Draws(False, 1.0), 32), motion[:32])


@pytest.mark.parametrize("speed", [0.5, 0.83, 1.002, 1.17, 1.5])
def test_motion_at_another_speed(speed):
    layout = (*BODY, Channels("expressions", "expression", BODY[-1].stop, BODY[-1].stop + 2))
    motion = smooth_motion(layout, frames=70)
    motion[:, -2:] = np.arange(70)[:, None]  # values that are linear in time stay so
    before = motion.copy()
    augment, size = Augment(layout, AugmentConfig(time_scale=0.5), seed=0), 40
    needed = augment.needed(size, speed)
    assert needed - 2 < (size - 1) * speed <= needed - 1
    window = augment.apply(motion[:needed], Draws(False, speed), size)
    assert window.shape == (size, layout[-1].stop) and window.dtype == np.float32
    assert np.array_equal(motion, before)
    times = np.arange(size) * speed
    assert np.allclose(window[:, -2:], times[:, None], atol=1e-4)
    # Each joint turns steadily, so its angle from the start is known at any time.
    columns = rotation_columns(layout)
    there, wanted = (rotation_6d_to_matrix(each[:, columns].astype(np.float64)) for each in (window, motion))
    step = np.swapaxes(wanted[0], -1, -2) @ wanted[1]
    turned = np.swapaxes(there[:-1], -1, -2) @ there[1:]
    angle, whole = (np.arccos(np.clip((np.trace(each, axis1=-2, axis2=-1) - 1) / 2, -1, 1)) for each in (turned, step))
    assert np.allclose(angle, whole * speed, atol=2e-3)
    # The root follows the same path, at the given speed.
    root = slice(BODY[-1].start, BODY[-1].stop)
    places = translation_positions(motion[:, root])
    wanted = np.stack([np.interp(times, np.arange(70), column) for column in places.T], axis=1)
    assert np.allclose(translation_positions(window[:, root]), wanted, atol=1e-5)
    assert np.allclose(window[0, root], motion[0, root] * [speed, 1, speed])


def test_where_the_clip_ends_the_speed_is_lowered():
    augment, motion = Augment(BODY, AugmentConfig(time_scale=0.5), seed=0), smooth_motion(BODY, frames=44)
    lowered = augment.apply(motion, Draws(False, 1.5), 40)
    assert np.array_equal(lowered, augment.apply(motion, Draws(False, 43 / 39), 40))
    assert np.array_equal(augment.apply(motion[:40], Draws(False, 1.5), 40), motion[:40])
    with pytest.raises(ValueError, match="39 frames for a window of 40"):
        augment.apply(motion[:39], Draws(False, 1.0), 40)


def test_rotations_that_are_none_are_refused_in_words():
    augment, motion = Augment(BODY, AugmentConfig(time_scale=0.5), seed=0), smooth_motion(BODY)
    motion[3] = 0
    with pytest.raises(UserError, match=r"time_scale: motion cannot be played at another speed: .* frame 3"):
        augment.apply(motion, Draws(False, 0.8), 40)


def test_a_mirrored_window_is_mirrored_at_its_speed():
    augment, motion = Augment(BODY, AugmentConfig(mirror=1, time_scale=0.2), seed=0), smooth_motion(BODY)
    both = augment.apply(motion, Draws(True, 0.9), 32)
    assert np.allclose(both, augment.apply(Mirror(BODY)(motion), Draws(False, 0.9), 32), atol=1e-6)


def test_draws_are_functions_of_seed_and_position():
    config = AugmentConfig(mirror=0.25, time_scale=0.1, noise=0.05)
    one, again, other = (Augment(BODY, config, seed=seed) for seed in (7, 7, 8))
    draws = [one.draw(position) for position in range(400)]
    backwards = [again.draw(position) for position in reversed(range(400))]
    assert draws == backwards[::-1] and draws != [other.draw(position) for position in range(400)]
    speeds = np.array([draw.speed for draw in draws])
    assert 0.15 < np.mean([draw.mirror for draw in draws]) < 0.35
    assert 0.9 <= speeds.min() < 0.91 and 1.09 < speeds.max() <= 1.1 and abs(speeds.mean() - 1) < 0.01
    assert [draw.changes for draw in draws] == [draw.mirror or draw.speed != 1 for draw in draws]
    assert one.draw(2**40) == again.draw(np.int64(2**40))


def test_noise_is_as_large_as_asked_for_and_a_function_of_the_position():
    augment = Augment(BODY, AugmentConfig(noise=0.05), seed=7)
    windows = np.zeros((3, 64, BODY[-1].stop), np.float32)
    for window, position in zip(windows, (5, 6, 5), strict=True):
        augment.add_noise(window, position)
    assert np.array_equal(windows[0], windows[2]) and abs(np.corrcoef(windows[:2].reshape(2, -1))[0, 1]) < 0.05
    assert 0.049 < windows.std() < 0.051 and not augment.draw(5).changes


def test_an_offset_moves_a_window_as_a_whole():
    augment = Augment(BODY, AugmentConfig(offset=0.3), seed=7)
    windows = np.zeros((3, 64, BODY[-1].stop), np.float32)
    for window, position in zip(windows, (5, 6, 5), strict=True):
        augment.add_offset(window, position)
    assert np.array_equal(windows[0], windows[2]) and not np.array_equal(windows[0], windows[1])
    assert not np.diff(windows, axis=1).any() and 0.25 < windows[:, 0].std() < 0.35


def test_a_scaled_window_has_one_factor_a_joint():
    augment = Augment(BODY, AugmentConfig(scale=0.3), seed=7)
    windows = np.ones((400, 8, BODY[-1].stop), np.float32)
    for position, window in enumerate(windows):
        augment.scale(window, position)
    assert not np.diff(windows, axis=1).any()
    factors = np.stack([windows[:, 0, part.start] for part in BODY], axis=1)
    assert all(np.ptp(windows[:, 0, part.start : part.stop], axis=1).max() == 0 for part in BODY)
    assert 0.28 < np.log(factors).std() < 0.32 and abs(np.log(factors).mean()) < 0.03
    again = np.ones_like(windows[0])
    augment.scale(again, 5)
    assert np.array_equal(again, windows[5]) and not np.array_equal(windows[5], windows[6])


@pytest.mark.parametrize("pieces", [2, 3, len(BODY), 99])
def test_a_mixed_window_takes_stretches_of_joints_from_others(pieces):
    augment = Augment(BODY, AugmentConfig(mix=0.5, mix_windows=pieces), seed=7)
    found = [augment.mixed_from(position, 9) for position in range(400)]
    mixed = [sources for sources in found if sources]
    assert 150 < len(mixed) < 250 and {other for sources in mixed for other, _ in sources} == set(range(9))
    for sources in mixed:
        assert len(sources) == min(pieces, len(BODY)) - 1
        owner = np.zeros(BODY[-1].stop, int)
        for place, (_, columns) in enumerate(sources):
            assert not owner[columns].any()
            owner[columns] = place + 1
        parts = [set(owner[part.start : part.stop]) for part in BODY]
        assert all(len(part) == 1 for part in parts) and {0} in parts
        # On the ring of parts, each stretch is contiguous.
        assert sum(one != other for one, other in zip(parts, parts[1:] + parts[:1], strict=True)) == len(sources) + 1
    again = augment.mixed_from(3, 9)
    assert [other for other, _ in again] == [other for other, _ in found[3]]
    assert Augment(BODY[:1], AugmentConfig(mix=1), seed=7).mixed_from(0, 9) == []


def test_a_mixed_window_takes_from_others_as_often_as_they_are_trained_on():
    of_window = np.repeat([0, 1, 2], [50, 10, 30])
    groups = balanced(["a", "b", "c"], of_window, {"a": 0, "c": 3})
    augment = Augment(BODY, AugmentConfig(mix=1), seed=7)
    sources = [other for position in range(4000) for other, _ in augment.mixed_from(position, 90, groups.reach)]
    times = np.bincount(sources, minlength=90)
    assert times[:50].sum() == 0 and times[50:].min() > 0
    assert times[50:60].sum() == pytest.approx(1000, abs=100)
