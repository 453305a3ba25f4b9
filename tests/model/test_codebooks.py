"""Codebooks that are moving averages: statistics, decay, dead codes, updates that begin early."""

import math

import pytest
import torch

from ds_rvqvae import ResidualQuantizer
from ds_rvqvae.model.vq import nearest_codes, searched_books
from tests.model.quantizing import make, train
from tests.ranks import run_ranks


def test_averages_start_fast_and_end_at_mu():
    quantizer, latents = make(levels=1, dead_code_threshold=0.0)
    index = nearest_codes(latents.reshape(-1, 4), searched_books(quantizer.codebooks)[0])
    counts = torch.bincount(index, minlength=16).float()
    sums = torch.zeros(16, 4).index_add_(0, index, latents.reshape(-1, 4))
    quantizer(latents)
    quantizer.update_codebooks()
    torch.testing.assert_close(quantizer.ema_count[0], 0.1 * 1.0 + 0.9 * counts)
    expected = (0.1 * quantizer.codebooks.new_ones(16, 1) * _first(latents) + 0.9 * sums) / quantizer.ema_count[0][
        :, None
    ]
    torch.testing.assert_close(quantizer.codebooks[0], expected)
    quantizer.updates.fill_(10_000)
    before = quantizer.ema_count[0].clone()
    quantizer(latents)
    counts = quantizer.staged_counts()[0].clone()
    quantizer.update_codebooks()
    torch.testing.assert_close(quantizer.ema_count[0], 0.99 * before + 0.01 * counts)


def _first(latents):
    fresh = ResidualQuantizer(1, 16, 4)
    fresh.initialize_codebooks(latents)
    return fresh.codebooks[0]


def test_accumulated_micro_batches_update_like_one_batch():
    whole, latents = make(dead_code_threshold=0.3)
    parts, _ = make(dead_code_threshold=0.3)
    for step in range(5):
        whole.set_step(0, step)
        whole(latents)
        whole.update_codebooks()
        for micro_step, half in enumerate(latents.split(2)):
            parts.set_step(0, step, micro_step)
            parts(half)
        parts.update_codebooks()
    torch.testing.assert_close(whole.codebooks, parts.codebooks, atol=1e-5, rtol=1e-5)
    assert int(parts.updates) == 5


def test_dead_codes_get_vectors_sums_and_counts_together():
    quantizer, latents = make(levels=1, codes=32)
    quantizer.codebooks[0, :8] = 1000.0
    quantizer.ema_sum[0, :8] = 0.0
    quantizer.ema_count[0, :8] = 0.0
    quantizer(latents)
    quantizer.update_codebooks()
    share = quantizer.ema_count[0, 8:].sum() / 32
    revived = quantizer.codebooks[0, :8]
    assert all((latents.reshape(-1, 4) == vector).all(dim=1).any() for vector in revived)
    torch.testing.assert_close(quantizer.ema_sum[0, :8], revived * quantizer.ema_count[0, :8, None])
    torch.testing.assert_close(quantizer.ema_count[0, :8], share.expand(8), rtol=0.4, atol=0)
    # The next update must not replace them again.
    train(quantizer, latents, 1, start=1)
    assert (quantizer.codebooks[0].abs() < 100).all()


def test_dead_codes_of_deep_levels_get_residuals():
    quantizer, latents = make(levels=2, codes=32)
    quantizer.codebooks[1, :8] = 1000.0
    quantizer.ema_count[1, :8] = 0.0
    residual = latents - quantizer.codebooks[0][quantizer.encode(latents)[..., 0]]
    quantizer(latents)
    quantizer.update_codebooks()
    for vector in quantizer.codebooks[1, :8]:
        assert torch.isclose(residual.reshape(-1, 4), vector, atol=1e-6).all(dim=1).any()


def test_dead_threshold_is_a_share_of_uniform_use():
    for copies in (1, 7):
        quantizer, latents = make(levels=1, codes=8, mu=0.0, dead_code_threshold=0.5)
        before = quantizer.codebooks.clone()
        quantizer(latents.repeat(copies, 1, 1))
        counts = quantizer.staged_counts()[0].clone()
        quantizer.update_codebooks()
        dead = counts < 0.5 * counts.sum() / 8
        means = torch.where(counts[:, None] > 0, quantizer.ema_sum[0] / quantizer.ema_count[0][:, None], before[0])
        torch.testing.assert_close(quantizer.codebooks[0], means)
        torch.testing.assert_close(quantizer.ema_count[0][~dead], counts[~dead])
        assert (quantizer.ema_count[0][dead] == counts.sum() / 8).all()


