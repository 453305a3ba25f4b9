"""First codes: none equal to another of its level, whatever the vectors; what a level leaves to the next."""

import pytest
import torch

from ds_rvqvae import ResidualQuantizer
from ds_rvqvae.model.first_codes import first_codes, left_out_residuals


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def equal_codes(quantizer):
    """How many codes of each level equal an earlier one of it."""
    return [len(book) - len(book.unique(dim=0)) for book in quantizer.codebooks]


def on_a_surface(vectors, columns=128):
    """Vectors that vary in eight directions only, about a mean, as the latents of nets do."""
    torch.manual_seed(0)
    return torch.randn(vectors, 8) @ torch.randn(8, columns) + 3 * torch.randn(columns)


@pytest.mark.parametrize("vectors", [512, 1024, 2560, 17920])
@pytest.mark.parametrize("make", [on_a_surface, lambda vectors: torch.randn(vectors, 128, generator=generator())])
def test_no_two_codes_of_a_level_are_equal(vectors, make):
    quantizer = ResidualQuantizer(6, 1024, 128)
    quantizer.initialize_codebooks(make(vectors).reshape(-1, 32, 128))
    assert equal_codes(quantizer) == [0] * 6


HALF = torch.arange(640.0)
AWKWARD = {
    "a lattice": torch.stack([HALF % 32, HALF // 32], dim=1),
    "each twice": torch.randn(320, 2, generator=generator()).repeat(2, 1),
    "a rounding apart": torch.randn(320, 2, generator=generator()).repeat(2, 1)
    * (1 + 1e-7 * (HALF > 319)).unsqueeze(1),
    "far from zero": torch.randn(640, 2, generator=generator()) * 1e-3 + 5,
    "one vector": torch.ones(640, 2),
    "zeros": torch.zeros(640, 2),
    "one and many": torch.cat([torch.zeros(600, 2), torch.randn(40, 2, generator=generator())]),
    "huge": torch.randn(640, 2, generator=generator()) * 1e18,
    "tiny": torch.randn(640, 2, generator=generator()) * 1e-18,
}


@pytest.mark.parametrize("rows", AWKWARD.values(), ids=AWKWARD.keys())
@pytest.mark.parametrize("options", [{}, {"codebook_init": "kmeans"}, {"codebook_distance": "cosine"}])
def test_awkward_vectors_give_distinct_finite_codes(rows, options):
    quantizer = ResidualQuantizer(4, 64, 2, **options)
    quantizer.initialize_codebooks(rows.reshape(10, 64, 2))
    assert torch.isfinite(quantizer.codebooks).all()
    assert equal_codes(quantizer) == [0] * 4
    repeated = ResidualQuantizer(4, 64, 2, **options)
    repeated.initialize_codebooks(rows.reshape(10, 64, 2))
    assert torch.equal(repeated.codebooks, quantizer.codebooks)


def test_vectors_that_repeat_are_drawn_once_while_others_are_left():
    rows = torch.randn(64, 3, generator=generator()).repeat(5, 1)
    codes, found = first_codes(rows, 64, kind="samples", generator=generator())
    assert found == 64 and len(codes.unique(dim=0)) == 64
    assert {tuple(code) for code in codes.tolist()} == {tuple(row) for row in rows.tolist()}


def test_codes_that_are_missing_are_copies_at_a_hundredth_of_the_spread():
    rows = torch.randn(20, 16, generator=generator()) * 1000
    codes, found = first_codes(rows, 50, kind="samples", generator=generator())
    spread = (rows - rows.mean(dim=0)).square().sum(dim=1).mean().sqrt()
    assert found == 20
    moved = (codes[20:] - codes[:20].repeat(2, 1)[:30]).norm(dim=1) / spread
    assert moved.min() > 0.003 and moved.max() < 0.03


def test_directions_are_drawn_once_where_only_they_count():
    rows = torch.randn(40, 3, generator=generator())
    rows = torch.cat([rows, 2 * rows, 3 * rows])
    codes, found = first_codes(rows, 40, kind="samples", generator=generator(), direction_only=True)
    directions = torch.nn.functional.normalize(codes)
    assert found == 40 and (torch.cdist(directions, directions) + torch.eye(40)).min() > 1e-3


def test_kmeans_centres_that_fall_together_are_one():
    # Three clusters of equal vectors: four centres started from noise end on three places.
    rows = torch.eye(3).repeat_interleave(50, dim=0)
    codes, found = first_codes(rows, 4, kind="kmeans", generator=generator())
    assert found == 3 and len(codes.unique(dim=0)) == 4


def test_a_vector_that_is_a_code_leaves_what_the_next_nearest_leaves():
    book = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 5.0]])
    rows = torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.0, 5.0], [0.9, 0.0]])
    left = left_out_residuals(rows, book)
    torch.testing.assert_close(left, torch.tensor([[-1.0, 0.0], [0.1, 0.0], [0.0, 5.0], [-0.1, 0.0]]))


def test_residuals_do_not_shrink_to_nothing_where_all_vectors_are_codes():
    quantizer = ResidualQuantizer(6, 256, 8)
    latents = torch.randn(1, 256, 8, generator=generator())
    quantizer.initialize_codebooks(latents)
    sizes = quantizer.codebooks.square().sum(dim=-1).mean(dim=1).sqrt()
    assert (sizes[1:] > 0.4 * sizes[:-1]).all()


def test_a_shared_codebook_is_that_of_the_first_level():
    shared, own = (ResidualQuantizer(3, 32, 4, shared_codebook=share) for share in (True, False))
    latents = torch.randn(2, 40, 4, generator=generator())
    for quantizer in (shared, own):
        quantizer.initialize_codebooks(latents)
    assert torch.equal(shared.codebooks[0], own.codebooks[0])
