"""MoMask's quantizer, compared with the arithmetic of its paper's code."""

import pytest
import torch

from ds_rvqvae import ResidualQuantizer
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.model.momask import MoMaskQuantizer
from ds_rvqvae.model.ranks import fold_seed
from ds_rvqvae.model.rvqvae import quantizer_of
from tests.model.quantizing import make


def test_a_profiles_options_reach_it():
    options = {"shared_codebook": True, "mu": 0.5, "sample_codebook_temp": 0.25, "sample_anneal_iter": 9}
    quantizer = quantizer_of(ModelConfig(lineage=True, **options))
    assert {name: getattr(quantizer, name) for name in options} == options
    assert quantizer.replacements == quantizer.nb_code and len(quantizer.codebooks) == 1


def test_its_state_is_that_of_any_residual_quantizer():
    assert list(MoMaskQuantizer(2, 16, 4).state_dict()) == list(ResidualQuantizer(2, 16, 4).state_dict())


def test_the_gradient_is_the_number_of_levels():
    quantizer, latents = make(6, kind=MoMaskQuantizer)
    jacobian = torch.autograd.functional.jacobian(lambda x: quantizer(x)[0], latents[:1, :2])
    torch.testing.assert_close(jacobian.reshape(8, 8), 6 * torch.eye(8))


def test_dead_codes_are_replaced_by_the_first_rows():
    quantizer, latents = make(levels=1, codes=16, kind=MoMaskQuantizer)
    rows = latents.reshape(-1, 4)
    assert torch.equal(quantizer.codebooks[0], rows[:16])
    quantizer.codebooks[0, 3] = 1000.0
    quantizer.ema_count[0, 3] = 0.5
    quantizer(latents)
    quantizer.update_codebooks()
    assert torch.equal(quantizer.codebooks[0, 3], rows[3])


class Momask:
    """MoMask's residual quantizer in training, level by level, as in its paper's code.

    Args:
        temperature: of the Gumbel noise on its choices, which is drawn like ours.
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
        """Takes each level's first rows, which are residuals of the levels before, as its codes."""
        self.books, residual = [], rows.detach()
        for level in range(self.levels):
            book = residual[: self.nb_code].clone()
            self.books.append(book)
            residual = residual - book[self.choose(residual, book, 0, level)]
        self.sums, self.counts = [book.clone() for book in self.books], [torch.ones(self.nb_code)] * self.levels

    def step(self, rows, step):
        """Runs a forward pass and its update; returns the quantized vectors, the codes and the commitment loss."""
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
def test_it_is_momasks_arithmetic_over_many_steps(temperature):
    torch.manual_seed(0)
    quantizer = MoMaskQuantizer(3, 16, 4, sample_codebook_temp=temperature).train()
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


def test_copies_are_set_apart_where_the_batch_has_fewer_rows_than_codes():
    torch.manual_seed(0)
    quantizer = MoMaskQuantizer(1, 16, 4).train()
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
