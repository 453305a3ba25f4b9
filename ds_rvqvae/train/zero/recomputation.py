"""Activation checkpointing that recomputes a stack in one call.

torch's own keeps each saved tensor by hooks in Python, which takes longer than the recomputation of a small net.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Function = Callable[[Tensor], Tensor]
_places: WeakKeyDictionary[nn.Module, list[tuple[nn.Module, str]]] = WeakKeyDictionary()


def recompute(function: Function, hidden: Tensor) -> Tensor:
    """Runs `function(hidden)`, keeps only `hidden`, and runs it again in the backward pass, with the same random draws.

    The gradients of all weights of `function` arrive together. Under autocast and while compiling it is torch's own
    non-reentrant checkpointing.

    Args:
        function: a module. Its weights are inputs of the backward pass, so they get gradients even if `hidden` needs
            none.
    """
    autocast = torch.is_autocast_enabled(hidden.device.type)
    if autocast or torch.compiler.is_compiling() or not isinstance(function, nn.Module):
        return cast(Tensor, checkpoint(function, hidden, use_reentrant=False))
    if function not in _places:
        modules = function.modules()
        _places[function] = [(each, name) for each in modules for name, _ in each.named_parameters(recurse=False)]
    # By name at each call: in a training pass, views stand in place of the parameters.
    return _recomputed(function, hidden, *(getattr(module, name) for module, name in _places[function]))


class _Recomputed(torch.autograd.Function):
    """`function(hidden)` forward; backward computes it again with gradients, and goes back through it."""

    @staticmethod
    def forward(ctx: Any, function: Function, hidden: Tensor, *weights: Tensor) -> Tensor:
        ctx.function, ctx.weights = function, weights
        ctx.states = [generator.get_state() for generator in _generators(hidden.device)]
        ctx.save_for_backward(hidden)
        return function(hidden)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (hidden,) = ctx.saved_tensors
        with torch.enable_grad(), _drawing_again(hidden.device, ctx.states):
            given = hidden.detach().requires_grad_(ctx.needs_input_grad[1])
            output = ctx.function(given)
        inputs = (given, *ctx.weights)
        wanted = [each for each, needed in zip(inputs, ctx.needs_input_grad[1:], strict=True) if needed]
        found = iter(torch.autograd.grad(output, wanted, gradient))
        return None, *(next(found) if needed else None for needed in ctx.needs_input_grad[1:])


_recomputed: Callable[..., Tensor] = _Recomputed.apply  # torch's `apply` comes without types


def _generators(device: torch.device) -> list[torch.Generator]:
    """The generators from which a module on a device may draw."""
    if device.type != "cuda":
        return [torch.default_generator]
    return [torch.default_generator, torch.cuda.default_generators[device.index]]


@contextmanager
def _drawing_again(device: torch.device, states: list[Tensor]) -> Iterator[None]:
    """Inside, generators draw what they drew from earlier states on; afterwards they continue as if nothing was
    drawn."""
    generators = _generators(device)
    now = [generator.get_state() for generator in generators]
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)
    try:
        yield
    finally:
        for generator, state in zip(generators, now, strict=True):
            generator.set_state(state)
