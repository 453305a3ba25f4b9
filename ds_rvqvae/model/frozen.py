"""Nets that stay what they are in whatever module or trainer they are put.

A second stage has a trained net among its submodules. What trainers then do to all of their submodules (another float
type, first weights, weight decay, averages, another mode) would change codes without a word. So a frozen net is in its
parent's `state_dict` and moves between devices with it, but for the rest the parent sees a module without children,
parameters and buffers. Asked by itself, it lists them all.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Self, override

TRAINABLE = "to train them, load it with from_pretrained(…, trainable=True)"


class _OwnWalk(set[nn.Module]):
    """What a walk through modules that began at a frozen one, not at a parent of it, has seen."""


class _Kept(NamedTuple):
    """A parameter or buffer of a frozen net."""

    store: dict[str, Any]
    name: str
    tensor: Tensor
    values: Tensor
    """The same memory, which neither a cast nor an assignment to `tensor` takes away."""


class KeepsFloatType(nn.Module):
    """A module that refuses to become another float type; a parent that becomes one leaves it as it is."""

    def float_type(self) -> torch.dtype | None:
        """The float type that it keeps; None where it takes any."""
        raise NotImplementedError

    @override
    def to(self, *given: Any, **named: Any) -> Self:
        values = {name: value for name, value in named.items() if name != "memory_format"}
        self._check_asked(lambda tensor: tensor.to(*given, **values) if given or values else tensor)
        moved: Self = super().to(*given, **named)
        return moved

    @override
    def type(self, dst_type: torch.dtype | str) -> Self:
        self._check_asked(lambda tensor: tensor.type(dst_type))
        return super().type(dst_type)

    @override
    def half(self) -> Self:
        self._check_asked(Tensor.half)
        return super().half()

    @override
    def bfloat16(self) -> Self:
        self._check_asked(Tensor.bfloat16)
        return super().bfloat16()

    @override
    def float(self) -> Self:
        self._check_asked(Tensor.float)
        return super().float()

    @override
    def double(self) -> Self:
        self._check_asked(Tensor.double)
        return super().double()

    @override
    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        yield from super().named_modules(_OwnWalk() if memo is None else memo, prefix, remove_duplicate)

    def _check_asked(self, change: Callable[[Tensor], Tensor]) -> None:
        """Raises TypeError where `change` makes another float type, ValueError where it leaves no weights."""
        own = self.float_type()
        if own is None:
            return
        asked = change(torch.zeros(1, dtype=own, device="cpu"))
        if asked.dtype != own:
            raise TypeError(
                f"a tokenizer stays {_name(own)}, or its codes are others; to have its nets in {_name(asked.dtype)}, "
                f"load it with from_pretrained(…, dtype=torch.{_name(asked.dtype)})"
            )
        if asked.is_meta:
            raise ValueError("a tokenizer on the meta device has no weights; leave it on its device")


class Freezable(KeepsFloatType):
    """A module whose parameters and buffers are all in submodules, and that may be frozen.

    Frozen, it is in eval mode for good and moves between devices only. A parent's state dict has copies of its tensors;
    one that is loaded has to have these values, or these values rounded to another float type, which are not taken.
    Tensors changed in place through the module's own attributes are changed.
    """

    frozen = False

    def freeze(self) -> Self:
        """Makes the module what it is from now on."""
        self.eval().requires_grad_(False)
        self.frozen = True
        self._kept = self._tensors()
        return self

    def restore(self) -> None:
        """Undoes what casts of submodules and assignments to them have changed since the module was frozen."""
        if not self.frozen:
            return
        for store, name, tensor, values in self._kept:
            if store.get(name) is not tensor:
                store[name] = tensor
            if tensor.data_ptr() != values.data_ptr() or tensor.dtype != values.dtype:
                tensor.data = values

    @override
    def float_type(self) -> torch.dtype | None:
        return next(self.parameters()).dtype if self.frozen else None

    @override
    def train(self, mode: bool = True) -> Self:
        return self if self.frozen else super().train(mode)

    @override
    def requires_grad_(self, requires_grad: bool = True) -> Self:
        if self.frozen and requires_grad:
            raise TypeError(f"a tokenizer's weights are frozen; {TRAINABLE}")
        return super().requires_grad_(requires_grad)

    @override
    def apply(self, fn: Callable[[nn.Module], None]) -> Self:
        # First weights, most of the time.
        return self if self.frozen else super().apply(fn)

    @override
    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        return iter(()) if self.frozen else super().named_children()

    @override
    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        if not self.frozen or memo is None or isinstance(memo, _OwnWalk):
            yield from super().named_modules(memo, prefix, remove_duplicate)
        elif self not in memo:
            memo.add(self)
            yield prefix, self

    # torch overloads it.
    @override
    def state_dict(  # type: ignore[override]
        self, *given: Any, **named: Any
    ) -> dict[str, Any]:
        self.restore()
        gather: Callable[..., dict[str, Any]] = super().state_dict
        others: dict[str, Any] | None = named.get("destination")
        if not self.frozen or others is None:
            return gather(*given, **named)
        there = set(others)
        gather(*given, **named)
        # Averages of a parent's state dict are written into it in place.
        others.update({name: tensor.clone() for name, tensor in others.items() if name not in there})
        return others

    def __getstate__(self) -> dict[str, Any]:
        self.restore()
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        restore: Callable[..., None] = super().__setstate__
        restore(state)
        if self.frozen:
            self._kept = self._tensors()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if not self.frozen:
            apply: Callable[..., Self] = super()._apply  # torch has no types for it
            return apply(fn, recurse)
        self.restore()
        device = device_after(fn, next(self.parameters()).device)
        with torch.inference_mode(False), torch.no_grad():
            for child in self._modules.values():
                if child is not None:
                    move: Callable[..., nn.Module] = child._apply
                    move(lambda tensor: tensor.to(device))
        self._kept = self._tensors()
        return self

    def _replicate_for_data_parallel(self) -> Self:
        if self.frozen:
            raise TypeError(
                "DataParallel cannot copy a tokenizer to each device; use DistributedDataParallel, or encode before it"
            )
        replicate: Callable[..., Self] = super()._replicate_for_data_parallel
        return replicate()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, *found: list[str]
    ) -> None:
        if self.frozen:
            self.restore()
            others = []
            for name, tensor in nn.Module.state_dict(self, keep_vars=True).items():
                if prefix + name in state_dict:
                    if not _is_rounded(state_dict[prefix + name], tensor):
                        others.append(name)
                    state_dict[prefix + name] = tensor
            if others:
                found[-1].append(
                    f"the tokenizer's weights are frozen, and the checkpoint has others (tensors that differ: "
                    f"{len(others)}, the first is {prefix}{others[0]}); load the tokenizer of this checkpoint with "
                    "from_pretrained"
                )
        load: Callable[..., None] = super()._load_from_state_dict
        load(state_dict, prefix, metadata, strict, *found)

    def _tensors(self) -> list[_Kept]:
        return [
            _Kept(store, name, tensor, tensor.detach())
            for module in self.modules()
            for store in (module._parameters, module._buffers)
            for name, tensor in store.items()
            if tensor is not None
        ]


def device_after(fn: Callable[[Tensor], Tensor], device: torch.device) -> torch.device:
    """Where `fn`, which a parent applies to all of its tensors, puts one that is on `device`; meta is nowhere."""
    moved = fn(torch.zeros(1, device=device)).device
    return device if moved.type == "meta" else moved


def _is_rounded(given: Any, own: Tensor) -> bool:
    """Whether `given` has the values of `own`, or these rounded to the type that it has or had before."""
    if not isinstance(given, Tensor) or given.shape != own.shape or given.is_meta:
        return False
    given, own = given.detach(), own.detach().to(given.device)
    if torch.equal(own.to(given.dtype), given):
        return True
    types = (torch.bfloat16, torch.float16) if own.is_floating_point() else ()
    return any(torch.equal(own.to(dtype).to(given.dtype), given) for dtype in types)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
