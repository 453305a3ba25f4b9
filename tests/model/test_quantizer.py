"""The residual quantizer on one rank: gradients, levels, dropout, noise, distances, beams, initialisation."""

import itertools
import math

import pytest
import torch

from ds_rvqvae import ResidualQuantizer
from tests.model.quantizing import make, train


@pytest.mark.parametrize("levels", [1, 2, 6])
@pytest.mark.parametrize("shared", [False, True])
def test_gradient_is_the_identity_at_any_number_of_levels(levels, shared):
    quantizer, latents = make(levels, shared_codebook=shared)
    latents = latents[:1, :5].clone().requires_grad_()
    jacobian = torch.autograd.functional.jacobian(lambda x: quantizer(x)[0], latents)
    assert torch.equal(jacobian.reshape(20, 20), torch.eye(20))


def test_gradient_is_the_identity_whatever_levels_are_dropped():
    quantizer, latents = make(6, quantize_dropout_prob=1.0)
    seen = set()
    for step in range(20):
        quantizer.set_step(0, step)
        jacobian = torch.autograd.functional.jacobian(lambda x: quantizer(x)[0], latents[:1, :2])
        assert torch.equal(jacobian.reshape(8, 8), torch.eye(8))
        seen.add(int((quantizer(latents)[1][0, 0] >= 0).sum()))
    assert seen == {1, 2, 3, 4, 5, 6}


def test_quantized_is_the_sum_of_its_codes_vectors():
    quantizer, latents = make()
    quantized, codes, _, _ = quantizer(latents)
    assert torch.equal(quantized, quantizer.decode(codes))
    expected = sum(quantizer.codebooks[level][codes[..., level]] for level in range(3))
    torch.testing.assert_close(quantized, expected)
    assert torch.equal(codes, quantizer.encode(latents))


def test_each_level_takes_the_nearest_code_of_what_is_left():
    quantizer, latents = make()
    codes = quantizer.encode(latents)
    residual = latents
    for level in range(3):
        distances = torch.cdist(residual, quantizer.codebooks[level].expand(4, -1, -1))
        assert torch.equal(codes[..., level], distances.argmin(-1))
        residual = residual - quantizer.codebooks[level][codes[..., level]]


def test_decode_takes_fewer_levels_and_dropped_ones():
    quantizer, latents = make()
    codes = quantizer.encode(latents)
    dropped = codes.clone()
    dropped[..., 2] = -1
    torch.testing.assert_close(quantizer.decode(codes[..., :2]), quantizer.decode(dropped))
    with pytest.raises(ValueError, match="takes 1 to 3"):
        quantizer.decode(torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="0 to 15"):
        quantizer.decode(torch.full((2, 3), 16))


def test_commitment_loss_is_the_mean_over_active_levels():
    quantizer, latents = make()
    _, codes, loss, _ = quantizer(latents)
    residual, squares = latents, []
    for level in range(3):
        residual = residual - quantizer.codebooks[level][codes[..., level]]
        squares.append(residual.square().mean())
    torch.testing.assert_close(loss, torch.stack(squares).mean())
    quantizer.quantize_dropout_prob = 1.0
    step = next(step for step in range(100) if _levels(quantizer, step) == 2)
    quantizer.set_step(0, step)
    torch.testing.assert_close(quantizer(latents)[2], torch.stack(squares[:2]).mean())


def _levels(quantizer, step):
    quantizer.set_step(0, step)
    return quantizer.active_levels()


def test_dropped_levels_have_code_minus_one_no_perplexity_and_no_update():
    quantizer, latents = make(quantize_dropout_prob=1.0)
    step = next(step for step in range(100) if _levels(quantizer, step) == 1)
    before = {name: buffer.clone() for name, buffer in quantizer.named_buffers()}
    quantizer.set_step(0, step)
    _, codes, _, perplexity = quantizer(latents)
    quantizer.update_codebooks()
    assert (codes[..., 0] >= 0).all() and (codes[..., 1:] == -1).all()
    assert perplexity[0] > 1 and perplexity[1:].tolist() == [0, 0]
    assert not torch.equal(quantizer.codebooks[0], before["codebooks"][0])
    for name in ("codebooks", "ema_sum", "ema_count"):
        assert torch.equal(getattr(quantizer, name)[1:], before[name][1:])


