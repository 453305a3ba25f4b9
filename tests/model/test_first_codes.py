"""First codes: no two of a level are equal, whatever the vectors; and the residuals that a level leaves."""

import pytest
import torch

from ds_rvqvae import ResidualQuantizer
from ds_rvqvae.model.first_codes import distinct_rows, first_codes, left_out_residuals
from ds_rvqvae.model.vq import Pools, repeats


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def equal_codes(quantizer):
    """The number of codes of each level that equal an earlier code of that level."""
    return [len(book) - len(book.unique(dim=0)) for book in quantizer.codebooks]


def on_a_surface(vectors, columns=128):
    """Vectors that vary in only eight directions around a mean, like the latents of nets."""
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
    "very far from zero": torch.randn(640, 2, generator=generator()) * 1e-5 + 5,
    "as far as fp32 goes": torch.randn(640, 2, generator=generator()) * 5e-6 + 5,
    "with an outlier": torch.cat([torch.randn(639, 2, generator=generator()), torch.tensor([[1e6, 0.0]])]),
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


def test_centres_that_fall_together_are_one_and_vectors_take_their_place():
    rows = torch.randn(200, 3, generator=generator())
    centres = torch.cat([rows[:30], rows[:2]]) + 1
    candidates = torch.cat([centres, rows])
    places = distinct_rows(candidates, torch.arange(len(candidates)), 32)
    assert places.tolist() == [*range(30), 32, 33]
    backwards = distinct_rows(candidates, torch.arange(len(candidates)).flip(0), 231)
    assert len(backwards) == 230 and not {0, 1} & set(backwards.tolist())


def test_an_outlier_does_not_make_all_others_one():
    rows = torch.cat([torch.randn(2559, 128, generator=generator()), torch.full((1, 128), 1e6)])
    assert first_codes(rows, 1024, kind="samples", generator=generator())[1] == 1024


def test_how_many_codes_are_copies_is_said():
    quantizer = ResidualQuantizer(2, 64, 4)
    assert quantizer.initialize_codebooks(torch.randn(1, 40, 4, generator=generator())) >= 24
    assert quantizer.initialize_codebooks(torch.randn(1, 400, 4, generator=generator())) == 0


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


@pytest.mark.parametrize("options", [{}, {"codebook_distance": "cosine"}, {"shared_codebook": True}])
def test_codes_are_replaced_by_vectors_apart_from_all_others(options):
    """Few vectors and many dead codes: candidates are drawn with repeats, and some vectors are equal or zero."""
    torch.manual_seed(0)
    latents = torch.cat([torch.randn(30, 8).repeat(3, 1), torch.zeros(6, 8)]).reshape(1, -1, 8)
    made = {}
    for distinct in (True, False):
        quantizer = ResidualQuantizer(3, 64, 8, dead_code_threshold=0.5, **options).train()
        quantizer.initialize_codebooks(latents)
        quantizer.distinct_replacements = distinct
        most = 0
        for step in range(6):
            quantizer.set_step(0, step)
            quantizer(latents)
            quantizer.update_codebooks()
            most = max(most, sum(equal_codes(quantizer)))
        made[distinct] = most
    assert made[True] == 0 < made[False]


def test_what_repeats_a_code_or_an_earlier_candidate():
    books = torch.randn(2, 8, 3, generator=generator())
    candidates = torch.randn(2, 6, 3, generator=generator(1))
    candidates[0, 2] = candidates[0, 0] * (1 + 1e-7)
    candidates[1, 3], candidates[1, 5] = books[1, 4], candidates[1, 1]
    expected = [[False, False, True, False, False, False], [False, False, False, True, False, True]]
    vectors, pools = torch.cat([books, candidates], dim=1), Pools.of(2, 8, 6, books.device)
    assert repeats(vectors, pools).tolist() == expected
    assert repeats(vectors, pools, distances_at_once=60).tolist() == expected
