"""Nets that stay unchanged inside any module or trainer.

A second stage has a trained net among its submodules. Trainers change all of their submodules (float type, first
weights, weight decay, averages, mode), and this would change codes silently. So a frozen net is in its parent's
`state_dict` and moves between devices with it, but otherwise the parent finds a module without children, parameters and
buffers. The net itself lists copies of them all. If something still writes to the memory of its tensors, such as an
embedding that shares memory with a codebook, the net's next use detects it.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Self, override

TRAINABLE = "to train them, load it with from_pretrained(…, trainable=True)"


_STRAYS = 1e-4
"""Fraction of a weight by which averages of a checkpoint may be off; an optimizer step changes more."""
_PROBED = 8
"""How many numbers of each tensor every use compares, approximately."""


class _OwnWalk(set[nn.Module]):
    """Modules visited by a walk that began at a frozen module, not at its parent."""


class _Kept(NamedTuple):
    """A parameter or buffer of a frozen net."""

    store: dict[str, Any]
    name: str
    tensor: Tensor
    values: Tensor
    """The same memory, kept through a cast of `tensor` or an assignment to it."""
    key: str | None
    """Its key in the state dict; None if it is not part of it."""


class _Seal:
    """Detects which tensors, by name, have been written to since it was made.

    torch counts writes to a tensor, except those through `.data`; for these, a few numbers of each tensor are compared.
    Sums over all bits decide in the end, so that writing the same values again does not count.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)
        flat = [
            tensor.view(-1) if tensor.is_contiguous() else tensor[(0,) * (tensor.dim() - 1)]
            for tensor in self._tensors.values()
            if tensor.is_floating_point()
        ]
        self._probes = [row[:: max(1, len(row) // _PROBED)] for row in flat]
        self._seen, self._versions, self._sums = self._probe(), self._writes(), self._sums_of_bits()

    def changed(self) -> list[str]:
        versions = self._writes()
        if versions == self._versions and torch.equal(self._probe(), self._seen):
            return []
        sums = self._sums_of_bits()
        found = [name for name, now, before in zip(self._tensors, sums, self._sums, strict=True) if now != before]
        if not found:
            self._versions = versions
        return found

    def _probe(self) -> Tensor:
        with torch.autocast(self._probes[0].device.type, enabled=False):
            return torch.cat(self._probes)

    def _writes(self) -> list[int]:
        return [0 if tensor.is_inference() else tensor._version for tensor in self._tensors.values()]

    def _sums_of_bits(self) -> list[int]:
        integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        sums = []
        for tensor in self._tensors.values():
            bits = tensor.contiguous().view(integers[tensor.element_size()])
            rows = bits.reshape(-1, tensor.shape[-1] if tensor.dim() > 1 else 1).sum(dim=1, dtype=torch.int64)
            sums.append((rows * torch.arange(1, len(rows) + 1, device=rows.device)).sum())
        return torch.stack(sums).tolist()


class KeepsFloatType(nn.Module):
    """A module that refuses another float type; a parent's cast leaves it unchanged."""

    def float_type(self) -> torch.dtype | None:
        """The float type that it keeps; None if it accepts any."""
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

    def _named_members(self, *given: Any, **named: Any) -> Iterator[tuple[str, Any]]:
        # A parent's `apply`, or a loop over its children, then writes to copies of the parameters.
        frozen: set[int] = set()
        for module in self.modules():
            if isinstance(module, Freezable) and module.frozen:
                module.restore()
                frozen.update(id(kept.tensor) for kept in module._kept)
        walk: Callable[..., Iterator[tuple[str, Any]]] = super()._named_members
        for name, member in walk(*given, **named):
            yield name, _copy(member) if id(member) in frozen else member

    def _check_asked(self, change: Callable[[Tensor], Tensor]) -> None:
        """Raises TypeError if `change` makes another float type, ValueError if it leaves no weights."""
        own = self.float_type()
        if own is None:
            return
        asked = change(torch.zeros(1, dtype=own, device="cpu"))
        if asked.dtype != own:
            raise TypeError(
                f"a tokenizer stays {_name(own)}: a cast would change its codes; for nets in {_name(asked.dtype)}, "
                f"load it with from_pretrained(…, dtype=torch.{_name(asked.dtype)})"
            )
        if asked.is_meta:
            raise ValueError("a tokenizer on the meta device has no weights; leave it on its device")


class Freezable(KeepsFloatType):
    """A module that can be frozen; all its parameters and buffers are in submodules.

    A frozen module stays in eval mode; it can only move between devices. A parent's state dict has copies of its
    tensors. A state dict that is loaded must have the same values, up to rounding by another float type or by averages;
    the module keeps its own values.
    """

    frozen = False

    def freeze(self) -> Self:
        """Freezes the module in its present state and returns it."""
        self.eval().requires_grad_(False)
        self.frozen = True
        self._keep()
        return self

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self._kept[0].values.device if self.frozen else next(self.parameters()).device

    def restore(self) -> None:
        """Undoes casts of submodules, and assignments to them, since the module was frozen.

        Raises:
            RuntimeError: other values were written to the memory of its tensors, which cannot be undone.
        """
        if not self.frozen:
            return
        for store, name, tensor, values, _ in self._kept:
            if store.get(name) is not tensor:
                store[name] = tensor
            if tensor.data_ptr() != values.data_ptr() or tensor.dtype != values.dtype:
                tensor.data = values
        if changed := self._seal.changed():
            raise RuntimeError(
                f"the tokenizer's weights were written to since it was loaded (tensors that differ: {len(changed)}, "
                f"the first is {changed[0]}), for example by a layer that shares their memory: its codes would change; "
                f"load it again with from_pretrained, and give that layer a clone(); {TRAINABLE}"
            )

    @override
    def float_type(self) -> torch.dtype | None:
        return self._kept[0].values.dtype if self.frozen else None

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
        # `apply` mostly sets first weights.
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
        # Code that averages a parent's state dict writes into it in place.
        others.update({name: tensor.clone() for name, tensor in others.items() if name not in there})
        return others

    def __getstate__(self) -> dict[str, Any]:
        self.restore()
        return {name: value for name, value in self.__dict__.items() if name not in ("_kept", "_seal")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        restore: Callable[..., None] = super().__setstate__
        restore(state)
        if self.frozen:
            self._keep()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if not self.frozen:
            apply: Callable[..., Self] = super()._apply  # torch has no types for it
            return apply(fn, recurse)
        self.restore()
        device = device_after(fn, self.device)
        with torch.inference_mode(False), torch.no_grad():
            for child in self._modules.values():
                if child is not None:
                    move: Callable[..., nn.Module] = child._apply
                    move(lambda tensor: tensor.to(device))
        self._keep()
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
                    f"the tokenizer's weights are frozen, and the checkpoint has different ones (tensors that differ: "
                    f"{len(others)}, the first is {prefix}{others[0]}); load the tokenizer of this checkpoint with "
                    "from_pretrained"
                )
        load: Callable[..., None] = super()._load_from_state_dict
        load(state_dict, prefix, metadata, strict, *found)

    def _keep(self) -> None:
        self._kept = [
            _Kept(store, name, tensor, tensor.detach(), None if name in passing else f"{place}.{name}")
            for place, module in self.named_modules()
            for store, passing in ((module._parameters, ()), (module._buffers, module._non_persistent_buffers_set))
            for name, tensor in store.items()
            if tensor is not None
        ]
        self._seal = _Seal({kept.key: kept.values for kept in self._kept if kept.key is not None})


def device_after(fn: Callable[[Tensor], Tensor], device: torch.device) -> torch.device:
    """The device to which `fn`, which a parent applies to its tensors, moves a tensor of `device`; meta is ignored."""
    moved = fn(torch.zeros(1, device=device)).device
    return device if moved.type == "meta" else moved


def _is_rounded(given: Any, own: Tensor) -> bool:
    """Whether `given` equals `own`, up to rounding by its present or an earlier float type, or by averages.

    A moving average of constant numbers differs from them by rounding: by 1e-5 of each with a decay of 0.999.
    """
    if not isinstance(given, Tensor) or given.shape != own.shape or given.is_meta:
        return False
    given, own = given.detach(), own.detach().to(given.device)
    if torch.equal(own.to(given.dtype), given):
        return True
    if own.dtype != torch.bool and torch.allclose(given.double(), own.double(), rtol=_STRAYS, atol=0.0):
        return True
    types = (torch.bfloat16, torch.float16) if own.is_floating_point() else ()
    return any(torch.equal(own.to(dtype).to(given.dtype), given) for dtype in types)


def _copy(tensor: Tensor) -> Tensor:
    values = tensor.detach().clone()
    return nn.Parameter(values, requires_grad=False) if isinstance(tensor, nn.Parameter) else values


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
