"""Checkpoints of MoMask, GestureLSM and T2M-GPT with their documented names, and their arithmetic, step by step."""

import json

import numpy as np
import torch
from torch.nn import functional

LOCATION = {"momask": "model/net_best_fid.tar", "gesturelsm": "net.pth", "t2mgpt": "net_last.pth"}
"""Paths of the weights in an exported folder."""
SMALL = {"features": 5, "width": 8, "depth": 2, "down_t": 2, "stride": 2, "code_dim": 4, "nb_code": 16, "levels": 3}


SAID = {"activation": "relu", "dilation_growth_rate": 3, "fps": 20.0, "no_normalisation": True}
"""Settings that the weights of a model without norms do not give."""
_ACTIVATIONS = {"relu": functional.relu, "silu": functional.silu, "gelu": functional.gelu}


def random_weights(
    *, features, width, depth, down_t, stride, code_dim, nb_code, levels, norm=None, shared=False, projected=False
):
    """A state dict with random weights, with MoMask's and GestureLSM's names."""
    torch.manual_seed(0)
    weights = {}

    def conv(name, inputs, outputs, kernel):
        weights[f"{name}.weight"] = torch.randn(outputs, inputs, kernel) / (inputs * kernel) ** 0.5
        weights[f"{name}.bias"] = torch.randn(outputs) * 0.1

    def resnet(name):
        for block in range(depth):
            for part, kernel in (("1", 3), ("2", 1)):
                if norm:
                    weights[f"{name}.model.{block}.norm{part}.weight"] = torch.rand(width) + 0.5
                    weights[f"{name}.model.{block}.norm{part}.bias"] = torch.randn(width) * 0.1
                conv(f"{name}.model.{block}.conv{part}", width, width, kernel)

    conv("encoder.model.0", features, width, 3)
    conv("decoder.model.0", code_dim, width, 3)
    for stage in range(2, 2 + down_t):
        conv(f"encoder.model.{stage}.0", width, width, 2 * stride)
        resnet(f"encoder.model.{stage}.1")
        resnet(f"decoder.model.{stage}.0")
        conv(f"decoder.model.{stage}.2", width, width, 3)
    conv(f"encoder.model.{2 + down_t}", width, code_dim, 3)
    conv(f"decoder.model.{2 + down_t}", width, width, 3)
    conv(f"decoder.model.{4 + down_t}", width, features, 3)
    book, linear = torch.randn(nb_code, code_dim), torch.nn.Linear(code_dim, code_dim)
    for level in range(levels):
        if not shared:
            book, linear = torch.randn(nb_code, code_dim) * 0.5**level, torch.nn.Linear(code_dim, code_dim)
        weights[f"quantizer.layers.{level}.codebook"] = book
        if projected:
            weights[f"quantizer.layers.{level}.embedding_proj.weight"] = linear.weight.detach()
            weights[f"quantizer.layers.{level}.embedding_proj.bias"] = linear.bias.detach()
    return weights


