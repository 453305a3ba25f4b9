"""The losses: each is the stated distance, weighted by joint, and refused if the columns do not support it."""

import numpy as np
import pytest
import torch

from ds_rvqvae.config.model import LossConfig
from ds_rvqvae.errors import UserError
from ds_rvqvae.model.losses import LossColumns, loss_columns, tokenizer_losses
from ds_rvqvae.motion.kinematics import angle_between, matrices_from_6d
from ds_rvqvae.motion.layout import Channels, check_losses, column_weights

JOINTS = (
    Channels("Hips", "rotation_6d", 0, 6),
    Channels("LeftArm", "rotation_6d", 6, 12),
    Channels("root", "translation", 12, 15),
)


def columns(weights=None):
    std = torch.rand(2, 6) + 0.5
    return LossColumns(weights, torch.arange(12).view(2, 6), torch.randn(2, 6), std, torch.zeros(()))


def test_losses_on_rotations_are_of_the_motion_in_its_own_units():
    torch.manual_seed(0)
    about, found, truth = columns(), torch.randn(2, 8, 15), torch.randn(2, 8, 15)
    own = [values[..., about.rotations] * about.std + about.mean for values in (found, truth)]
    plain = tokenizer_losses(found, truth, torch.tensor(0.5), LossConfig(), about)
    expected = {
        "matrix": (matrices_from_6d(own[0]) - matrices_from_6d(own[1])).abs().mean(),
        "geodesic": torch.deg2rad(angle_between(*own)).mean(),
    }
    for kind, value in expected.items():
        config = LossConfig(loss_rotation=0.25, rotation_distance=kind)
        losses = tokenizer_losses(found, truth, torch.tensor(0.5), config, about)
        torch.testing.assert_close(losses.rotation, value, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(losses.loss, plain.loss + 0.25 * losses.rotation)
    assert plain.rotation == 0


@pytest.mark.parametrize("kind", ["matrix", "geodesic"])
def test_losses_on_rotations_have_a_gradient_where_there_is_no_error(kind):
    about, truth = columns(), torch.randn(2, 8, 15)
    found = truth.clone().requires_grad_()
    config = LossConfig(loss_rotation=1.0, rotation_distance=kind)
    tokenizer_losses(found, truth, torch.tensor(0.0), config, about).loss.backward()
    assert found.grad.isfinite().all()


def test_acceleration_is_the_distance_of_second_differences():
    found, truth = torch.randn(2, 8, 15), torch.randn(2, 8, 15)
    losses = tokenizer_losses(found, truth, torch.tensor(0.0), LossConfig(loss_acc=2.0, recons_loss="l1", loss_vel=0))
    difference = (found - truth)[:, 2:] - 2 * (found - truth)[:, 1:-1] + (found - truth)[:, :-2]
    torch.testing.assert_close(losses.acceleration, difference.abs().mean())
    torch.testing.assert_close(losses.loss, losses.recons + 2 * losses.acceleration)


def test_joints_weigh_by_name():
    config = LossConfig(joint_weights={"*": 1, "Left*": 3}, recons_loss="l1")
    weights = column_weights(config, JOINTS)
    assert weights.mean() == pytest.approx(1) and weights[6] == pytest.approx(3 * weights[0])
    assert column_weights(LossConfig(), JOINTS) is None
    found, truth = torch.randn(2, 8, 15), torch.randn(2, 8, 15)
    about = columns(torch.from_numpy(weights))
    losses = tokenizer_losses(found, truth, torch.tensor(0.0), config, about)
    by_column = (found - truth).abs().mean(dim=(0, 1))
    torch.testing.assert_close(losses.recons, (by_column * about.weights).mean())


@pytest.mark.parametrize(
    ("config", "layout", "complaint"),
    [
        (LossConfig(loss_rotation=1), JOINTS[2:], "no columns known to be 6D rotations"),
        (LossConfig(joint_weights={"Nose": 2}), JOINTS, "no joint is called Nose; there are Hips, LeftArm, root"),
        (LossConfig(joint_weights={"*": 0}), JOINTS, "the weight of every joint is 0"),
    ],
)
def test_losses_that_the_columns_do_not_allow_are_refused(config, layout, complaint):
    with pytest.raises(UserError, match=complaint):
        check_losses(config, layout)


@pytest.mark.parametrize(
    ("kind", "recons", "velocity"),
    [
        # Differences 0, 3, -0.5 and 0: their changes are 3, -3.5, 0.5.
        ("l1", 3.5 / 4, 7 / 3),
        ("l2", 9.25 / 4, 21.5 / 3),
        # Half the square below 1, above it the distance minus a half.
        ("l1_smooth", (2.5 + 0.125) / 4, (2.5 + 3 + 0.125) / 3),
    ],
)
def test_losses_of_four_frames_by_hand(kind, recons, velocity):
    truth = torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1)
    found = truth + torch.tensor([0, 3, -0.5, 0]).view(1, 4, 1)
    config = LossConfig(recons_loss=kind, loss_vel=0.25, commit=0.5)
    losses = tokenizer_losses(found, truth, torch.tensor(2.0), config)
    assert losses.recons.item() == pytest.approx(recons) and losses.velocity.item() == pytest.approx(velocity)
    assert losses.loss.item() == pytest.approx(recons + 0.25 * velocity + 0.5 * 2)
    assert losses.commit == 2 and losses.acceleration == losses.rotation == 0


def test_columns_know_where_rotations_stand_and_what_they_are_normalised_by():
    mean, std = np.arange(15, dtype=np.float32), np.arange(15, dtype=np.float32) + 1
    about = loss_columns(LossConfig(joint_weights={"root": 0}), JOINTS, mean, std, torch.device("cpu"))
    assert about.rotations.tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert torch.equal(about.mean, about.rotations.float()) and torch.equal(about.std, about.mean + 1)
    torch.testing.assert_close(about.weights, torch.tensor([15 / 12] * 12 + [0.0] * 3))
    assert loss_columns(LossConfig(), JOINTS, mean, std, torch.device("cpu")).weights is None