def test_training_uses_every_code():
    quantizer, latents = make(levels=3, codes=64, vectors=2048)
    train(quantizer, latents, 60)
    quantizer.take_usage_counts()
    train(quantizer, latents, 1, start=60)
    used = (quantizer.take_usage_counts() > 0).float().mean(dim=1)
    assert (used > 0.95).all()


@pytest.mark.parametrize("applied", [True, False])
def test_refused_or_poisoned_statistics_change_nothing(applied):
    quantizer, latents = make()
    before = {name: buffer.clone() for name, buffer in quantizer.named_buffers()}
    poisoned = latents.clone()
    if applied:
        poisoned[1, 2, 3] = math.nan
    quantizer(poisoned)
    quantizer.update_codebooks(applied=applied)
    for name, buffer in quantizer.named_buffers():
        assert torch.equal(buffer, before[name]), name
    train(quantizer, latents, 1)
    assert torch.isfinite(quantizer.codebooks).all() and int(quantizer.updates) == 1


def test_shared_codebook_is_updated_once_after_all_levels():
    quantizer, latents = make(levels=3, shared_codebook=True, dead_code_threshold=0.0, mu=0.0)
    assert quantizer.codebooks.shape == (1, 16, 4)
    _, codes, _, _ = quantizer(latents)
    residual, sums = latents.reshape(-1, 4), torch.zeros(16, 4)
    for level in range(3):
        index = codes.reshape(-1, 3)[:, level]
        sums.index_add_(0, index, residual)
        residual = residual - quantizer.codebooks[0][index]
    quantizer.update_codebooks()
    counts = torch.bincount(codes.flatten(), minlength=16).float()
    torch.testing.assert_close(quantizer.ema_count[0], counts)
    torch.testing.assert_close(quantizer.ema_sum[0], sums)


def test_averages_start_at_full_inertia_without_a_warm_up():
    quantizer, latents = make(levels=1, mu_warm_up=0, dead_code_threshold=0.0)
    before, counts = quantizer.ema_count.clone(), torch.bincount(quantizer.encode(latents).flatten(), minlength=16)
    quantizer(latents)
    quantizer.update_codebooks()
    torch.testing.assert_close(quantizer.ema_count[0], 0.99 * before[0] + 0.01 * counts)


def update_with_and_without_a_beginning():
    """Two quantizers with the same latents, of which the second begins its updates early; the third step is refused."""
    import torch
    import torch.distributed as dist

    from ds_rvqvae.model.quantizer import ResidualQuantizer
    from ds_rvqvae.train.engine import start_distributed

    start_distributed()
    rank = dist.get_rank()
    torch.manual_seed(0)
    plain, early = (ResidualQuantizer(2, 8, 4, dead_code_threshold=0.5) for _ in range(2))
    early.load_state_dict(plain.state_dict())
    equal, moved = [], []
    for step in range(4):
        latents = torch.randn(2, 20, 4, generator=torch.Generator().manual_seed(10 * step + rank))
        before = plain.codebooks.clone()
        for quantizer in (plain, early):
            quantizer.set_step(0, step, 0, rank)
            quantizer(latents)
        early.begin_update(share=(rank, rank + 1, 2))
        early.update_codebooks(applied=step != 2)
        plain.update_codebooks(applied=step != 2, share=(rank, rank + 1, 2))
        equal += [torch.equal(early.state_dict()[name], value) for name, value in plain.state_dict().items()]
        equal.append(torch.equal(early.take_usage_counts(), plain.take_usage_counts()))
        moved.append(not torch.equal(before, plain.codebooks))
    return {"equal": equal, "moved": moved, "codebooks": plain.codebooks.tolist()}


@pytest.mark.processes
def test_an_update_that_begins_early_is_equal(tmp_path):
    first, second = run_ranks(2, update_with_and_without_a_beginning, tmp_path)
    for found in (first, second):
        assert all(found["equal"]) and found["moved"] == [True, True, False, True]
    assert first["codebooks"] == second["codebooks"]


def test_dropping_the_statistics_ends_a_beginning():
    quantizer = ResidualQuantizer(2, 8, 4)
    quantizer(torch.randn(2, 20, 4))
    quantizer.begin_update()
    quantizer.drop_staged()
    before = quantizer.codebooks.clone()
    quantizer.update_codebooks()
    assert torch.equal(quantizer.codebooks, before) and not quantizer.updates
