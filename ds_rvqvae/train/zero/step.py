"""Replaces the backward hooks and the step of DeepSpeed's ZeRO-2 optimizer by the same arithmetic in few operations.

Memory is divided as in ZeRO stage 2 (Rajbhandari et al. 2020): each rank keeps the fp32 weights, the optimizer's state
and the gradient of its own part. DeepSpeed's engine, its checkpoints and its parameters stay as they are.
"""

import logging
import math
import operator
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.utils import is_invalid_grad_norm
from torch import Tensor

from ds_rvqvae.config.profile import Profile
from ds_rvqvae.gpu.sizes import needs_long_step
from ds_rvqvae.train.zero.gradients import PartGradient
from ds_rvqvae.train.zero.weights import FlatWeights

logger = logging.getLogger("ds_rvqvae")

TRIED = ("0.19.8",)
"""Versions of DeepSpeed whose private functions this module replaces; a test compares their source."""


class ShortStep:
    """The step of an engine's ZeRO-2 optimizer; `install` makes one, if the engine has what it needs.

    Args:
        engine: an engine whose optimizer has one group of parameters.
        lazily: as for `FlatWeights`.
    """

    def __init__(self, engine: deepspeed.DeepSpeedEngine, lazily: bool) -> None:
        zero: Any = engine.optimizer
        self._zero = zero
        self.group: dist.ProcessGroup = zero.dp_process_group
        """The ranks. Collectives that run at the same time as this step's need the same group: NCCL may block if two
        groups are at work."""
        self._world_size, rank = dist.get_world_size(self.group), dist.get_rank(self.group)
        self._flat: Tensor = zero.bit16_groups_flat[0]
        self._own: Tensor = zero.parallel_partitioned_bit16_groups[0][rank].detach()
        self._part: Tensor = zero.single_partition_of_fp32_groups[0]
        self.gradient = PartGradient(
            *(rank, self._world_size, len(self._own), zero.groups_padding[0]),
            *(zero.gradient_accumulation_dtype, bool(zero.overlap_comm)),
            *(engine.gradient_accumulation_steps() > 1, self.group),
        )
        self._model: torch.nn.Module = engine.module
        self._parameters = list(self._model.parameters())
        self.weights = FlatWeights(self._model, self._flat, zero.reduce_bucket_size, self.gradient.take, lazily=lazily)
        self._linked = False
        self.gathers_later = False
        """Whether `step` leaves the gathering of weights going on; then `wait` must be called before they are read."""
        self._gathering: dist.Work | None = None
        engine.register_forward_pre_hook(self._begin)
        engine.register_forward_hook(self._end_forward, always_call=True)
        for hook in zero._grad_acc_hooks:
            hook.remove()
        zero.overlapping_partition_gradients_reduce_epilogue = self._end_backward
        zero.step, zero.zero_grad = self.step, self._zero_grad

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Updates this rank's part of the weights, and gathers those of all ranks. A gradient that is not finite on
        any rank skips the step on all ranks.

        It is DeepSpeed's `step`, but the norm alone tells whether the gradient is finite.
        """
        self.wait()
        zero = self._zero
        gradient, norm = self.gradient.pop(self._part.dtype)
        zero.overflow = is_invalid_grad_norm(norm)  # the only wait of the host for the device
        zero._global_grad_norm = math.inf if zero.overflow else norm
        if zero.overflow:
            return
        if zero.clip_grad > 0.0:
            gradient.mul_(1.0 / ((norm + 1e-6) / zero.clip_grad).clamp(min=1.0))
        self._part.grad = gradient
        zero.optimizer.step()
        self._part.grad = None
        if not self._linked:
            zero._lazy_init_hp_params_optimizer_state()
            self._linked = True
        self._own.copy_(self._part)
        if self._world_size > 1:
            self._gathering = dist.all_gather_into_tensor(self._flat, self._own, group=self.group, async_op=True)
        if not self.gathers_later:
            self.wait()

    def wait(self) -> None:
        """Waits until the weights of all ranks have arrived; the host waits for them only on CPUs."""
        if self._gathering is not None:
            self._gathering.wait()
            self._gathering = None

    def _begin(self, _engine: torch.nn.Module, _inputs: Any) -> None:
        self.wait()
        if self._model.training and torch.is_grad_enabled():
            self.weights.begin()

    def _end_forward(self, _module: torch.nn.Module, _inputs: Any, _output: Any) -> None:
        self.weights.end_forward()

    def _end_backward(self) -> None:
        self.weights.show()
        if any(parameter.grad is not None for parameter in self._parameters):
            raise RuntimeError("a parameter has a gradient of its own: run the model by engine(motion) only")
        self.gradient.end_micro_batch(self.weights.buckets)

    def _zero_grad(self, set_to_none: bool = True) -> None:
        """The parameters have no gradients of their own."""


def short_step_of(engine: deepspeed.DeepSpeedEngine) -> ShortStep | None:
    """Returns the short step of an engine; None if it has DeepSpeed's own."""
    owner = getattr(engine.optimizer.step, "__self__", None)
    return owner if isinstance(owner, ShortStep) else None


def install(engine: deepspeed.DeepSpeedEngine, profile: Profile) -> None:
    """Gives an engine the short step, which `short_step_of` finds; logs why it keeps DeepSpeed's own, if it cannot have
    it."""
    reason = reason_against(profile) or _unlike_the_flat_buffer(engine)
    if reason:
        logger.info("the step is DeepSpeed's own, which takes more of the host's time: %s", reason)
    else:
        ShortStep(engine, lazily=not profile.rvqvae.training.compile)


def _unlike_the_flat_buffer(engine: deepspeed.DeepSpeedEngine) -> str:
    """Returns why the model's parameters are not those of the flat buffer, in their order; empty if they are."""
    found = [each for module in engine.module.modules() for each in module.parameters(recurse=False)]
    groups = engine.optimizer.bit16_groups
    same = len(groups) == 1 and len(found) == len(groups[0]) and all(map(operator.is_, found, groups[0]))
    return "" if same else "parameters are frozen, shared or in several groups"


def reason_against(profile: Profile) -> str:
    """Returns why an engine of this profile cannot have the short step; empty if it can."""
    if deepspeed.__version__ not in TRIED:
        return f"deepspeed {deepspeed.__version__} is not among those tried with it, {', '.join(TRIED)}"
    return needs_long_step(profile)
