"""The prediction of `benchmarks/scaling.py`: timelines computed by hand, and the shipped profiles."""

from argparse import Namespace
from itertools import pairwise

import pytest

from benchmarks import scaling
from ds_rvqvae.config.profile import load_profile
from ds_rvqvae.gpu.sizes import bucket_bounds, parameter_sizes

ASSUMED = Namespace(bench=None, mfu=0.4, card="4090")
PCIE = "PCIe, then Ethernet"


def predicted(name, *settings, ranks=7, host=0.0, late=False):
    profile, compute, _ = scaling.compute_seconds(load_profile(name, list(settings)), ASSUMED)
    return scaling.predict(profile, PCIE, ranks, compute, host=host, late=late)


def bucket_size(elements):
    return f"zero_optimization.reduce_bucket_size={elements}"


def all_reduce(elements, ranks=7):
    """Seconds of an all-reduce of bf16 gradients over PCIe: 0.7 of 31.5 GB/s, 20 microseconds per hop."""
    rounds = 2 * (ranks - 1)
    return rounds * 2 * elements / ranks / (0.7 * 31.5e9) + rounds * 20e-6


def test_a_bucket_waits_for_its_gradients_and_for_the_link():
    assert scaling.end_of_reductions([1, 2, 4], [2, 2, 1], in_flight=2) == 6
    assert scaling.end_of_reductions([1, 2, 9], [2, 2, 1], in_flight=2) == 10


def test_the_backward_pass_waits_where_too_many_buckets_are_in_flight():
    """With two, the third bucket begins at 6 in place of 3, when the first is reduced, and all later ones 3 later."""
    assert scaling.end_of_reductions([1, 2, 3, 20], [5, 1, 1, 1], in_flight=2) == 24
    assert scaling.end_of_reductions([1, 2, 3, 20], [5, 1, 1, 1], in_flight=3) == 21
    assert scaling.end_of_reductions([1, 2, 10], [5, 1, 1], in_flight=1) == 15, "the second at 6 in place of 2"


def test_deepspeed_reduces_a_bucket_when_the_next_gradient_does_not_fit():
    bounds = scaling.buckets([3, 4, 5, 2, 6, 1], 8, late=True)
    assert bounds == [(4, 6), (2, 4), (0, 2)]
    assert scaling.late_starts([9, 8, 7, 5, 4, 1], bounds) == [5, 8, 9]


def test_one_bucket_is_reduced_after_the_backward_pass():
    elements = sum(parameter_sizes(78, load_profile("baseline").rvqvae.model))
    for late in (False, True):
        found = predicted("baseline", bucket_size(20_000_000), late=late)
        assert found["parts_s"]["gradients"] == pytest.approx(all_reduce(elements))


def test_of_two_buckets_the_first_is_hidden():
    sizes = parameter_sizes(78, load_profile("baseline").rvqvae.model)
    (first, last) = bucket_bounds(sizes, 11_500_000)
    assert first[0] == last[1]
    found = predicted("baseline", bucket_size(11_500_000))["parts_s"]["gradients"]
    assert found == pytest.approx(all_reduce(sum(sizes[: last[1]])))


def test_what_follows_the_backward_pass_is_not_hidden():
    parts = predicted("baseline")["parts_s"]
    number = 12 * 20e-6
    assert parts["norm"] == 0
    assert predicted("baseline", "gradient_accumulation_steps=2")["parts_s"]["norm"] == pytest.approx(number)
    assert predicted("baseline", late=True)["parts_s"]["norm"] == pytest.approx(2 * number)
    assert parts["weights"] == pytest.approx(35_376_544 * 6 / 7 / (0.7 * 31.5e9) + 6 * 20e-6, rel=1e-6)
    codebooks = 3_956_740 * 12 / 7 / (0.7 * 31.5e9) + 12 * 20e-6
    assert predicted("baseline", late=True)["parts_s"]["codebooks"] == pytest.approx(codebooks, rel=1e-6)


def test_codebooks_are_summed_during_the_backward_pass_and_delay_the_buckets():
    assert predicted("baseline")["parts_s"]["codebooks"] == 0
    assert scaling.end_of_reductions([1, 2, 4], [2, 2, 1], in_flight=2, link_free=3) == 8
    assert scaling.end_of_reductions([1, 2, 9], [2, 2, 1], in_flight=2, link_free=3) == 10
    # So many ranks that the sum takes longer than the backward pass: the rest of it counts once.
    parts = predicted("baseline", bucket_size(20_000_000), ranks=1024)["parts_s"]
    alone = predicted("baseline", bucket_size(20_000_000), ranks=1024, late=True)["parts_s"]
    backward = scaling.backward_seconds(load_profile("baseline"), parts["compute"])
    assert parts["codebooks"] == pytest.approx(alone["codebooks"] - backward)
    assert parts["gradients"] == pytest.approx(alone["gradients"])


