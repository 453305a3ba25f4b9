"""Joint positions of published columns, made by the published recipe from made motion, and recovered."""

import numpy as np
import pytest
import torch

from ds_rvqvae.motion import recovery
from ds_rvqvae.motion.kinematics import RecoveredJoints
from tests.motion.recipes import BONES, columns_263, columns_272, walk

WIDTHS = {263: columns_263, 272: columns_272}


@pytest.fixture(scope="module")
def made():
    return walk(seconds=10, fps=20)


@pytest.mark.parametrize("width", WIDTHS)
def test_positions_come_back(made, width):
    """Ten seconds of walking in a circle: the positions drift less than 0.1 mm."""
    motion = WIDTHS[width](made)
    assert motion.shape[1] == width
    found = recovery.places_by_positions(motion.astype(np.float32))
    truth = made.places[: len(found)] - made.places[0, 0] * [1, 0, 1]
    assert np.linalg.norm(made.places[-1, 0] - made.places[0, 0]) > 1 and np.ptp(made.heading) > np.pi / 2
    assert np.linalg.norm(found - truth, axis=-1).max() < 1e-4


def test_263_columns_say_the_same_by_positions_and_by_rotations(made):
    motion = columns_263(made)
    places = recovery.places_by_positions(motion)
    lengths = recovery.bone_lengths(places, recovery.parents_of(263))
    np.testing.assert_allclose(lengths[1:], np.linalg.norm(BONES, axis=1)[1:], atol=1e-9)
    np.testing.assert_allclose(recovery.places_by_rotations(motion, lengths), places, atol=1e-9)


def test_272_columns_say_the_same_by_positions_and_by_rotations(made):
    motion = columns_272(made)
    rotations, root = recovery.rotations_272(motion)
    np.testing.assert_allclose(
        rotations @ np.swapaxes(rotations, -1, -2), np.broadcast_to(np.eye(3), rotations.shape), atol=1e-9
    )
    from ds_rvqvae.motion.skeleton import forward_kinematics

    places = forward_kinematics(rotations, BONES, recovery.BODY_PARENTS, root)
    np.testing.assert_allclose(places, recovery.places_by_positions(motion), atol=1e-9)


@pytest.mark.parametrize("width", [263, 251, 272])
def test_torch_gives_the_positions_of_numpy_and_gradients(width):
    rng = np.random.default_rng(width)
    motion = rng.normal(size=(100, width)) * 0.3
    expected = recovery.places_by_positions(motion)
    joints = RecoveredJoints(width)
    columns = torch.from_numpy(motion).requires_grad_()
    roots, places = joints.roots(columns), joints.places(columns)
    np.testing.assert_allclose((places + roots[:, None]).detach().numpy(), expected, atol=1e-9)
    (places.square().sum() + roots.square().sum()).backward()
    assert torch.isfinite(columns.grad).all() and columns.grad.any()
    assert len(joints.feet) == 2 and len(joints.measured) == recovery.JOINTS[width]