def test_initialisation_takes_latents_of_the_batch():
    quantizer, latents = make(levels=2, codes=32)
    assert bool(quantizer.initialized)
    for vector in quantizer.codebooks[0]:
        assert (latents.reshape(-1, 4) == vector).all(dim=1).any()
    assert len(quantizer.codebooks[0].unique(dim=0)) == 32


def test_kmeans_starts_nearer_than_samples():
    samples, latents = make(levels=1)
    kmeans, _ = make(levels=1, codebook_init="kmeans")
    assert kmeans.eval()(latents)[2] < 0.9 * samples.eval()(latents)[2]


def test_more_codes_than_vectors_still_gives_finite_codes():
    quantizer, latents = make(levels=2, codes=100, vectors=40)
    train(quantizer, latents, 3)
    assert torch.isfinite(quantizer.codebooks).all()


def test_initialisation_needs_something_finite():
    quantizer = ResidualQuantizer(1, 4, 2)
    with pytest.raises(ValueError, match="no finite latents"):
        quantizer.initialize_codebooks(torch.full((1, 3, 2), math.nan))


def test_state_dict_restores_everything_that_training_needs():
    first, latents = make()
    train(first, latents, 4)
    second = ResidualQuantizer(3, 16, 4)
    second.load_state_dict(first.state_dict())
    assert bool(second.initialized) and int(second.updates) == 4
    train(first, latents, 2, start=4)
    train(second, latents, 2, start=4)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert set(first.state_dict()) == {"codebooks", "ema_sum", "ema_count", "initialized", "updates"}


def test_noise_is_small_relative_seeded_and_only_in_training():
    quantizer, latents = make(codes=64, sample_codebook_temp=0.1)
    plain = quantizer.encode(latents)
    quantizer.set_step(0, 1, 2, 3)
    noisy = quantizer(latents)[1]
    share = (noisy[..., 0] != plain[..., 0]).float().mean()
    assert 0 < share < 0.5
    assert torch.equal(noisy, quantizer(latents)[1])
    quantizer.set_step(0, 1, 2, 4)
    assert not torch.equal(noisy, quantizer(latents)[1])
    scaled = ResidualQuantizer(3, 64, 4, sample_codebook_temp=0.1)
    scaled.load_state_dict(quantizer.state_dict())
    scaled.codebooks *= 100
    scaled.set_step(0, 1, 2, 3)
    assert torch.equal(scaled(latents * 100)[1], noisy)
    assert torch.equal(quantizer.eval()(latents)[1], plain)


@pytest.mark.parametrize("shared", [False, True])
def test_codes_and_vectors_are_those_of_vector_quantize_pytorch(shared):
    from vector_quantize_pytorch import ResidualVQ

    torch.manual_seed(0)
    theirs = ResidualVQ(
        dim=32, num_quantizers=6, codebook_size=128, shared_codebook=shared, decay=0.99, rotation_trick=False
    ).train()
    ours = ResidualQuantizer(6, 128, 32, shared_codebook=shared).train()
    for level, book in enumerate(theirs.codebooks[:1] if shared else theirs.codebooks):
        ours.codebooks[level].copy_(torch.as_tensor(book))
    latents = torch.randn(4, 80, 32) * theirs.codebooks.std()
    before = ours.codebooks.clone()
    quantized, codes, _, _ = ours(latents)
    assert torch.equal(ours.codebooks, before)
    their_quantized, their_codes, _ = theirs.eval()(latents)
    assert torch.equal(codes, their_codes)
    torch.testing.assert_close(quantized, their_quantized)


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
    # Training goes level by level, whatever the beam size for encoding.
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
