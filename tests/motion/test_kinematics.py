"""Rotations and joint positions in torch: angles compared with scipy, positions worked out by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from ds_rvqvae.motion.clip import ClipError
from ds_rvqvae.motion.kinematics import Kinematics, angle_between, matrices_from_6d
from ds_rvqvae.motion.layout import BODY_PART_CHANNELS, Channels
from ds_rvqvae.motion.rotations import translation_positions
from ds_rvqvae.motion.skeleton import builtin_skeleton, joint_places, skeleton_from_json
from tests.motion.arm import load_arm
from tests.motion.walking import legs


def _rows(rotations: Rotation) -> torch.Tensor:
    return torch.from_numpy(rotations.as_matrix()[:, :2].reshape(-1, 6))


def test_angles_are_scipys():
    first, second = Rotation.random(500, random_state=0), Rotation.random(500, random_state=1)
    expected = np.rad2deg((first * second.inv()).magnitude())
    np.testing.assert_allclose(angle_between(_rows(first), _rows(second)).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("degrees", [0.0, 1e-3, 1.0, 90.0, 179.9])
def test_small_and_large_angles_keep_their_digits(degrees):
    turned = Rotation.from_rotvec([[0, math.radians(degrees), 0]])
    angle = angle_between(_rows(turned).float(), _rows(Rotation.identity(1)).float())
    assert angle.item() == pytest.approx(degrees, rel=1e-3, abs=1e-5)


def test_gram_schmidt_gives_rotations():
    matrices = matrices_from_6d(torch.randn(50, 6, dtype=torch.float64))
    torch.testing.assert_close(matrices @ matrices.transpose(1, 2), torch.eye(3, dtype=torch.float64).expand(50, 3, 3))
    torch.testing.assert_close(torch.linalg.det(matrices), torch.ones(50, dtype=torch.float64))


@pytest.fixture
def walk():
    return legs()


def test_places_of_a_walk_are_those_of_the_skeleton(walk):
    layout, mean, std, motion = walk
    skeleton = builtin_skeleton()
    frames = motion * std + mean
    places = joint_places(frames.numpy(), layout, skeleton)
    kinematics = Kinematics(layout, skeleton)
    np.testing.assert_allclose(kinematics.places(frames).numpy(), places - places[:, :1], atol=1e-5)
    measured = [skeleton.joint_names[joint] for joint in kinematics.measured]
    assert sorted(measured) == sorted(set(BODY_PART_CHANNELS["lower_trans"]) - {"pelvis", "translation"})


def test_velocities_and_places_say_the_same(walk):
    layout, mean, std, motion = walk
    frames = motion * std + mean
    places = frames.clone().double()
    places[:, -3:] = torch.from_numpy(translation_positions(frames[:, -3:].numpy(), (0.0, 0.0)))
    as_places = Kinematics((*layout[:-1], replace(layout[-1], kind="position")), builtin_skeleton())
    by_velocity = Kinematics(layout, builtin_skeleton())
    torch.testing.assert_close(as_places.roots(places), by_velocity.roots(frames), atol=1e-6, rtol=0)
    assert by_velocity.has_root and not Kinematics(layout[:-1], builtin_skeleton()).has_root


QUARTER_TURN = [0.0, -1, 0, 1, 0, 0]
"""Returns a rotation about z: x becomes y."""


def test_places_of_a_quarter_turn_by_hand(tmp_path):
    layout = (Channels("shoulder", "rotation_6d", 0, 6), Channels("elbow", "rotation_6d", 6, 12))
    kinematics = Kinematics(layout, load_arm(tmp_path))
    rest = [1.0, 0, 0, 0, 1, 0]
    motion = torch.tensor([[*rest, *rest], [*QUARTER_TURN, *rest], [*rest, *QUARTER_TURN], [*QUARTER_TURN] * 2])
    expected = [
        [[0, 0, 0], [1, 0, 0], [3, 0, 0]],
        [[0, 0, 0], [0, 1, 0], [0, 3, 0]],
        [[0, 0, 0], [1, 0, 0], [1, 2, 0]],
        [[0, 0, 0], [0, 1, 0], [-2, 1, 0]],
    ]
    torch.testing.assert_close(kinematics.places(motion), torch.tensor(expected).float())
    # The shoulder moves nothing above it; the wrist moves, but the layout does not name it.
    assert kinematics.measured.tolist() == [1] and kinematics.feet.tolist() == []


def test_the_roots_place_is_told_by_velocities_or_places_or_not_at_all(tmp_path):
    skeleton = load_arm(tmp_path)
    motion = torch.tensor([[5.0, 1.5, 1], [0.1, 1.4, -0.2], [0.1, 1.3, 0]])
    velocities, places = (
        Kinematics((Channels("translation", kind, 0, 3),), skeleton) for kind in ("translation", "position")
    )
    expected = torch.tensor([[0, 1.5, 0], [0.1, 1.4, -0.2], [0.2, 1.3, -0.2]], dtype=torch.float64)
    torch.testing.assert_close(velocities.roots(motion), expected, atol=1e-6, rtol=0)
    assert torch.equal(places.roots(motion), motion.double())
    with pytest.raises(ValueError, match="no columns for the root's position"):
        Kinematics((Channels("elbow", "rotation_6d", 0, 6),), skeleton).roots(motion)


def crane():
    """A base that turns about y, an arm at rest turned by 90 degrees that slides along its own x, and a hook."""
    entries = {
        "joint_names": ["base", "arm", "hook"],
        "parents": [-1, 0, 1],
        "offsets": [[0, 1, 0], [0, 2, 0], [1, 0, 0]],
        "rotations": [[1, 0, 0, 0], [math.sqrt(0.5), 0, 0, math.sqrt(0.5)], [1, 0, 0, 0]],
        "axes": [[0, 1, 0], [1, 0, 0], [0, 0, 1]],
        "slides": [False, True, False],
        "limits": [None, [0, 2], None],
    }
    layout = tuple(Channels(name, "angle", index, index + 1) for index, name in enumerate(entries["joint_names"]))
    return layout, skeleton_from_json(entries, "crane")


def test_a_crane_worked_out_by_hand():
    layout, skeleton = crane()
    # The arm's x axis points up (90 degrees about z): it slides up, and the hook is 1 m above it.
    motion = np.array([[0.0, 0.0, 0.0], [math.pi / 2, 0.5, 1.0]])
    expected = [[[0, 1, 0], [0, 3, 0], [0, 4, 0]], [[0, 1, 0], [0, 3.5, 0], [0, 4.5, 0]]]
    np.testing.assert_allclose(joint_places(motion, layout, skeleton), expected, atol=1e-12)
    kinematics = Kinematics(layout, skeleton)
    places = kinematics.places(torch.from_numpy(motion))
    np.testing.assert_allclose(places.numpy(), np.array(expected) - [0, 1, 0], atol=1e-12)
    assert [skeleton.joint_names[joint] for joint in kinematics.measured] == ["arm", "hook"]


def test_angles_and_slides_are_the_same_in_torch_and_differentiable():
    layout, skeleton = crane()
    tilted = replace(skeleton, rotations=Rotation.random(3, random_state=2).as_matrix(), offsets=np.eye(3))
    motion = torch.randn(40, 3, dtype=torch.float64, requires_grad=True)
    places = Kinematics(layout, tilted).places(motion)
    expected = joint_places(motion.detach().numpy(), layout, tilted)
    np.testing.assert_allclose(places.detach().numpy(), expected - expected[:, :1], atol=1e-12)
    assert torch.autograd.gradcheck(Kinematics(layout, tilted).places, (motion[:2],))


def test_positions_relative_to_the_root_are_taken_as_they_are():
    skeleton = builtin_skeleton()
    layout = (Channels("translation", "translation", 0, 3), Channels("left_knee", "relative_position", 3, 6))
    motion = np.random.default_rng(0).normal(size=(20, 6))
    places = joint_places(motion, layout, skeleton)
    knee, ankle = (skeleton.joint_names.index(name) for name in ("left_knee", "left_ankle"))
    roots = translation_positions(motion[:, :3])
    np.testing.assert_allclose(places[:, knee], roots + motion[:, 3:])
    np.testing.assert_allclose(places[:, ankle] - places[:, knee], np.tile(skeleton.offsets[ankle], (20, 1)))
    kinematics = Kinematics(layout, skeleton)
    found = kinematics.places(torch.from_numpy(motion)).numpy()
    np.testing.assert_allclose(found, places - places[:, :1], atol=1e-12)
    assert [skeleton.joint_names[joint] for joint in kinematics.measured] == ["left_knee"]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"rotations": [[1, 0, 0, 0]] * 2}, "rotations: not 4 finite numbers for each of 3 joints"),
        ({"rotations": [[2, 0, 0, 0]] * 3}, "a quaternion .* has not the length 1"),
        ({"axes": [[0, 0, 2]] * 3}, "axes: an axis has neither the length 1 nor 0"),
        ({"axes": [[0, 0, "x"]] * 3}, "axes: not 3 finite numbers"),
        ({"slides": [0, 1, 0]}, "slides: not true or false"),
        ({"limits": [[1, 0], None, None]}, "limits: not the lowest and the highest value"),
        ({"limits": [None]}, "limits: not one entry for each of 3 joints"),
    ],
)
def test_entries_of_robots_that_are_wrong(entry, words):
    tree = {"joint_names": ["a", "b", "c"], "parents": [-1, 0, 1], "offsets": [[0, 0, 0]] * 3}
    with pytest.raises(ClipError, match=words):
        skeleton_from_json({**tree, **entry}, "robot")
