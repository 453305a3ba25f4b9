"""The residual quantizer on one rank: gradients, statistics, dead codes, dropout, initialisation."""

import math

import pytest
import torch

from ds_rvqvae import ResidualQuantizer
from ds_rvqvae.model.ranks import fold_seed
from ds_rvqvae.model.vq import first_least, nearest_codes, perplexity_of


def make(levels=3, codes=16, dim=4, vectors=256, seed=0, **options):
    """A quantizer initialised from latents `[4, vectors / 4, dim]`, and those latents."""
    torch.manual_seed(seed)
    quantizer = ResidualQuantizer(levels, codes, dim, **options)
    latents = torch.randn(4, vectors // 4, dim)
    quantizer.initialize_codebooks(latents)
    return quantizer, latents


def train(quantizer, latents, steps, start=0):
    for step in range(start, start + steps):
        quantizer.set_step(0, step)
        quantizer(latents)
        quantizer.update_codebooks()


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


def test_gradient_of_the_lineage_is_the_number_of_levels():
    quantizer, latents = make(6, lineage=True)
    jacobian = torch.autograd.functional.jacobian(lambda x: quantizer(x)[0], latents[:1, :2])
    torch.testing.assert_close(jacobian.reshape(8, 8), 6 * torch.eye(8))


def test_quantized_is_the_sum_of_its_codes_vectors():
    quantizer, latents = make()
    quantized, codes, _, _ = quantizer.eval()(latents)
    torch.testing.assert_close(quantized, quantizer.decode(codes))
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
    return quantizer._active_levels()


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


def test_averages_start_fast_and_end_at_mu():
    quantizer, latents = make(levels=1, dead_code_threshold=0.0)
    index = nearest_codes(latents.reshape(-1, 4), quantizer.codebooks[0])
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
    counts = quantizer._staged_views()[0][0].clone()
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
    # The next update must not throw them away again.
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
        counts = quantizer._staged_views()[0][0].clone()
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


def test_lineage_replaces_dead_codes_by_the_first_rows():
    quantizer, latents = make(levels=1, codes=16, lineage=True)
    rows = latents.reshape(-1, 4)
    assert torch.equal(quantizer.codebooks[0], rows[:16])
    quantizer.codebooks[0, 3] = 1000.0
    quantizer.ema_count[0, 3] = 0.5
    quantizer(latents)
    quantizer.update_codebooks()
    assert torch.equal(quantizer.codebooks[0, 3], rows[3])


class Momask:
    """MoMask's residual quantizer in training, level by level, as its paper's code has it.

    Args:
        temperature: of the Gumbel noise on its choices, which is drawn as ours is.
    """

    def __init__(self, levels, nb_code, temperature, mu=0.99):
        self.levels, self.nb_code, self.temperature, self.mu = levels, nb_code, temperature, mu
        self.books = self.sums = self.counts = None

    def choose(self, residual, book, step, level):
        distances = torch.cdist(residual.double(), book.double()).square()
        if self.temperature:
            generator = torch.Generator().manual_seed(fold_seed("noise", 0, step, 0, 0, level))
            gumbel = -torch.empty(distances.shape).exponential_(generator=generator).log_()
            distances = distances - self.temperature * gumbel
        return distances.argmin(dim=1)

    def initialize(self, rows):
        """Each level's first rows, of what the codes of the levels before left."""
        self.books, residual = [], rows.detach()
        for level in range(self.levels):
            book = residual[: self.nb_code].clone()
            self.books.append(book)
            residual = residual - book[self.choose(residual, book, 0, level)]
        self.sums, self.counts = [book.clone() for book in self.books], [torch.ones(self.nb_code)] * self.levels

    def step(self, rows, step):
        """What the levels quantized to, their codes and the commitment loss of one forward pass, which moves them."""
        residual, quantized, codes, losses = rows, 0, [], []
        for level, book in enumerate(self.books):
            code = self.choose(residual.detach(), book, step, level)
            vector = book[code]
            hot = torch.nn.functional.one_hot(code, len(book)).to(rows.dtype)
            self.sums[level] = self.mu * self.sums[level] + (1 - self.mu) * (hot.T @ residual.detach())
            self.counts[level] = self.mu * self.counts[level] + (1 - self.mu) * hot.sum(dim=0)
            alive, first = (self.counts[level] >= 1).unsqueeze(1), residual.detach()[: len(book)]
            self.books[level] = torch.where(alive, self.sums[level] / self.counts[level].unsqueeze(1), first)
            losses.append((residual - vector).square().mean())
            quantized = quantized + residual + (vector - residual).detach()
            residual = residual - vector
            codes.append(code)
        return quantized, torch.stack(codes, dim=-1), torch.stack(losses).mean()


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_lineage_is_momasks_arithmetic_over_many_steps(temperature):
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(3, 16, 4, lineage=True, sample_codebook_temp=temperature).train()
    momask = Momask(3, 16, temperature)
    replaced = 0
    for step in range(60):
        # Latents that drift away leave codes behind.
        latents = (torch.randn(2, 16, 4) + 0.05 * step).requires_grad_()
        mirrored = latents.detach().clone().requires_grad_()
        quantizer.set_step(0, step)
        if step == 0:
            quantizer.initialize_codebooks(latents)
            momask.initialize(mirrored.reshape(-1, 4))
            torch.testing.assert_close(quantizer.codebooks, torch.stack(momask.books))
        quantized, codes, commit_loss, _ = quantizer(latents)
        before = momask.counts.copy()
        expected = momask.step(mirrored.reshape(-1, 4), step)
        torch.testing.assert_close(quantized.reshape(-1, 4), expected[0])
        assert torch.equal(codes.reshape(-1, 3), expected[1])
        torch.testing.assert_close(commit_loss, expected[2])
        (quantized.pow(3).mean() + 0.02 * commit_loss).backward()
        (expected[0].pow(3).mean() + 0.02 * expected[2]).backward()
        torch.testing.assert_close(latents.grad, mirrored.grad)
        quantizer.update_codebooks()
        torch.testing.assert_close(quantizer.codebooks, torch.stack(momask.books))
        torch.testing.assert_close(quantizer.ema_count, torch.stack(momask.counts))
        replaced += sum(int(((was >= 1) & (now < 1)).sum()) for was, now in zip(before, momask.counts, strict=True))
    assert replaced > 10


def test_lineage_sets_copies_apart_where_the_batch_has_fewer_rows_than_codes():
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(1, 16, 4, lineage=True).train()
    rows = torch.randn(1, 6, 4)
    quantizer.initialize_codebooks(rows)
    for step in range(2):
        apart = quantizer.codebooks[0] - rows[0].repeat(3, 1)[:16]
        assert 0.002 < apart.std() < 0.01 and len(quantizer.codebooks[0].unique(dim=0)) == 16
        # All codes but a few die at once: 6 rows do not keep 16 counts over 1.
        rows = torch.randn(1, 6, 4)
        quantizer.set_step(0, step)
        quantizer(rows)
        quantizer.ema_count.zero_()
        quantizer.update_codebooks()


def test_perplexity_of_counts():
    counts = torch.tensor([[5.0, 5.0, 5.0, 5.0], [20.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(perplexity_of(counts), torch.tensor([4.0, 1.0, 0.0]))


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


def test_the_first_of_the_least_is_found_as_argmin_does():
    distances = torch.randint(0, 50, (300, 1024)).float()
    assert torch.equal(first_least(distances), distances.argmin(dim=1))
    assert torch.equal(first_least(distances[:, :1000]), distances[:, :1000].argmin(dim=1))
    distances[7, 400] = torch.nan
    assert first_least(distances)[7] == 400
