"""A moving average of the weights; evaluation and export use the average."""

import contextlib
from collections.abc import Iterator
from typing import TypedDict

import deepspeed
import torch
from torch import Tensor

from ds_rvqvae.train.engine import fp32_model, set_fp32_weights


class AverageState(TypedDict):
    """The average of all weights, as checkpoints store it."""

    updates: int
    weights: list[Tensor]
    """In the order of the model's parameters, on the CPU."""


class WeightAverage:
    """Averages the optimizer's fp32 weights. Each rank averages those that ZeRO keeps on it, without communication.

    Update t decays by `min(decay, (1 + t) / (10 + t))`, so that the first weights fade soon.
    Source: Polyak and Juditsky 1992; the start as in TensorFlow's `ExponentialMovingAverage`.

    Args:
        engine: new or resumed; the average starts at its weights.
    """

    def __init__(self, engine: deepspeed.DeepSpeedEngine, decay: float) -> None:
        self._engine, self._decay = engine, decay
        self.updates = 0
        self._averages = [part.detach().float().clone() for part in self._weights()]

    @torch.no_grad()
    def update(self) -> None:
        """Adds the weights after an applied step to the average."""
        self.updates += 1
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        for average, part in zip(self._averages, self._weights(), strict=True):
            average.lerp_(part.float(), 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the optimizer's fp32 weights are the average; the model's own weights do not change."""
        kept = [part.detach().clone() for part in self._weights()]
        self._set(self._averages)
        try:
            yield
        finally:
            self._set(kept)

    def state(self) -> AverageState:
        """The average of all weights. Every rank calls it."""
        with self.in_place():
            weights = [parameter.detach().cpu() for parameter in fp32_model(self._engine).parameters()]
        return {"updates": self.updates, "weights": weights}

    def restore(self, state: AverageState) -> None:
        """Restores the average from a result of `state`, on any number of ranks. Every rank calls it."""
        kept = [part.detach().clone() for part in self._weights()]
        set_fp32_weights(self._engine, state["weights"])
        for average, part in zip(self._averages, self._weights(), strict=True):
            average.copy_(part)
        self._set(kept)
        self.updates = state["updates"]

    def _weights(self) -> list[Tensor]:
        """This rank's fp32 weights: those that the optimizer inside ZeRO's optimizer updates."""
        return [part for group in self._engine.optimizer.optimizer.param_groups for part in group["params"]]

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        for part, value in zip(self._weights(), values, strict=True):
            part.copy_(value)
