"""Seeds that are equal on all ranks, and gathering with only one rank."""

import itertools

import torch

from ds_rvqvae.model.ranks import fold_seed, gather_rows, seed_device, world_of


def test_a_seed_is_the_same_on_every_machine():
    # BLAKE2b of the parts' text, 8 bytes, little-endian, without the lowest bit.
    assert fold_seed("levels", 0, 5) == 6548005936390116052
    assert fold_seed("noise", 1, 2, 3, 4, 0) == 7528860445409316436


def test_any_change_of_the_parts_is_another_seed_in_the_range_that_torch_takes():
    parts = [("a", *numbers) for numbers in itertools.product(range(6), repeat=3)]
    parts += [("b", 0, 0, 0), ("a", 0, 0), ("a", "0", 0, 0), (0, "a", 0, 0), ("a", 2**63 - 1, 0, 0)]
    seeds = {fold_seed(*each) for each in parts}
    assert len(seeds) == len(parts) and all(0 <= seed < 2**63 for seed in seeds)
    torch.Generator().manual_seed(max(seeds))


def test_seeding_one_device_gives_the_draws_of_torchs_own_seeding():
    for seed in (0, fold_seed("dropout", 1, 2, 3, 4), 2**63 - 1):
        torch.manual_seed(seed)
        expected = torch.randn(3), torch.empty(3, dtype=torch.int64).random_()
        seed_device(torch.device("cpu"), seed)
        assert torch.equal(torch.randn(3), expected[0])
        assert torch.equal(torch.empty(3, dtype=torch.int64).random_(), expected[1])


def test_without_other_ranks_rows_are_ones_own():
    rows = torch.randn(5, 3)
    assert world_of(None) == (1, 0) and gather_rows(rows, None) is rows
