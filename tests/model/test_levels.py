"""What quantizers of levels share: which levels a step uses, the uses that they count, buffers that stay fp32."""

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
