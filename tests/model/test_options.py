"""Options of the quantizer and of the losses that are off by default: what each does, and nothing else."""

import itertools

import pytest
import torch

from ds_rvqvae import RVQVAE, ResidualQuantizer, load_profile
from ds_rvqvae.config.model import LossConfig
from ds_rvqvae.errors import UserError
from ds_rvqvae.model.losses import LossColumns, tokenizer_losses
from ds_rvqvae.motion.kinematics import angle_between, matrices_from_6d
from ds_rvqvae.motion.layout import Channels, check_losses, column_weights

JOINTS = (
    Channels("Hips", "rotation_6d", 0, 6),
    Channels("LeftArm", "rotation_6d", 6, 12),
    Channels("root", "translation", 12, 15),
)


def make(levels=3, **options):
    """A quantizer initialised from latents `[4, 64, 4]`, and those latents."""
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(levels, 16, 4, **options)
    latents = torch.randn(4, 64, 4)
    quantizer.initialize_codebooks(latents)
    return quantizer, latents


def test_the_rotation_trick_is_the_turn_and_stretch_of_each_latent_into_its_codes():
    quantizer, latents = make(gradient="rotation_trick")
    plain, _ = make()
    latents = latents[:1, :6].clone().requires_grad_()
    quantized = quantizer(latents)[0]
    assert torch.equal(quantized, plain(latents)[0])
    gradient = torch.randn_like(quantized)
    (found,) = torch.autograd.grad(quantized, latents, gradient)
    for vector, code, outer, inner in zip(
        latents[0].detach(), quantized[0].detach(), gradient[0], found[0], strict=True
    ):
        source, target = vector / vector.norm(), code / code.norm()
        # Rodrigues' formula in the plane of both.
        plane, cosine = torch.outer(target, source) - torch.outer(source, target), source @ target
        turn = torch.eye(4) + plane + plane @ plane / (1 + cosine)
        torch.testing.assert_close(turn @ source, target)
        torch.testing.assert_close(inner, code.norm() / vector.norm() * turn.T @ outer, rtol=1e-4, atol=1e-5)


def test_cosine_distance_takes_the_code_of_the_nearest_angle_whatever_its_length():
    quantizer, latents = make(levels=1, codebook_distance="cosine")
    codes = quantizer.eval().encode(latents)[..., 0]
    similarity = torch.nn.functional.cosine_similarity(latents[:, :, None], quantizer.codebooks[0], dim=-1)
    assert torch.equal(codes, similarity.argmax(-1))
    quantizer.codebooks *= torch.rand(1, 16, 1) + 0.5
    assert torch.equal(quantizer.encode(latents)[..., 0], codes)
    assert torch.equal(quantizer(latents)[1][..., 0], codes)


@pytest.mark.parametrize("other", ["codebook_distance=cosine", "shared_codebook=true", "fsq_levels=[4,4,4,4,4]"])
def test_beam_search_takes_codebooks_of_each_level_by_euclidean_distance(other):
    with pytest.raises(UserError, match=r"rvqvae\.model\.beam_size"):
        load_profile("baseline", ["rvqvae.model.beam_size=4", f"rvqvae.model.{other}", "rvqvae.model.code_dim=30"])


def test_a_wider_beam_comes_nearer_and_the_widest_finds_the_nearest_of_all_sums():
    quantizer, latents = make(levels=3, dead_code_threshold=0)
    quantizer.eval()
    errors = []
    for beam_size in (1, 2, 4, 16, 256):
        quantizer.beam_size = beam_size
        quantized, codes, _commit_loss, _ = quantizer(latents)
        assert torch.equal(codes, quantizer.encode(latents))
        torch.testing.assert_close(quantized, quantizer.decode(codes))
        errors.append((quantized - latents).square().sum(dim=-1))
    assert all(later.mean() < earlier.mean() for earlier, later in itertools.pairwise(errors))
    one, two, three = quantizer.codebooks
    sums = (one[:, None, None] + two[:, None] + three).reshape(-1, 4)
    least = torch.cdist(latents.reshape(-1, 4).double(), sums.double()).amin(dim=1).square()
    torch.testing.assert_close(errors[-1].reshape(-1).double(), least, atol=1e-5, rtol=1e-5)
    # Training goes level by level, whatever is asked of encoding.
    quantizer.train()
    plain, _ = make(levels=3, dead_code_threshold=0)
    assert torch.equal(quantizer(latents)[1], plain(latents)[1])


