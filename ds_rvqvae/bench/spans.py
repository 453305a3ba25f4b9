"""The time of a step by its parts, from nested spans, and by operations, from the profiler."""

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from deepspeed.comm import comm
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from ds_rvqvae.train.trainer import Trainer

COLLECTIVES = (
    *("all_reduce", "reduce", "broadcast", "all_gather", "all_gather_into_tensor"),
    *("reduce_scatter", "reduce_scatter_tensor"),
)
"""Collectives of torch.distributed, which sums the codebooks, and of DeepSpeed's layer over it."""
QUANTIZER = "quantizer"


class Spans:
    """Seconds by name; time in an inner span does not count for the outer one. Each edge waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def _turn(self) -> None:
        """Adds the time since the last edge to the innermost open span."""
        synchronize(self.device)
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **keywords: Any) -> Any:
            with self.span(name):
                result = function(*arguments, **keywords)
                if name == "communication" and hasattr(result, "wait"):
                    result.wait()  # here, so that its time is counted
                return result

        return called


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has finished all its work; does nothing on CPUs."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def split_step(trainer: Trainer, steps: int) -> dict[str, float]:
    """Returns seconds per step by its parts, mean over `steps`; communication, host and device do not overlap here."""
    spans = Spans(trainer.device)
    model, engine, quantizer = trainer.model, trainer.engine, trainer.model.quantizer
    places: list[tuple[Any, str, str]] = [
        (model.encoder, "forward", "forward: encoder"),
        (quantizer, "forward", "forward: quantizer"),
        (model.decoder, "forward", "forward: decoder"),
        (engine, "backward", "backward"),
        (engine, "step", "optimizer"),
        (quantizer, "update_codebooks", "codebook update"),
        (trainer.loader, "next", "data wait"),
        *((owner, name, "communication") for owner in (dist, comm.cdb) for name in COLLECTIVES if hasattr(owner, name)),
    ]
    with replaced([(owner, name, spans.around(label, getattr(owner, name))) for owner, name, label in places]):
        for _ in range(steps):
            with spans.span("losses and the rest"):
                trainer.step()
    return {name: seconds / steps for name, seconds in spans.seconds.items()}


@contextlib.contextmanager
def replaced(places: list[tuple[Any, str, Callable[..., Any]]]) -> Iterator[None]:
    """Replaces functions of modules or instances for a while; each entry is owner, name and new function."""
    before = [(owner, name, owner.__dict__.get(name)) for owner, name, _ in places]
    for owner, name, function in places:
        setattr(owner, name, function)
    try:
        yield
    finally:
        for owner, name, own in before:
            setattr(owner, name, own) if own is not None else delattr(owner, name)


class Operations(NamedTuple):
    """The profiler's results per step."""

    seconds: float
    """Wall time."""
    conv_seconds: float
    """Time in convolutions, without the quantizer's distances; on a GPU, the GPU's time."""
    busy_seconds: float | None
    """Time in which a GPU works; None on CPUs."""
    kernels: int
    """Kernels launched on a GPU; on CPUs, operations that call no others."""


def count_operations(trainer: Trainer, steps: int, trace: Path | None = None) -> Operations:
    """Profiles steps, and writes a Chrome trace of them if `trace` names a file."""
    on_gpu = trainer.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    quantizer = trainer.model.quantizer
    forward = quantizer.forward

    def marked(latents: torch.Tensor) -> Any:
        with record_function(QUANTIZER):
            return forward(latents)

    with replaced([(quantizer, "forward", marked)]), profile(activities=activities) as found:
        began = time.perf_counter()
        for _ in range(steps):
            trainer.step()
        synchronize(trainer.device)
        seconds = time.perf_counter() - began
    if trace is not None:
        found.export_chrome_trace(str(trace))
    work = device_work(found.events(), on_gpu)
    return Operations(
        seconds=seconds / steps,
        conv_seconds=work.conv_seconds / steps,
        busy_seconds=work.busy_seconds / steps if on_gpu else None,
        kernels=round(work.kernels / steps),
    )


class DeviceWork(NamedTuple):
    """The work in the profiler's events, summed over all steps."""

    conv_seconds: float
    busy_seconds: float
    """Time in which a GPU runs at least one kernel or copy; 0 on CPUs."""
    kernels: int


def device_work(events: Iterable[Any], on_gpu: bool) -> DeviceWork:
    """Counts the work of a device in torch's profiler events.

    A GPU's kernel appears twice: as an event of the GPU, which counts as a kernel and as busy time, and in the
    operation that launched it, which says what it was for. Annotations, of the profiler and of `record_function`,
    appear as events of the GPU too and are no work.

    Args:
        events: `FunctionEvent`s of torch.autograd.profiler_util, with their parents.
        on_gpu: whether a GPU's work is counted, or the CPU's.
    """
    conv, kernels, leaves, spans = 0.0, 0, 0, list[tuple[float, float]]()
    for event in events:
        if event.device_type != DeviceType.CPU:
            if (kind := _kind_of(event)) is not None:
                kernels += kind == "kernel"
                spans.append((event.time_range.start, event.time_range.end))
        elif "::" in event.name:  # an operation, not a compiled kernel or an annotation, of whatever name
            leaves += event.name.startswith("aten::") and not event.cpu_children
            if "conv" in event.name and not _within(event, QUANTIZER):
                conv += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    return DeviceWork(conv / 1e6, _covered(spans) / 1e6, kernels if on_gpu else leaves)


def _kind_of(event: Any) -> str | None:
    """Returns "kernel", or "copy" for other work, of an event of a GPU; None if it is no work."""
    kind = getattr(event, "activity_type", None)  # from torch 2.10 on
    if kind is None:
        if event.is_user_annotation:
            return None
        return "copy" if event.name.startswith(("Memcpy", "Memset")) else "kernel"
    return {"kernel": "kernel", "gpu_memcpy": "copy", "gpu_memset": "copy"}.get(kind)


def _covered(spans: list[tuple[float, float]]) -> float:
    """Returns the length of the union of intervals: kernels on several streams run at the same time."""
    total, reached = 0.0, -math.inf
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _within(event: Any, name: str) -> bool:
    parent = event
    while parent is not None:
        if parent.name == name:
            return True
        parent = parent.cpu_parent
    return False