def save_as_trainer(file, format, weights):
    """The file of that system's trainer, with the optimizer's and the scheduler's state if it saves them."""
    if format == "momask":
        parameters = [torch.nn.Parameter(weights["encoder.model.0.weight"].clone())]
        optimizer = torch.optim.AdamW(parameters)
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[5, 10], gamma=0.05)
        parameters[0].grad = torch.ones_like(parameters[0])
        optimizer.step()
        states = {"opt_vq_model": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
        torch.save({"vq_model": weights, **states, "ep": 3, "total_it": 70}, file)
    elif format == "gesturelsm":
        torch.save({"net": weights}, file)
    else:
        torch.save({"net": as_t2mgpt(weights)}, file)
    return file


def model_as_published(folder, format, weights, options, mean, std):
    """Writes a model, its option file and statistics where the system's scripts put them; returns the checkpoint."""
    if format == "momask":
        model = folder / "checkpoints" / "t2m" / "rvq"
        (model / "model").mkdir(parents=True)
        lines = "".join(f"{key}: {value}\n" for key, value in sorted(options.items()))
        (model / "opt.txt").write_text(
            f"------------ Options -------------\n{lines}-------------- End ----------------\n"
        )
        file, statistics = model / "model" / "net_best_fid.tar", model / "meta"
    elif format == "t2mgpt":
        model = folder / "output" / "VQVAE"
        model.mkdir(parents=True)
        dump = json.dumps(options, indent=4, sort_keys=True)
        (model / "run.log").write_text(f"2023-01-20 10:00:00,123 INFO {dump}\n2023-01-20 10:00:01,123 INFO Training\n")
        file = model / "net_last.pth"
        statistics = folder / "checkpoints" / options["dataname"] / "VQVAEV3_CB1024_CMT_H1024_NRES3" / "meta"
    else:
        (folder / "configs").mkdir()
        (folder / "ckpt").mkdir()
        sections = {**options, "mean_pose_path": "./mean_std/mean.npy", "std_pose_path": "./mean_std/std.npy"}
        (folder / "configs" / "other.yaml").write_text("vqvae_upper_path: ./ckpt/other.pth\npose_fps: 15\n")
        sections["vqvae_upper_path"] = "./ckpt/net_300000_upper.pth"
        (folder / "configs" / "shortcut.yaml").write_text("".join(f"{k}: {v}\n" for k, v in sections.items()))
        file, statistics = folder / "ckpt" / "net_300000_upper.pth", folder / "mean_std"
    statistics.mkdir(parents=True)
    np.save(statistics / "mean.npy", mean)
    np.save(statistics / "std.npy", std)
    return save_as_trainer(file, format, weights)


def as_t2mgpt(weights):
    return {f"vqvae.{key}".replace("quantizer.layers.0.", "quantizer."): value for key, value in weights.items()}


def _stack(weights, name, hidden, norm, activation, growth):
    blocks = sum(f"{name}.model.{block}.conv1.weight" in weights for block in range(100))
    for block in range(blocks):
        inner, dilation = hidden, growth ** (blocks - 1 - block)
        for part, around in (("1", dilation), ("2", 1)):
            key = f"{name}.model.{block}"
            if norm:
                scale, shift = weights[f"{key}.norm{part}.weight"], weights[f"{key}.norm{part}.bias"]
                if norm == "LN":
                    inner = functional.layer_norm(inner.mT, scale.shape, scale, shift).mT
                else:
                    inner = functional.group_norm(inner, 32, scale, shift, eps=1e-6)
            weight, bias = weights[f"{key}.conv{part}.weight"], weights[f"{key}.conv{part}.bias"]
            padding = around if part == "1" else 0
            inner = functional.conv1d(_ACTIVATIONS[activation](inner), weight, bias, padding=padding, dilation=around)
        hidden = hidden + inner
    return hidden


def quantizing_books(weights):
    levels = sum(key.endswith(".codebook") for key in weights)
    for level in range(levels):
        layer, book = f"quantizer.layers.{level}", weights[f"quantizer.layers.{level}.codebook"]
        if f"{layer}.embedding_proj.weight" in weights:
            book = book @ weights[f"{layer}.embedding_proj.weight"].T + weights[f"{layer}.embedding_proj.bias"]
        yield book


def reference(weights, motion, down_t, norm=None, activation="relu", growth=3):
    """Codes `[T', Q]` and reconstruction `[T, C]` of normalised motion `[T, C]`, by their forward passes."""

    def conv(name, hidden, **how):
        how = {"padding": 1, **how}
        return functional.conv1d(hidden, weights[f"{name}.weight"], weights[f"{name}.bias"], **how)

    hidden = functional.relu(conv("encoder.model.0", motion.T[None]))
    for stage in range(2, 2 + down_t):
        stride = weights[f"encoder.model.{stage}.0.weight"].shape[2] // 2
        hidden = conv(f"encoder.model.{stage}.0", hidden, stride=stride, padding=stride // 2)
        hidden = _stack(weights, f"encoder.model.{stage}.1", hidden, norm, activation, growth)
    residual = conv(f"encoder.model.{2 + down_t}", hidden)[0].T
    quantized, codes = torch.zeros_like(residual), []
    for book in quantizing_books(weights):
        codes.append(torch.cdist(residual[None], book[None])[0].argmin(dim=1))
        quantized = quantized + book[codes[-1]]
        residual = residual - book[codes[-1]]
    hidden = functional.relu(conv("decoder.model.0", quantized.T[None]))
    for stage in range(2, 2 + down_t):
        hidden = _stack(weights, f"decoder.model.{stage}.0", hidden, norm, activation, growth)
        stride = weights[f"encoder.model.{stage}.0.weight"].shape[2] // 2
        hidden = conv(f"decoder.model.{stage}.2", hidden.repeat_interleave(stride, dim=2))
    hidden = functional.relu(conv(f"decoder.model.{2 + down_t}", hidden))
    return torch.stack(codes, dim=1), conv(f"decoder.model.{4 + down_t}", hidden)[0].T
