"""Buckets of weights: in a training pass their layers use views whose gradients arrive together, one call per bucket.

DeepSpeed keeps a parameter per weight, and a hook per parameter that copies its gradient; for small nets these hooks
take longer than the arithmetic. Here a layer's parameter is hidden, for a training pass, by a view of the same memory.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ds_rvqvae.gpu.sizes import bucket_bounds
from ds_rvqvae.model.nets import Convolution
from ds_rvqvae.train.zero.recomputation import recompute

Take = Callable[["Bucket", Sequence[Tensor | None]], None]
"""Receives a bucket's gradients, one per weight, in the backward pass."""


class Bucket:
    """Consecutive parameters of a model, whose values are consecutive in one flat tensor.

    Args:
        index: position in the order of the backward pass.
        flat: values of all the model's parameters, in their order.
        start: position in `flat` of the first value of this bucket.
        owners: module, name in the module, and parameter, for each.
        take: receives the gradients.
    """

    def __init__(
        self, index: int, flat: Tensor, start: int, owners: list[tuple[nn.Module, str, nn.Parameter]], take: Take
    ) -> None:
        self.index, self.start = index, start
        self.parameters = [_as_used(module, parameter.detach()) for module, _, parameter in owners]
        self.stop = start + sum(parameter.numel() for parameter in self.parameters)
        self.flat = flat[start : self.stop].detach()
        """`[elements]`: the memory of the parameters."""
        self.first_module = owners[0][0]
        self.take = take
        self.hidden = False
        """Whether views hide the parameters now."""
        self._places = [(vars(module), name) for module, name, _ in owners]
        self._anchor = torch.zeros((), device=flat.device, requires_grad=True)

    def hide(self) -> None:
        """Hides each parameter by a view that has a gradient, as an attribute of the module's own."""
        views: tuple[Tensor, ...] = _views(self._anchor, self)
        for (attributes, name), view in zip(self._places, views, strict=True):
            attributes[name] = view
        self.hidden = True

    def show(self) -> None:
        """Lets the layers use their parameters again."""
        for attributes, name in self._places:
            attributes.pop(name, None)
        self.hidden = False


def _as_used(module: nn.Module, parameter: Tensor) -> Tensor:
    """A parameter in the shape in which its layer computes: a convolution's weight is that of an image."""
    return parameter.unsqueeze(2) if isinstance(module, Convolution) and parameter.dim() == 3 else parameter


class _Views(torch.autograd.Function):
    """Views of a bucket's weights forward; backward hands all their gradients to the bucket's `take` at once."""

    @staticmethod
    def forward(ctx: Any, _anchor: Tensor, bucket: Bucket) -> tuple[Tensor, ...]:
        ctx.bucket = bucket
        ctx.set_materialize_grads(False)
        views: tuple[Tensor, ...] = tuple(torch._C._nn.unflatten_dense_tensors(bucket.flat, bucket.parameters))
        return views

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, None]:
        ctx.bucket.take(ctx.bucket, gradients)
        return None, None


_views: Callable[..., tuple[Tensor, ...]] = _Views.apply  # torch's `apply` comes without types


class FlatWeights:
    """All buckets of a model.

    Args:
        model: its parameters, in their order, are consecutive in `flat`.
        flat: their values.
        most: elements per bucket.
        take: receives each bucket's gradients.
        lazily: whether a bucket's views appear only when its first layer runs. Autograd runs the backward step of what
            ran last first, so a bucket's gradients then arrive as soon as its first layer has its own, and not at the
            end of the backward pass.
    """

    def __init__(self, model: nn.Module, flat: Tensor, most: int, take: Take, lazily: bool = True) -> None:
        owners = [
            (module, name, parameter)
            for module in model.modules()
            for name, parameter in module.named_parameters(recurse=False)
        ]
        sizes = [parameter.numel() for _, _, parameter in owners]
        self.buckets: list[Bucket] = []
        for first, stop in bucket_bounds(sizes, most):
            start = sum(sizes[:first])
            self.buckets.append(Bucket(len(self.buckets), flat, start, owners[first:stop], take))
        self._lazily, self._active = lazily, False
        for bucket in self.buckets if lazily else []:
            bucket.first_module.register_forward_pre_hook(self._hiding(bucket))
            for stack in _recomputed_with(bucket.first_module, model):
                stack.register_forward_pre_hook(self._hiding(bucket, only_if_at_once=True))

    def begin(self) -> None:
        """Begins a training pass."""
        self.show()  # a pass before it may have had no backward pass
        self._active = True
        if not self._lazily:
            for bucket in reversed(self.buckets):
                bucket.hide()

    def end_forward(self) -> None:
        """Ends the forward pass: layers that run again, to recompute activations, keep the views that they have."""
        self._active = False

    def show(self) -> None:
        """Ends a training pass: the layers use their parameters again."""
        for bucket in self.buckets:
            if bucket.hidden:
                bucket.show()

    def _hiding(self, bucket: Bucket, only_if_at_once: bool = False) -> Callable[..., None]:
        def hide(module: nn.Module, _inputs: Any) -> None:
            asked = not only_if_at_once or module.checkpoint is recompute
            if self._active and asked and not bucket.hidden:
                bucket.hide()

        return hide


def _recomputed_with(module: nn.Module, model: nn.Module) -> list[nn.Module]:
    """The stacks that contain a module: if one is recomputed at once, its weights are used from its beginning on."""
    return [each for each in model.modules() if hasattr(each, "checkpoint") and module in each.modules()]
