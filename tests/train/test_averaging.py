"""The moving average of the weights: on each rank's own weights, scored and exported, exact after a resume."""

import pytest
import torch
from safetensors.torch import load_file

from ds_rvqvae.runs.tokenizers import open_single
from tests.ranks import run_ranks, train_ranks
from tests.train.small import SMALL

pytestmark = pytest.mark.processes
FLAGS = [*SMALL, "--batch_size=4", "--set=rvqvae.training.ema_decay=0.9"]


def average_by_hand(data: str, folder: str) -> dict:
    """In a rank: the trainer's average, an average of the gathered weights, and the state left after some steps."""
    from ds_rvqvae.train.averaging import WeightAverage
    from ds_rvqvae.train.engine import fp32_model, set_fp32_weights
    from tests.train.small import make_trainer

    trainer = make_trainer(folder, data, FLAGS)
    expected = [parameter.detach().clone() for parameter in fp32_model(trainer.engine).parameters()]
    trainer.initialize_codebooks()
    for step in range(1, 5):
        trainer.step()
        decay = min(0.9, (1 + step) / (10 + step))
        for average, weight in zip(expected, fp32_model(trainer.engine).parameters(), strict=True):
            average.mul_(decay).add_(weight.detach(), alpha=1 - decay)
    before = [parameter.detach().clone() for parameter in fp32_model(trainer.engine).parameters()]
    state = trainer.average.state()
    found = state["weights"]
    # Like a resumed run: weights, and an average that begins at them.
    set_fp32_weights(trainer.engine, [torch.zeros_like(weight) for weight in before])
    set_fp32_weights(trainer.engine, before)
    fresh = WeightAverage(trainer.engine, 0.9)
    fresh.restore(state)
    after = list(fp32_model(trainer.engine).parameters())
    restored = fresh.state()
    return {
        "close": all(torch.allclose(one, other, atol=1e-7) for one, other in zip(found, expected, strict=True)),
        "apart": max((one - other).abs().max().item() for one, other in zip(found, before, strict=True)),
        "weights_stay": all(torch.equal(one, other) for one, other in zip(after, before, strict=True)),
        "restored": all(torch.equal(one, other) for one, other in zip(restored["weights"], found, strict=True)),
        "updates": restored["updates"],
    }


@pytest.mark.parametrize("world_size", [1, 3])
def test_it_is_the_average_of_the_gathered_weights(tmp_path, demo_folder, world_size):
    arguments = {"data": str(demo_folder), "folder": str(tmp_path / "run")}
    for found in run_ranks(world_size, average_by_hand, tmp_path / "results", **arguments):
        assert found["close"] and found["apart"] > 1e-5
        assert found["weights_stay"] and found["restored"] and found["updates"] == 4


def test_a_resume_with_another_number_of_ranks_goes_on_with_it_and_exports_it(tmp_path, demo_folder):
    flags = [*FLAGS, f"--data_path={demo_folder}", f"--out={tmp_path}", "--save_every=3", "--mixed_precision=no"]
    flags += ["--dropout=0", "--quantize_dropout_prob=0"]
    train_ranks(2, *flags, "--name=whole", "--total_iter=6")
    train_ranks(2, *flags, "--name=broken", "--total_iter=3")
    train_ranks(1, *flags, "--name=broken", "--total_iter=6", "--resume")
    tokenizers = [load_file(tmp_path / name / "tokenizer" / "model.safetensors") for name in ("whole", "broken")]
    for name, value in tokenizers[0].items():
        torch.testing.assert_close(tokenizers[1][name].float(), value.float(), rtol=1e-4, atol=1e-5, msg=name)
    saved = open_single(tmp_path / "whole" / "checkpoints" / "latest").model.state_dict()
    assert all(torch.equal(saved[name], value) for name, value in tokenizers[0].items())
    # And the average differs from the weights themselves.
    flags.remove("--set=rvqvae.training.ema_decay=0.9")
    train_ranks(2, *flags, "--name=plain", "--total_iter=6")
    plain = load_file(tmp_path / "plain" / "tokenizer" / "model.safetensors")
    assert not torch.allclose(plain["decoder.0.weight"], tokenizers[0]["decoder.0.weight"], atol=1e-5)
