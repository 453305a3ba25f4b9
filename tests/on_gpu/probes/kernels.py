"""Probes of single operations: the convolutions of the nets beside matrix products of as many operations."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import conv1d

from tests.on_gpu.probes.devices import device, wait_for


def convolutions(batch: int, width: int, frames: int, dilations: list[int], repeats: int) -> list[dict[str, Any]]:
    """Times a convolution of kernel 3 in bf16, forward and in both directions of the backward pass.

    Returns:
        a row per dilation and setting of cuDNN's benchmark: seconds, those of a matrix product of as many operations,
        and the largest relative error of the result against three shifted matrix products in fp32.
    """
    where = device()
    torch.manual_seed(0)
    rows = []
    for benchmark in (False, True):
        torch.backends.cudnn.benchmark = benchmark
        for dilation in dilations:
            motion = torch.randn(batch, width, frames, device=where, dtype=torch.bfloat16)
            weight = torch.randn(width, width, 3, device=where, dtype=torch.bfloat16) / (3 * width) ** 0.5
            rows.append({"benchmark": benchmark, "dilation": dilation, **_row(motion, weight, dilation, repeats)})
    return rows


def _row(motion: torch.Tensor, weight: torch.Tensor, dilation: int, repeats: int) -> dict[str, float]:
    batch, width, frames = motion.shape
    output = conv1d(motion, weight, padding=dilation, dilation=dilation)

    def backward(of_input: bool) -> Callable[[], Any]:
        mask = [of_input, not of_input, False]
        call = torch.ops.aten.convolution_backward
        return lambda: call(output, motion, weight, None, [1], [dilation], [dilation], False, [0], 1, mask)

    left = torch.randn(batch * frames, 3 * width, device=motion.device, dtype=torch.bfloat16)
    right = torch.randn(3 * width, width, device=motion.device, dtype=torch.bfloat16)
    ways = {
        "forward_s": lambda: conv1d(motion, weight, padding=dilation, dilation=dilation),
        "backward_input_s": backward(True),
        "backward_weight_s": backward(False),
        "matmul_s": lambda: left @ right,
    }
    seconds = {name: _seconds(way, motion.device, repeats) for name, way in ways.items()}
    return {**seconds, "error": _error(output, motion, weight, dilation)}


def _seconds(call: Callable[[], Any], where: torch.device, repeats: int) -> float:
    for _ in range(3):
        call()
    wait_for(where)
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    wait_for(where)
    return (time.perf_counter() - began) / repeats


def _error(output: torch.Tensor, motion: torch.Tensor, weight: torch.Tensor, dilation: int) -> float:
    """The largest difference from three shifted matrix products in fp32, relative to the largest result."""
    frames = motion.shape[-1]
    padded = torch.nn.functional.pad(motion.float(), (dilation, dilation))
    wanted = sum(
        torch.einsum("oi,bit->bot", weight[:, :, tap].float(), padded[:, :, tap * dilation : tap * dilation + frames])
        for tap in range(3)
    )
    assert isinstance(wanted, torch.Tensor)
    return float((output.float() - wanted).abs().max() / wanted.abs().max())