def test_recomputation_is_in_the_step_of_one_gpu_and_of_many():
    plain = "rvqvae.training.gradient_checkpointing=false"
    # Three convolutions of each residual stack run again: 96.6 of 481.4 GFLOP.
    for ranks in (1, 7):
        ratio = predicted("baseline", ranks=ranks)["parts_s"]["compute"]
        ratio /= predicted("baseline", plain, ranks=ranks)["parts_s"]["compute"]
        assert ratio == pytest.approx(1 + 96.636 / 481.359, rel=1e-4)


def test_a_measured_step_is_of_one_gpu(tmp_path):
    file = tmp_path / "bench.json"
    file.write_text('{"step_s": 0.5, "activation_checkpointing": false, "checkpointed_step_s": 0.6, "device": "G"}')
    measured = Namespace(bench=file)
    profile, seconds, _ = scaling.compute_seconds(load_profile("baseline"), measured)
    assert (profile.rvqvae.training.gradient_checkpointing, seconds) == (True, 0.6)
    file.write_text('{"step_s": 0.5, "activation_checkpointing": false, "device": "G"}')
    profile, seconds, _ = scaling.compute_seconds(load_profile("baseline"), measured)
    assert (profile.rvqvae.training.gradient_checkpointing, seconds) == (False, 0.5)


def test_a_step_takes_at_least_the_hosts_time():
    alone = predicted("baseline", ranks=1)
    assert (alone["efficiency"], alone["step_s"]) == (1, alone["parts_s"]["compute"])
    assert predicted("baseline", host=0.005) == {**predicted("baseline"), "host_s": 0.005}, "compute takes longer"
    slow = predicted("baseline", host=0.02)
    assert predicted("baseline", ranks=1, host=0.02)["step_s"] == slow["parts_s"]["host"] == 0.02
    assert slow["efficiency"] == pytest.approx(0.02 / slow["step_s"])
    assert slow["step_s"] > 0.02 + predicted("baseline")["parts_s"]["weights"], "communication comes on top"


def test_nothing_is_hidden_without_overlap_and_in_a_compiled_step():
    sizes = parameter_sizes(78, load_profile("baseline").rvqvae.model)
    buckets = bucket_bounds(sizes, load_profile("baseline").zero_optimization.reduce_bucket_size)
    whole = sum(all_reduce(sum(sizes[first:stop])) for first, stop in buckets)
    for setting in ("zero_optimization.overlap_comm=false", "rvqvae.training.compile=true"):
        assert predicted("baseline", setting)["parts_s"]["gradients"] == pytest.approx(whole)


def test_each_micro_batch_waits_for_its_own_gradients_in_stage_2():
    once = predicted("baseline")["parts_s"]["gradients"]
    twice = predicted("baseline", "gradient_accumulation_steps=2")["parts_s"]["gradients"]
    assert twice == pytest.approx(2 * once), "by then the link has summed the codebooks"


@pytest.mark.parametrize(("name", "least"), [("baseline", 0.75), ("best", 0.75), ("wide", 0.85), ("large", 0.9)])
def test_seven_gpus_over_pcie(name, least):
    found = predicted(name)
    assert found["efficiency"] >= least
    assert found["efficiency"] > predicted(name, bucket_size(20_000_000), late=True)["efficiency"]


@pytest.mark.parametrize("name", ["baseline", "best", "wide", "large", "demo"])
def test_no_other_size_of_buckets_is_clearly_better(name):
    elements = sum(parameter_sizes(78, load_profile(name).rvqvae.model))
    sizes = [elements * part // 64 for part in (1, 2, 4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)]
    others = [predicted(name, bucket_size(size))["efficiency"] for size in sizes]
    assert predicted(name)["efficiency"] > max(others) - 1e-3


def test_more_ranks_are_less_efficient_on_one_machine():
    found = [predicted("large", ranks=ranks)["efficiency"] for ranks in (1, 2, 4, 7)]
    assert all(more > fewer for more, fewer in pairwise(found))


def test_the_table_fits_80_columns():
    rows = [
        {"profile": "baseline", "cluster": cluster, "compute": "", **predicted("baseline", ranks=1024, host=0.02)}
        for cluster in scaling.CLUSTERS
    ]
    lines = scaling.text(rows).splitlines()
    assert max(map(len, lines)) <= 80 and "host 20 ms per step" in lines[0]
