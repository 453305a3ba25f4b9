"""The gradient of a rank's part: sums over micro batches, buckets without gradients, padding, the norm."""

import pytest
import torch
from torch import nn

from ds_rvqvae.train.zero.gradients import PartGradient
from ds_rvqvae.train.zero.weights import Bucket


def _buckets(sizes, take):
    layers = [nn.Linear(size, 1, bias=False) for size in sizes]
    flat = torch.zeros(sum(sizes))
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [
        Bucket(place, flat, starts[index], [(layers[index], "weight", layers[index].weight)], take)
        for place, index in enumerate(reversed(range(len(sizes))))
    ]


def _part(size, padding=0, accumulates=False):
    gradient = PartGradient(0, 1, size, padding, torch.float32, True, accumulates, None)
    return gradient, _buckets([3, 2, 4], gradient.take)


def _give(gradient, buckets, *indices):
    for index in indices:
        size = buckets[index].stop - buckets[index].start
        gradient.take(buckets[index], [torch.full((1, size), float(index + 1))])


def test_buckets_in_any_order_and_their_norm():
    gradient, buckets = _part(9)
    _give(gradient, buckets, 2, 0, 1)
    gradient.end_micro_batch(buckets)
    values, norm = gradient.pop(torch.float32)
    assert values.tolist() == [3, 3, 3, 2, 2, 1, 1, 1, 1]
    assert float(norm) == pytest.approx((27 + 8 + 4) ** 0.5)


def test_micro_batches_add_up_and_padding_is_zero():
    gradient, buckets = _part(10, padding=1, accumulates=True)
    for _ in range(3):
        _give(gradient, buckets, 0, 1, 2)
        gradient.end_micro_batch(buckets)
    assert gradient.pop(torch.float32)[0].tolist() == [9, 9, 9, 6, 6, 3, 3, 3, 3, 0]
    _give(gradient, buckets, 0, 1, 2)
    gradient.end_micro_batch(buckets)
    assert gradient.pop(torch.float32)[0].tolist() == [3, 3, 3, 2, 2, 1, 1, 1, 1, 0], "the next step begins anew"


@pytest.mark.parametrize("given", [(0,), (2,), (0, 2)])
def test_a_bucket_that_takes_no_part_has_no_gradient(given):
    gradient, buckets = _part(9)
    _give(gradient, buckets, *given)
    gradient.end_micro_batch(buckets)
    values = gradient.pop(torch.float32)[0]
    for index, bucket in enumerate(buckets):
        expected = float(index + 1) if index in given else 0.0
        assert values[bucket.start : bucket.stop].eq(expected).all()


def test_a_second_backward_pass_and_a_step_without_one_are_refused():
    gradient, buckets = _part(9)
    _give(gradient, buckets, 0)
    with pytest.raises(RuntimeError, match="second backward pass"):
        _give(gradient, buckets, 0)
    empty, buckets = _part(9)
    empty.end_micro_batch(buckets)
    with pytest.raises(RuntimeError, match="no gradient"):
        empty.pop(torch.float32)


@pytest.mark.parametrize("size", [5, 1024, 5000, 3_000_001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_of_many_numbers_is_exact(size, dtype):
    """torch's own norm on CPUs is off by 1e-4 and more from some million numbers on."""
    values = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(dtype)
    gradient = PartGradient(0, 1, size, 0, dtype, True, False, None)
    (bucket,) = _buckets([size], gradient.take)
    gradient.take(bucket, [values.view(1, -1)])
    gradient.end_micro_batch([bucket])
    found = gradient.pop(torch.float32)[1]
    assert float(found) == pytest.approx(float(values.double().norm()), rel=3e-6)