def test_sampling_noise_falls_to_nothing():
    quantizer, latents = make(sample_codebook_temp=2.0, sample_anneal_iter=100)
    nearest = quantizer.encode(latents)
    changed = []
    for step in (0, 50, 90, 100, 1000):
        quantizer.set_step(0, step)
        changed.append((quantizer(latents)[1] != nearest)[..., 0].float().mean().item())
    assert changed[0] > changed[1] > changed[2] > 0 and changed[3:] == [0, 0]


def test_averages_start_at_full_inertia_without_a_warm_up():
    quantizer, latents = make(levels=1, mu_warm_up=0, dead_code_threshold=0.0)
    before, counts = quantizer.ema_count.clone(), torch.bincount(quantizer.encode(latents).flatten(), minlength=16)
    quantizer(latents)
    quantizer.update_codebooks()
    torch.testing.assert_close(quantizer.ema_count[0], 0.99 * before[0] + 0.01 * counts)


def test_level_dropout_leaves_the_first_levels():
    quantizer, latents = make(levels=6, quantize_dropout_prob=1.0, quantize_dropout_min_levels=4)
    seen = set()
    for step in range(40):
        quantizer.set_step(0, step)
        seen.add(int((quantizer(latents)[1][0, 0] >= 0).sum()))
    assert seen == {4, 5, 6}


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("rvqvae.model.quantize_dropout_min_levels=7", "is more than the 6 levels"),
        ("rvqvae.model.gradient=rotation_trick", "gradient: lineage, MoMask's arithmetic, has its own"),
        ("rvqvae.model.codebook_distance=cosine", "codebook_distance: lineage, MoMask's"),
        ("rvqvae.model.codebook_init=kmeans", "codebook_init: lineage, MoMask's"),
        ("rvqvae.model.dead_code_threshold=0", "dead_code_threshold: lineage, MoMask's"),
        ("rvqvae.model.mu_warm_up=0", "mu_warm_up: lineage, MoMask's"),
        ("rvqvae.model.beam_size=2", "beam_size: 2 goes neither with lineage"),
    ],
)
def test_options_that_do_not_go_together_are_refused(override, complaint):
    with pytest.raises(UserError, match=complaint):
        load_profile("baseline", ["rvqvae.model.lineage=true", override])


def test_noise_goes_by_euclidean_distances_alone():
    with pytest.raises(UserError, match="sample_codebook_temp: is relative to euclidean distances"):
        load_profile("baseline", ["rvqvae.model.codebook_distance=cosine", "rvqvae.model.sample_codebook_temp=0.1"])


def test_input_noise_reaches_the_encoder_in_training_alone():
    settings = ["rvqvae.model.width=32", "rvqvae.model.dropout=0", "rvqvae.model.quantize_dropout_prob=0"]
    profile = load_profile("demo", [*settings, "rvqvae.model.input_noise=0.5"])
    model, motion = RVQVAE(12, profile.rvqvae.model), torch.randn(2, 32, 12)
    seen = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].transpose(1, 2)))
    for step in (0, 0, 1):
        model.set_step(0, step)
        model(motion)
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    assert 0.45 < (seen[0] - motion).std() < 0.55
    model.eval()(motion)
    model.encode(motion)
    assert torch.equal(seen[3], motion) and torch.equal(seen[4], motion)


def columns(weights=None):
    std = torch.rand(2, 6) + 0.5
    return LossColumns(weights, torch.arange(12).view(2, 6), torch.randn(2, 6), std)


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
        (LossConfig(joint_weights={"*": 0}), JOINTS, "every joint weighs 0"),
    ],
)
def test_losses_that_the_columns_do_not_allow_are_refused(config, layout, complaint):
    with pytest.raises(UserError, match=complaint):
        check_losses(config, layout)
