"""Arithmetic that does not depend on the caller's settings: autocast, TF32, compilers, modes and defaults."""

import functools
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ds_rvqvae.model.frozen import Freezable

Function = TypeVar("Function", bound=Callable[..., Any])
Lengths = int | Sequence[int] | Tensor | NDArray[np.integer[Any]]
"""Length of each clip of a padded batch, or of one clip."""


class CudnnSettings(NamedTuple):
    """cuDNN's settings, which belong to a process."""

    allow_tf32: bool
    """Convolutions of fp32 numbers round their inputs to 10 bits of mantissa."""
    benchmark: bool
    """The fastest algorithm is found by trying, once per shape; the choice may differ between processes."""
    deterministic: bool
    """Only algorithms that sum in a fixed order."""


class Role(Enum):
    """The role of a process, or of a part of its work, which chooses cuDNN's settings. Nothing else in this package
    changes them. Matrix products of fp32 numbers have full precision everywhere, which is torch's default."""

    TRAINING = CudnnSettings(allow_tf32=False, benchmark=False, deterministic=False)
    """A rank: fp32 means fp32, and bf16, the default, is not concerned. Benchmarking takes memory that the plan does
    not know. Gradients are summed in any order, because the fixed one is slower, so on GPUs two runs are not equal."""
    INFERENCE = CudnnSettings(allow_tf32=False, benchmark=False, deterministic=True)
    """Codes, motion and scores: equal for equal input, so of full precision and in a fixed order. `exactly` sets it."""
    PEER = CudnnSettings(allow_tf32=True, benchmark=False, deterministic=False)
    """The plain loop of `bench`: torch's defaults, which a script has that sets nothing."""


def take_role(role: Role) -> None:
    """Gives this process the settings of a role."""
    for name, value in role.value._asdict().items():
        setattr(torch.backends.cudnn, name, value)


@contextmanager
def in_role(role: Role) -> Iterator[None]:
    """Inside, this process has the settings of a role; no other thread may depend on them meanwhile."""
    before = CudnnSettings(*(getattr(torch.backends.cudnn, name) for name in CudnnSettings._fields))
    take_role(role)
    try:
        yield
    finally:
        for name, value in before._asdict().items():
            setattr(torch.backends.cudnn, name, value)


@contextmanager
def exactly(model: Freezable) -> Iterator[None]:
    """Inside, `model` computes as it does alone: in eval mode, without autocast, TF32 and gradients, on a GPU in the
    same order each time."""
    model.restore()
    device = model.device.type
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad(), torch.autocast(device, enabled=False), _full_precision(device):
            yield
    finally:
        for module in training:
            module.training = True


class _Switch(NamedTuple):
    """A setting of torch that can reduce the precision of fp32 arithmetic, or change its order."""

    owner: Any
    attribute: str
    reduced: tuple[Any, ...]
    full: Any
    parent: Any = None
    """The owner of the setting that this one follows while it is "none"."""


class _MatmulPrecision:
    """torch's matmul precision as an attribute."""

    @property
    def value(self) -> str:
        return torch.get_float32_matmul_precision()

    @value.setter
    def value(self, value: str) -> None:
        torch.set_float32_matmul_precision(value)


def _switches(device: str) -> list[_Switch]:
    backends: Any = torch.backends
    if device != "cpu":
        chosen = Role.INFERENCE.value
        order = [
            _Switch(backends.cudnn, name, (not getattr(chosen, name),), getattr(chosen, name))
            for name in ("benchmark", "deterministic")
        ]
        return [*order, *_precision_switches(device)]
    return _precision_switches(device)


def _precision_switches(device: str) -> list[_Switch]:
    backends: Any = torch.backends
    if not hasattr(backends, "fp32_precision"):  # before torch 2.9
        matmul = _Switch(_MatmulPrecision(), "value", ("high", "medium"), "highest")
        return [matmul] if device == "cpu" else [matmul, _Switch(backends.cudnn, "allow_tf32", (True,), False)]
    if device == "cpu":
        parent, owners = backends.mkldnn, (backends.mkldnn.conv, backends.mkldnn.matmul)
    else:
        parent, owners = backends.cudnn, (backends.cudnn.conv, backends.cuda.matmul)
    return [_Switch(owner, "fp32_precision", ("tf32", "bf16"), "ieee", parent) for owner in owners]


_pinning = threading.Lock()
_pinned: dict[str, list[tuple[_Switch, Any]]] = {}
"""Per kind of device: settings that are changed until its last computing thread is done, with their earlier values."""
_computing: dict[str, int] = {}


