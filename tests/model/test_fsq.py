"""Finite scalar quantization: its grid, its levels, its gradient, and all functions of a quantizer."""

import itertools
import math

import pytest
import torch

from ds_rvqvae import RVQVAE, MotionTokenizer, load_profile
from ds_rvqvae.errors import UserError
from ds_rvqvae.model.fsq import ScalarQuantizer
from ds_rvqvae.motion.layout import feature_layout
from ds_rvqvae.runs.tokenizers import open_single
from ds_rvqvae.tokenizer.foreign.writing import save_foreign
from tests.ranks import train_ranks
from tests.train.small import SMALL, read_metrics

GRID = (3, 4)
MODEL = ["rvqvae.model.fsq_levels=[3,4]", "rvqvae.model.nb_code=12", "rvqvae.model.code_dim=4"]


def make(code_dim, levels=4, grid=GRID, **options):
    torch.manual_seed(0)
    return ScalarQuantizer(levels, grid, code_dim, **options), torch.randn(4, 16, code_dim)


def test_codes_of_a_level_are_the_cells_of_a_grid():
    quantizer, _ = make(2, levels=1)
    vectors = quantizer.decode(torch.arange(12).unsqueeze(-1))
    centres = itertools.product([-3 / 4, -1 / 4, 1 / 4, 3 / 4], [-2 / 3, 0, 2 / 3])
    expected = torch.tensor([[third, quarter] for quarter, third in centres])
    torch.testing.assert_close(vectors, expected)
    assert torch.equal(quantizer.encode(vectors.atanh())[:, 0], torch.arange(12))


