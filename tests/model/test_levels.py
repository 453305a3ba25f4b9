"""The base class of quantizers: which levels a step uses, counts of uses, buffers that stay fp32."""

import torch

from ds_rvqvae import RVQVAE
from tests.model.quantizing import make
from tests.model.small import SMALL


def test_level_dropout_leaves_the_first_levels():
    quantizer, latents = make(levels=6, quantize_dropout_prob=1.0, quantize_dropout_min_levels=4)
    seen = set()
    for step in range(40):
        quantizer.set_step(0, step)
        seen.add(int((quantizer(latents)[1][0, 0] >= 0).sum()))
    assert seen == {4, 5, 6}


def test_bf16_leaves_codebooks_in_fp32():
    model = RVQVAE(5, SMALL)
    before = model.quantizer.codebooks.clone()
    model.to(torch.bfloat16)
    assert torch.equal(model.quantizer.codebooks, before)
    assert model.quantizer.ema_sum.dtype == model.quantizer.ema_count.dtype == torch.float32
    output = model(torch.randn(2, 16, 5))
    assert output.reconstruction.dtype == torch.float32
    assert output.commit_loss.dtype == torch.float32


def test_dropout_is_for_training_alone_as_often_as_asked_and_the_same_on_every_rank():
    quantizer, _ = make(levels=6, quantize_dropout_prob=0.25)
    found = []
    for step in range(2000):
        quantizer.set_step(3, step, micro_step=step % 5, rank=step % 7)
        found.append(quantizer.active_levels())
        quantizer.set_step(3, step)
        assert quantizer.active_levels() == found[-1]
    # A quarter of the steps may drop levels, and a sixth of these drops none: 5 / 24 of all, within 4 deviations.
    assert abs(sum(levels < 6 for levels in found) / 2000 - 5 / 24) < 4 * (5 / 24 * 19 / 24 / 2000) ** 0.5
    assert set(found) == {1, 2, 3, 4, 5, 6}
    quantizer.eval()
    for step in range(50):
        quantizer.set_step(3, step)
        assert quantizer.active_levels() == 6


def test_uses_are_counted_by_level_and_taken_once():
    quantizer, latents = make(levels=3, codes=16)
    codes = quantizer(latents)[1]
    expected = torch.stack([torch.bincount(codes[..., level].flatten(), minlength=16) for level in range(3)]).float()
    assert torch.equal(quantizer.staged_counts(), expected) and not quantizer.usage_counts.any()
    quantizer.update_codebooks()
    assert torch.equal(quantizer.take_usage_counts(), expected) and not quantizer.take_usage_counts().any()


def test_what_is_dropped_is_not_committed():
    quantizer, latents = make(levels=2)
    before = quantizer.codebooks.clone()
    quantizer(latents)
    quantizer.drop_staged()
    assert not quantizer.staged.any()
    quantizer(latents)
    quantizer.update_codebooks(applied=False)
    assert torch.equal(quantizer.codebooks, before) and not quantizer.take_usage_counts().any()
