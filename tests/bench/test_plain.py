"""The plain loop with which `ds-rvqvae bench` compares ours."""

import numpy as np
import pytest
import torch

from ds_rvqvae import RVQVAE, load_profile
from ds_rvqvae.bench.plain import PlainLoop
from ds_rvqvae.bench.step import step_of
from ds_rvqvae.errors import UserError
from ds_rvqvae.model.exact import Role, in_role
from ds_rvqvae.model.losses import loss_columns, tokenizer_losses
from ds_rvqvae.motion.layout import joint_layout

CPU = torch.device("cpu")
SMALL = ["rvqvae.model.width=64", "rvqvae.model.dropout=0", "rvqvae.model.quantize_dropout_prob=0"]


def test_the_plain_loop_has_the_profiles_losses():
    layout = joint_layout(("spine1", "neck"), "translation")[:2]
    profile = load_profile("demo", [*SMALL, "rvqvae.loss.loss_rotation=10"])
    columns = loss_columns(profile.rvqvae.loss, layout, np.zeros(12, np.float32), np.ones(12, np.float32), CPU)
    motion, losses = torch.randn(4, 64, 12), []
    for known in (None, columns):
        torch.manual_seed(0)
        plain = PlainLoop(RVQVAE(12, profile.rvqvae.model), profile, CPU, columns=known)
        losses.append(float(plain.step([motion])))
    assert losses[1] > losses[0] + 1


def test_the_plain_loop_trains_the_same_nets():
    profile = load_profile("demo", SMALL)
    torch.manual_seed(0)
    model = RVQVAE(6, profile.rvqvae.model)
    plain = PlainLoop(model, profile, CPU)
    stock = {type(module) for net in (plain.nets.encoder, plain.nets.decoder) for module in net.modules()}
    assert not any(kind.__module__.endswith("model.nets") and kind.__name__ == "Convolution" for kind in stock)
    motion = torch.randn(4, 64, 6)
    latents = plain.nets.encoder(motion.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(latents, model.encode_latents(motion))
    torch.testing.assert_close(
        plain.nets.decoder(latents.transpose(1, 2)).transpose(1, 2), model.decode_latents(latents)
    )
    losses = [float(plain.step([motion.detach()])) for _ in range(40)]
    assert losses[-1] < 0.95 * losses[0]


def test_nets_that_stock_modules_do_not_make_are_refused():
    profile = load_profile("demo", [*SMALL, "rvqvae.model.norm=LN"])
    with pytest.raises(UserError, match="--no_plain"):
        PlainLoop(RVQVAE(6, profile.rvqvae.model), profile, CPU)


def test_the_plain_loop_keeps_torchs_precision_in_a_process_that_trains():
    class Loop:
        def step(self, batches):
            return torch.backends.cudnn.allow_tf32

    with in_role(Role.TRAINING):
        assert step_of(Loop(), iter([[]]))() is True
        assert torch.backends.cudnn.allow_tf32 is False


def test_the_tuned_loop_has_the_models_own_losses_and_moves_its_codebooks():
    profile = load_profile("demo", SMALL)
    torch.manual_seed(0)
    model, motion = RVQVAE(6, profile.rvqvae.model), torch.randn(4, 64, 6)
    model.quantizer.initialize_codebooks(model.encode_latents(motion).detach())
    plain = PlainLoop(model, profile, CPU, tuned=True)
    model.train().set_step(profile.rvqvae.training.seed, 0)
    output = model(motion)
    expected = tokenizer_losses(output.reconstruction, motion, output.commit_loss, profile.rvqvae.loss).loss
    torch.testing.assert_close(plain.step([motion]), expected)
    model.quantizer.update_codebooks()
    torch.testing.assert_close(plain.nets.quantizer.codebooks, model.quantizer.codebooks)
    assert plain.nets.quantizer.updates == 1
    losses = [float(plain.step([motion])) for _ in range(40)]
    assert losses[-1] < 0.95 * losses[0]


def test_the_tuned_loop_takes_means_over_micro_batches():
    profile = load_profile("demo", SMALL)
    torch.manual_seed(0)
    model, motion = RVQVAE(6, profile.rvqvae.model), torch.randn(4, 64, 6)
    losses = []
    for batches in ([motion], [motion[:2], motion[2:]]):
        plain = PlainLoop(model, profile, CPU, tuned=True)
        losses.append([float(plain.step(batches)) for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0][0] != losses[0][2]