@pytest.mark.parametrize("code_dim", [2, 4, 6, 8])
def test_every_round_over_the_columns_divides_the_cells_of_the_one_before(code_dim):
    quantizer, latents = make(code_dim)
    rounds = [sum(level % (code_dim // 2) == group for level in range(4)) for group in range(code_dim // 2)]
    error = (quantizer.decode(quantizer.encode(latents)) - latents.tanh()).abs().flatten(0, 1).amax(0)
    for group, count in enumerate(rounds):
        for column, cells in enumerate(GRID):
            half = cells**-count
            assert half / 2 < error[2 * group + column] <= half * (1 + 1e-4)


@pytest.mark.parametrize("code_dim", [2, 8])
def test_each_prefix_of_levels_decodes_and_minus_one_adds_nothing(code_dim):
    quantizer, latents = make(code_dim)
    codes = quantizer.encode(latents)
    errors = []
    for levels in range(1, 5):
        dropped = codes.clone()
        dropped[..., levels:] = -1
        vectors = quantizer.decode(codes[..., :levels])
        assert torch.equal(vectors, quantizer.decode(dropped))
        errors.append((vectors - latents.tanh()).square().mean().item())
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 2


def test_gradient_is_tanhs_whatever_levels_are_dropped():
    quantizer, latents = make(8, quantize_dropout_prob=1.0)
    latents.requires_grad_()
    seen = set()
    for step in range(20):
        quantizer.set_step(0, step)
        quantized, codes, commit, perplexity = quantizer(latents)
        (gradient,) = torch.autograd.grad(quantized.sum(), latents)
        torch.testing.assert_close(gradient, 1 - latents.detach().tanh() ** 2)
        active = int((codes[0, 0] >= 0).sum())
        assert commit == 0 and (perplexity > 0).sum() == active
        seen.add(active)
    assert seen == {1, 2, 3, 4}


def test_what_training_gives_is_what_encode_and_decode_give():
    quantizer, latents = make(4)
    quantized, codes, _, _ = quantizer(latents.bfloat16())
    assert quantized.dtype == torch.bfloat16
    assert torch.equal(codes, quantizer.encode(latents.bfloat16()))
    torch.testing.assert_close(quantized.float(), quantizer.decode(codes), atol=4e-3, rtol=0)


def test_uses_count_once_a_step_is_applied():
    quantizer, latents = make(4)
    codes = quantizer(latents)[1]
    quantizer(latents)
    assert quantizer.usage_counts.sum() == 0
    quantizer.update_codebooks()
    expected = torch.stack([torch.bincount(level.flatten(), minlength=12) for level in codes.unbind(-1)])
    assert torch.equal(quantizer.take_usage_counts(), 2.0 * expected)
    quantizer(latents)
    quantizer.update_codebooks(applied=False)
    assert quantizer.take_usage_counts().sum() == 0 and quantizer.updates == 1


def test_latents_that_are_not_finite_or_far_away_still_have_a_code():
    quantizer, _ = make(4)
    latents = torch.tensor([[math.nan, math.inf, -math.inf, 1e30], [-1e30, 0.0, 20.0, -20.0]])
    codes = quantizer(latents[None])[1]
    assert codes.min() >= 0 and codes.max() < 12


def test_codes_that_do_not_exist_are_refused():
    quantizer, _ = make(4)
    with pytest.raises(ValueError, match="from 0 to 12; this quantizer has 0 to 11"):
        quantizer.decode(torch.tensor([[0, 12]]))
    with pytest.raises(ValueError, match="5 levels; this quantizer takes 1 to 4"):
        quantizer.decode(torch.zeros(1, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="1 to 4 times the 2"):
        ScalarQuantizer(4, GRID, 5)


@pytest.mark.parametrize(
    ("overrides", "culprit"),
    [
        (["rvqvae.model.fsq_levels=[4,4]"], "fsq_levels: the product of its numbers is 16, but nb_code is 1024"),
        ([*MODEL, "rvqvae.model.code_dim=5"], "code_dim: 5 is not 1 to 6 times the 2 columns"),
        ([*MODEL, "rvqvae.model.code_dim=14"], "code_dim: 14 is not 1 to 6 times the 2 columns"),
        ([*MODEL, "rvqvae.model.lineage=true"], "lineage: is for codebooks"),
        (
            ["rvqvae.model.fsq_levels=[32,32]", "rvqvae.model.code_dim=2"],
            "fsq_levels: 6 levels would divide each column into 32 cells again and again",
        ),
        ([*MODEL, "rvqvae.model.mu=0.9"], "mu: is for codebooks"),
        ([*MODEL, "rvqvae.model.fsq_levels=[12,1]"], "fsq_levels.1: input should be greater than or equal to 2"),
    ],
)
def test_settings_that_do_not_fit_are_refused(overrides, culprit):
    with pytest.raises(UserError, match=culprit):
        load_profile("baseline", overrides)


def test_a_model_with_it_learns():
    config = load_profile("baseline", [*MODEL, "rvqvae.model.width=16", "rvqvae.model.dropout=0"]).rvqvae.model
    torch.manual_seed(0)
    model = RVQVAE(3, config).train()
    time = torch.arange(32) / 8
    motion = torch.stack([torch.sin(time + phase) for phase in torch.rand(24) * 6.3]).view(8, 3, 32).transpose(1, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for step in range(80):
        model.set_step(0, step)
        loss = (model(motion).reconstruction - motion).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4


def tokenizer_with(*overrides):
    config = load_profile("baseline", [*MODEL, "rvqvae.model.width=8", "rvqvae.model.depth=1", *overrides])
    torch.manual_seed(0)
    return MotionTokenizer(RVQVAE(6, config.rvqvae.model), torch.zeros(6), torch.ones(6), feature_layout(6), 30.0)


def test_a_tokenizer_with_it_is_saved_loaded_streamed_and_told_apart(tmp_path):
    tokenizer, motion = tokenizer_with(), torch.randn(50, 6)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = MotionTokenizer.from_pretrained(tmp_path / "tokenizer")
    codes = loaded.encode(motion)
    assert torch.equal(codes, tokenizer.encode(motion)) and loaded.fingerprint == tokenizer.fingerprint
    stream = loaded.encoder_stream()
    assert torch.equal(torch.cat([stream.push(motion), stream.finish()]), codes)
    stream = loaded.decoder_stream()
    torch.testing.assert_close(torch.cat([stream.push(codes), stream.finish()]), loaded.decode(codes))
    other = tokenizer_with("rvqvae.model.fsq_levels=[4,3]")
    other.load_state_dict(tokenizer.state_dict())
    assert other.fingerprint != tokenizer.fingerprint


def test_systems_that_know_codebooks_only_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"fsq_levels \[3, 4\]: MoMask needs codebooks"):
        save_foreign(tokenizer_with(), "momask", tmp_path / "momask")
    assert not (tmp_path / "momask").exists()


@pytest.mark.processes
def test_ranks_train_it_and_go_on_after_a_stop(tmp_path, demo_folder):
    flags = [*SMALL, "--batch_size=4", f"--data_path={demo_folder}", f"--out={tmp_path}", "--dropout=0"]
    flags += ["--set=rvqvae.model.fsq_levels=[4,4]", "--code_dim=6"]
    train_ranks(2, *flags, "--name=whole", "--total_iter=6")
    train_ranks(2, *flags, "--name=broken", "--total_iter=3")
    train_ranks(2, *flags, "--name=broken", "--total_iter=6", "--resume")
    whole, broken = (open_single(tmp_path / name / "checkpoints" / "latest").model for name in ("whole", "broken"))
    for name, value in whole.state_dict().items():
        assert torch.equal(broken.state_dict()[name], value), name
    assert whole.quantizer.updates == 6
    lines = [read_metrics(tmp_path / name) for name in ("whole", "broken")]
    assert [line["usage"] for line in lines[0]] == [line["usage"] for line in lines[1]]
    assert min(lines[0][-1]["usage"]) > 0