@contextmanager
def _full_precision(device: str) -> Iterator[None]:
    """Inside, fp32 arithmetic of this process is that of `Role.INFERENCE`, whatever `torch.backends` is set to.

    The settings belong to the process, not to a thread: several threads may be inside, and the last one resets them.
    """
    with _pinning:
        _computing[device] = _computing.get(device, 0) + 1
        for switch in _switches(device):
            value = getattr(switch.owner, switch.attribute)
            if value in switch.reduced:
                follows = switch.parent is not None and switch.parent.fp32_precision == value
                _pinned.setdefault(device, []).append((switch, "none" if follows else value))
                setattr(switch.owner, switch.attribute, switch.full)
    try:
        yield
    finally:
        with _pinning:
            _computing[device] -= 1
            if not _computing[device]:
                for switch, value in _pinned.pop(device, []):
                    setattr(switch.owner, switch.attribute, value)


@contextmanager
def plain_tensors() -> Iterator[None]:
    """Inside, new tensors are by default on the CPU, in fp32, and not inference-mode tensors."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(before)


def as_tensor(values: Tensor | NDArray[Any], instead: str = "") -> Tensor:
    """`values` as a tensor on their own device, in native byte order; a float16 array becomes fp32.

    Args:
        instead: for the message, if a path is given: the call that reads the file.

    Raises:
        TypeError: `values` is a path.
    """
    if isinstance(values, Tensor):
        return values
    if isinstance(values, str | bytes) or hasattr(values, "__fspath__"):
        raise TypeError(f"{values!r} is a path, not an array or tensor{instead and f'; {instead}'}")
    values = np.asarray(values)
    dtype = np.dtype(np.float32) if values.dtype == np.float16 else values.dtype.newbyteorder("=")
    return torch.from_numpy(np.ascontiguousarray(values, dtype))


def checked_lengths(lengths: Lengths | None, clips: int, most: int) -> list[int]:
    """A length for each clip, from 1 to `most`; raises ValueError."""
    if lengths is None:
        return [most] * clips
    counts = [int(count) for count in torch.as_tensor(lengths, device="cpu").reshape(-1)]
    if len(counts) != clips:
        raise ValueError(f"{len(counts)} lengths for {clips} clips")
    if any(not 1 <= count <= most for count in counts):
        raise ValueError(f"lengths are from 1 to {most}, not {counts}")
    return counts


def clips_of(rows: Tensor, lengths: Lengths | None, most: int) -> list[Tensor]:
    """The clips `[length, …]` of one clip `[T, …]` or a batch `[B, T, …]`."""
    batch = rows if rows.dim() == 3 else rows.unsqueeze(0)
    return [clip[:count] for clip, count in zip(batch, checked_lengths(lengths, len(batch), most), strict=True)]


def padded(clips: Sequence[Tensor], given: Tensor, longest: int, padding: int = -1) -> Tensor:
    """The results `clips`, shaped like `given`: one clip, or a batch padded to `longest` rows."""
    if given.dim() == 2:
        return clips[0]
    batch = clips[0].new_full((len(clips), longest, clips[0].shape[-1]), padding)
    for row, clip in zip(batch, clips, strict=True):
        row[: len(clip)] = clip
    return batch


def check_not_padded(codes: Tensor) -> None:
    """Raises ValueError if a row of codes, of one clip `[T', q]` or a batch, is -1 on all levels: that is padding."""
    empty = (codes == -1).all(dim=-1)
    if empty.any():
        batch = empty if empty.dim() == 2 else empty.unsqueeze(0)
        clip, row = (int(index) for index in batch.nonzero()[0])
        where = f"row {row} of clip {clip}" if empty.dim() == 2 else f"row {row}"
        raise ValueError(
            f"{where} is -1 on all levels, which is past a clip's end: give lengths, the frames of each clip"
        )


def eager(function: Function) -> Function:
    """Returns `function` so that torch.compile leaves it out: fused, its sums would round differently.

    `torch.compiler.disable` as a decorator would import the compiler, which takes a second.
    """

    uncompiled: Callable[..., Any] | None = None

    @functools.wraps(function)
    def run(*given: Any, **named: Any) -> Any:
        nonlocal uncompiled
        if "torch._dynamo" not in sys.modules:
            return function(*given, **named)
        if uncompiled is None:
            # torch has no types for it.
            disable: Callable[..., Callable[..., Any]] = torch.compiler.disable
            uncompiled = disable(function)
        return uncompiled(*given, **named)

    return cast(Function, run)
