"""Buffers of quantizers by arithmetic, compared by name and byte with the real modules."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ds_rvqvae import RVQVAE
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.gpu.quantizers import buffer_bytes, quantizer_pass
from tests.settings import SMALL, models_with_another


def model_of(config):
    with torch.device("meta"):
        return RVQVAE(30, config)


def wrongly_counted(model):
    """The differences between a model's buffers and those in the memory plan."""
    planned = {f"quantizer.{name}": count for name, count in buffer_bytes(model.config).items()}
    there = {name: buffer.nbytes for name, buffer in model.named_buffers()}
    owners = {f"{path}.{name}": module for path, module in model.named_modules() for name, _ in module.named_buffers()}
    return [
        f"{type(owners[name]).__name__}: buffer {name} has {there[name]} bytes, the memory plan counts "
        f"{planned.get(name, 'none')}; see buffer_bytes in ds_rvqvae/gpu/quantizers.py"
        if name in there
        else f"{name}: the memory plan counts {planned[name]} bytes of a buffer that is not there"
        for name in {**there, **planned}
        if there.get(name) != planned.get(name)
    ]


@pytest.mark.parametrize("key", ModelConfig.model_fields)
def test_the_plan_knows_every_buffer(key):
    for config in (SMALL, *models_with_another(key)):
        assert not (wrong := wrongly_counted(model_of(config))), "\n".join([str(config), *wrong])


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("lineage", [False, True])
@pytest.mark.parametrize("nb_code", [16, 64, 1024])
def test_the_plan_knows_buffers_of_all_sizes(shared, lineage, nb_code):
    """The number of replaceable codes has a different rule from 64 on, from 256 on, and in MoMask's arithmetic."""
    config = SMALL.model_copy(update={"shared_codebook": shared, "lineage": lineage, "nb_code": nb_code})
    assert wrongly_counted(model_of(config)) == []


@pytest.mark.parametrize("key", ModelConfig.model_fields)
def test_the_plan_knows_the_operations_of_a_training_pass(key):
    for config in (SMALL, *models_with_another(key)):
        config = config.model_copy(update={"quantize_dropout_prob": 0.0})
        quantizer = RVQVAE(30, config).quantizer.train()
        quantizer.set_step(0, 0)
        quantizer.initialize_codebooks(torch.randn(64, config.code_dim))
        with FlopCounterMode(display=False) as counter:
            quantizer(torch.randn(4, 12, config.code_dim))
        assert quantizer_pass(config, 48).flops == counter.get_total_flops(), config


def test_a_buffer_that_it_does_not_know_is_named():
    model = model_of(SMALL)
    model.encoder[0].register_buffer("running_mean", torch.zeros(3), persistent=False)
    (text,) = wrongly_counted(model)
    assert text.startswith("Convolution: buffer encoder.0.running_mean has 12 bytes, the memory plan counts none")
    del model.quantizer.ema_count
    assert (
        wrongly_counted(model)[1]
        == "quantizer.ema_count: the memory plan counts 128 bytes of a buffer that is not there"
    )
