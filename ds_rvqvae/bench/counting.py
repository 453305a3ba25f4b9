"""Counts the operations of a training step and the host's waits for the device, from what PyTorch dispatches."""

import contextlib
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from torch.utils._python_dispatch import TorchDispatchMode

import ds_rvqvae
from ds_rvqvae.bench.spans import replaced
from ds_rvqvae.train.trainer import Trainer

_LIBRARIES = {"aten", "c10d", "prims", "_c10d_functional"}
"""PyTorch's own operators. Any other counts as the operations that it dispatches."""
_FREE = frozenset(
    {
        *("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"),
        *("detach", "alias", "lift_fresh", "is_pinned", "set_", "resize_", "_reshape_alias", "_unsafe_view"),
    }
)  # fmt: skip
"""Operators of aten that allocate, or that give a tensor of the same numbers, beside those that return views."""
_READS = frozenset({"_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select", "_unique2"})
"""Operators of aten whose result the host waits for."""
_ROOTS = {
    "ours": str(Path(ds_rvqvae.__file__).parent),
    "deepspeed": str(Path(deepspeed.__file__).parent),
}
_OWN = str(Path(__file__).parent)
BACKWARD = "backward: gradients"
RECOMPUTATION, REDUCTION = "backward: recomputation", "backward: reduction"
STEP, REST = "engine.step", "losses and the rest"


class HostWaits(NamedTuple):
    """The host's waits for results of the device in a step."""

    ours: int
    deepspeed: int
    """Those in DeepSpeed's code, or in PyTorch's code that it called."""
    where: dict[str, int]
    """Waits by file and line: the innermost line of ours or of DeepSpeed's that leads to them."""


class StepCount(NamedTuple):
    """The work that the host starts in a step."""

    operations: dict[str, int]
    """Operations by part of the step; `all` is their sum."""
    kinds: dict[str, int]
    """Operations by the operator's name, the most frequent first."""
    host_waits: HostWaits


class OperationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is dispatched while it is active, by the part of the step in which that happens.

    Views and allocations are left out. An operator that is not PyTorch's own counts as the operations that it
    dispatches. Calls of the accelerator's `synchronize` count as waits.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: Counter[tuple[str, str]] = Counter()
        """By part and operator."""
        self.waits: Counter[tuple[str, str]] = Counter()
        """By owner and place."""
        self._open = [REST]
        self._thread = threading.get_ident()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace not in _LIBRARIES:
            return self._inside(func, args, kwargs)
        name = func._schema.name.partition("::")[2]
        if func.namespace != "aten" or not (name in _FREE or _is_view(func)):
            self.operations[self._part(), name] += 1
        before = kwargs.get("device"), kwargs.get("non_blocking")
        if name in _READS or (name == "_to_copy" and _copies_to_host(args, *before)):
            self.note_wait()
        return func(*args, **kwargs)

    def _inside(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Calls an operator's implementation with the counter active."""
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        if not tensors:
            return func(*args, **kwargs)
        key = torch._C._dispatch_key_for_device(tensors[0].device.type)
        with self:
            return func.redispatch(torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key)), *args, **kwargs)

    def note_wait(self) -> None:
        """Counts a wait at the present place."""
        owner, place = _place()
        self.waits[owner, place] += 1

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Inside, operations belong to the part `name`."""
        self._open.append(name)
        try:
            yield
        finally:
            self._open.pop()

    def _part(self) -> str:
        part = self._open[-1]
        return _piece_of_backward(self._thread) if part == BACKWARD else part

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns `function` as a part of the step."""

        def called(*arguments: Any, **keywords: Any) -> Any:
            with self.part(name):
                return function(*arguments, **keywords)

        return called

    def waiting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns `function`, each call of which is a wait."""

        def called(*arguments: Any, **keywords: Any) -> Any:
            self.note_wait()
            return function(*arguments, **keywords)

        return called


def count_step(trainer: Trainer, steps: int = 5) -> StepCount:
    """Counts the operations of optimizer steps, each from the end of one `engine.step` to the end of the next.

    Quantizer dropout gives steps with fewer levels. So of all steps the one with the most operations is returned.

    Args:
        steps: number of steps counted, after one that only begins the first.
    """
    model, engine, quantizer = trainer.model, trainer.engine, trainer.model.quantizer
    counter, counts = OperationCounter(), list[StepCount]()
    calls, accumulation = 0, trainer.profile.gradient_accumulation_steps
    engine_step = engine.step

    def step(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        with counter.part(STEP):
            result = engine_step(*arguments, **keywords)
        calls += 1
        if calls % accumulation == 0:
            counts.append(_taken(counter))
        return result

    places: list[tuple[Any, str, str]] = [
        (model.encoder, "forward", "forward: encoder"),
        (quantizer, "forward", "forward: quantizer"),
        (model.decoder, "forward", "forward: decoder"),
        (engine, "backward", BACKWARD),
        (quantizer, "update_codebooks", "codebook update"),
        *([] if trainer.average is None else [(trainer.average, "update", "weight average")]),
    ]
    functions = [(owner, name, counter.around(part, getattr(owner, name))) for owner, name, part in places]
    accelerator = get_accelerator()
    functions += [(engine, "step", step)]
    functions += [(accelerator, "synchronize", counter.waiting(accelerator.synchronize))]
    with torch.compiler.set_stance("force_eager"), replaced(functions), counter:
        for _ in range(steps + 1):
            trainer.step()
    return max(counts[1:], key=lambda count: count.operations["all"])


def _taken(counter: OperationCounter) -> StepCount:
    """Returns what was counted since the last call."""
    parts, kinds, owners, where = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for (part, kind), times in counter.operations.items():
        parts[part] += times
        kinds[kind] += times
    for (owner, place), times in counter.waits.items():
        owners[owner] += times
        where[place] += times
    counter.operations.clear()
    counter.waits.clear()
    operations = {**dict(parts.most_common()), "all": parts.total()}
    waits = HostWaits(owners["ours"], owners["deepspeed"], dict(where.most_common()))
    return StepCount(operations, dict(kinds.most_common()), waits)


def _is_view(func: Any) -> bool:
    """Whether an operator returns views of its arguments and writes nothing."""
    returned = func._schema.returns
    return bool(returned) and all(value.alias_info is not None and not value.alias_info.is_write for value in returned)


def _copies_to_host(args: Any, device: Any, non_blocking: Any) -> bool:
    source = args[0].device.type
    return source != "cpu" and device is not None and torch.device(device).type == "cpu" and not non_blocking


_RECOMPUTING = (
    *("torch/utils/checkpoint.py", "activation_checkpointing/checkpointing.py"),
    "ds_rvqvae/train/zero/recomputation.py",
)


def _piece_of_backward(own_thread: int) -> str:
    """Returns the piece of a backward pass that runs, by the functions that autograd has called.

    Args:
        own_thread: the thread that called the backward pass.
    """
    frame: FrameType | None = sys._getframe(1)
    piece = BACKWARD
    while frame is not None:
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if file.endswith("torch/autograd/__init__.py") and name in ("backward", "grad"):
            return piece
        if file.endswith(_RECOMPUTING):
            piece = RECOMPUTATION
        elif piece == BACKWARD and file.startswith((_ROOTS["deepspeed"], f"{_ROOTS['ours']}/train")):
            piece = REDUCTION
        frame = frame.f_back
    if piece == BACKWARD and threading.get_ident() == own_thread:
        return REDUCTION  # before or after autograd's work
    return piece  # on a GPU autograd works in a thread of its own


def _place() -> tuple[str, str]:
    """Returns the owner, and the file and line, of the innermost code of ours or of DeepSpeed's that runs."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_OWN):
            for owner, root in _ROOTS.items():
                if file.startswith(root):
                    return owner, f"{Path(file).relative_to(Path(root).parent)}:{frame.f_lineno}"
        frame = frame.f_back
    return "ours", "unknown"
