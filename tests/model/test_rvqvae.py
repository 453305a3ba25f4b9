"""The model: motion to codes and back, the profile's quantizer, and random draws as a function of seed and step."""

import pytest
import torch

from ds_rvqvae import RVQVAE, ResidualQuantizer, load_profile
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.model.fsq import ScalarQuantizer
from ds_rvqvae.model.momask import MoMaskQuantizer
from ds_rvqvae.model.rvqvae import quantizer_of
from tests.model.small import SMALL


def test_input_noise_reaches_the_encoder_in_training_alone():
    settings = ["rvqvae.model.width=32", "rvqvae.model.dropout=0", "rvqvae.model.quantize_dropout_prob=0"]
    profile = load_profile("demo", [*settings, "rvqvae.model.input_noise=0.5"])
    model, motion = RVQVAE(12, profile.rvqvae.model), torch.randn(2, 32, 12)
    seen = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].transpose(1, 2)))
    for step in (0, 0, 1):
        model.set_step(0, step)
        model(motion)
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    assert 0.45 < (seen[0] - motion).std() < 0.55
    model.eval()(motion)
    model.encode(motion)
    assert torch.equal(seen[3], motion) and torch.equal(seen[4], motion)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, ResidualQuantizer),
        ({"lineage": True}, MoMaskQuantizer),
        ({"fsq_levels": [4, 4], "nb_code": 16, "code_dim": 2}, ScalarQuantizer),
    ],
)
def test_a_profile_makes_the_quantizer_that_it_asks_for(options, kind):
    config = ModelConfig(num_quantizers=2, quantize_dropout_prob=0.5, quantize_dropout_min_levels=2, **options)
    quantizer = quantizer_of(config)
    assert type(quantizer) is kind and quantizer.starts_with_first_step == (kind is MoMaskQuantizer)
    assert (quantizer.num_quantizers, quantizer.nb_code, quantizer.code_dim) == (2, config.nb_code, config.code_dim)
    assert (quantizer.quantize_dropout_prob, quantizer.quantize_dropout_min_levels) == (0.5, 2)


def test_forward_and_decode_of_its_codes_agree():
    torch.manual_seed(0)
    model = RVQVAE(5, SMALL).eval()
    motion = torch.randn(2, 16, 5)
    output = model(motion)
    assert torch.equal(output.codes, model.encode(motion))
    torch.testing.assert_close(model.decode(output.codes), output.reconstruction, atol=1e-6, rtol=0)


def test_input_is_not_changed():
    model = RVQVAE(5, SMALL)
    motion = torch.randn(2, 16, 5)
    before = motion.clone()
    model(motion)
    assert torch.equal(motion, before)


def test_wrong_shapes_are_refused():
    model = RVQVAE(5, SMALL)
    with pytest.raises(ValueError, match="takes \\[batch, time, 5\\]"):
        model(torch.randn(2, 16, 6))
    with pytest.raises(ValueError, match="multiple of 4, the frames per code"):
        model(torch.randn(2, 18, 5))


def test_dropout_is_a_function_of_seed_step_micro_step_and_rank():
    model = RVQVAE(5, SMALL)
    motion = torch.randn(2, 16, 5)

    def reconstruction(*place):
        model.set_step(*place)
        return model(motion).reconstruction

    reference = reconstruction(1, 2, 3, 4)
    assert torch.equal(reference, reconstruction(1, 2, 3, 4))
    for place in [(0, 2, 3, 4), (1, 0, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0)]:
        assert not torch.equal(reference, reconstruction(*place))


def test_a_model_without_dropout_and_noise_leaves_torchs_generator():
    model, before = RVQVAE(5, SMALL.model_copy(update={"dropout": 0.0})), torch.get_rng_state()
    model.set_step(1, 2)
    assert torch.equal(torch.get_rng_state(), before)
    RVQVAE(5, SMALL.model_copy(update={"dropout": 0.0, "input_noise": 0.1})).set_step(1, 2)
    assert not torch.equal(torch.get_rng_state(), before)


def test_each_prefix_of_levels_decodes_and_a_dropped_level_adds_nothing():
    torch.manual_seed(0)
    model = RVQVAE(5, SMALL).eval()
    codes = torch.randint(0, 16, (2, 4, 3))
    assert model.decode(codes).shape == (2, 16, 5)
    dropped = codes.clone()
    dropped[..., 2] = -1
    torch.testing.assert_close(model.decode(codes[..., :2]), model.decode(dropped))


def test_the_checkpoint_wraps_each_residual_stack_once_while_training():
    model, calls = RVQVAE(5, SMALL), []
    model.set_checkpointing(lambda function, value: calls.append(value.shape) or function(value))
    motion = torch.randn(2, 16, 5)
    model(motion)
    # Two stages down, at 8 and 4 frames, and two up, at 4 and 8.
    assert [shape[-1] for shape in calls] == [8, 4, 4, 8]
    model.eval()(motion)
    model.train().set_checkpointing(None)
    model(motion)
    assert len(calls) == 4
