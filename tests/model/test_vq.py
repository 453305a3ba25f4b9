"""Arithmetic of codes and vectors."""

import torch

from ds_rvqvae.model.vq import first_least, perplexity_of, ranking_distances, searched_books, squared_distances


def test_distances_are_those_of_differences_and_the_ranking_ones_lack_the_rows_squares():
    torch.manual_seed(0)
    rows, book = torch.randn(50, 7), torch.randn(20, 7)
    expected = (rows[:, None].double() - book.double()).square().sum(dim=-1)
    torch.testing.assert_close(squared_distances(rows.double(), book.double()), expected)
    (searched,) = searched_books(book.unsqueeze(0))
    ranking = ranking_distances(rows, searched)
    torch.testing.assert_close(ranking + rows.square().sum(dim=1, keepdim=True), expected.float(), atol=1e-4, rtol=1e-5)
    assert torch.equal(ranking.argmin(dim=1), expected.argmin(dim=1))
    assert ranking_distances(rows[:0], searched).shape == (0, 20)


def test_perplexity_of_counts():
    counts = torch.tensor([[5.0, 5.0, 5.0, 5.0], [20.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(perplexity_of(counts), torch.tensor([4.0, 1.0, 0.0]))


def test_the_first_of_the_least_is_found_as_argmin_does():
    distances = torch.randint(0, 50, (300, 1024)).float()
    assert torch.equal(first_least(distances), distances.argmin(dim=1))
    assert torch.equal(first_least(distances[:, :1000]), distances[:, :1000].argmin(dim=1))
    assert torch.equal(first_least(distances[:5]), distances[:5].argmin(dim=1))
    distances[7, 400] = torch.nan
    assert first_least(distances)[7] == 400
