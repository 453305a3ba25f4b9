"""Sizes by arithmetic: ZeRO's buffers, gradients by rank, bytes between ranks."""

from ds_rvqvae.config.profile import load_profile
from ds_rvqvae.gpu.sizes import (
    bucket_bounds,
    flat_count,
    owned_gradient_counts,
    parameter_sizes,
    transfers_of,
    zero_bytes,
)


def test_each_rank_keeps_the_gradients_that_reach_into_its_part():
    profile = load_profile("baseline")
    counts = owned_gradient_counts(profile, [5, 3, 4], 3)
    # 12 elements and no padding: ranks own 0-3, 4-7, 8-11.
    assert flat_count([5, 3, 4], 3) == 12 and counts == [5, 8, 4]
    assert flat_count([5, 3], 2) == 8 and flat_count([5, 4], 2) == 12
    # Padded to 12: the second rank's piece ends with three zeros.
    assert owned_gradient_counts(profile, [5, 4], 2) == [9, 4 + 3]


def test_what_benchmarks_counted_on_two_ranks():
    gradients, weights, codebooks = transfers_of(load_profile("baseline"), 78, 2)
    assert gradients.payload_bytes + codebooks.payload_bytes == 39_333_285 - 5
    assert weights.payload_bytes == 35_376_544 and codebooks.payload_bytes == 3_956_740


def test_deepspeeds_own_step_has_large_buckets_though_the_model_is_small():
    large = ["zero_optimization.reduce_bucket_size=500000000"]
    profile = load_profile("demo", large)
    sizes = parameter_sizes(78, profile.rvqvae.model)
    assert zero_bytes(profile, sizes, 2).buckets == 2 * sum(sizes)
    held = zero_bytes(load_profile("demo", [*large, "zero_optimization.parameter_alignment=true"]), sizes, 2)
    assert held.buckets == 2 * 2 * 500_000_000
    assert held.reducing < 8 * held.parameters


def test_buckets_are_filled_from_the_first_parameter_and_the_last_of_the_backward_pass_is_smaller():
    assert bucket_bounds([3, 2, 5, 2, 6, 1, 4], 9) == [(6, 7), (4, 6), (2, 4), (0, 2)]
    assert bucket_bounds([3, 3, 5, 4], 9) == [(2, 4), (0, 2)], "two thirds of 9 fit into the last"
    assert bucket_bounds([1, 9, 2, 2], 4) == [(2, 4), (1, 2), (0, 1)], "a large parameter is a bucket of its own"
    assert bucket_bounds([3, 4], 7) == [(0, 2)], "a model that fits is one bucket"
    assert bucket_bounds([], 7) == []
