"""Where a step's time goes: spans within each other, and what the profiler says of operations."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from deepspeed.comm import comm
from torch.profiler import ProfilerActivity, profile, record_function

from ds_rvqvae.train.trainer import Trainer

COLLECTIVES = (
    *("all_reduce", "reduce", "broadcast", "all_gather", "all_gather_into_tensor"),
    *("reduce_scatter", "reduce_scatter_tensor"),
)
"""Of torch.distributed, which the codebooks are summed by, and of DeepSpeed's own layer over it."""
QUANTIZER = "quantizer"


class Spans:
    """Seconds by name; a span within another counts for itself only. Waits for the device at every edge."""

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
        """Gives what passed since the last edge to the innermost open span."""
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
                    result.wait()  # here, so that the time is seen
                return result

        return called


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def split_step(trainer: Trainer, steps: int) -> dict[str, float]:
    """Seconds a step by part, mean over `steps`, without overlap of communication or of host and device."""
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
    with _replaced([(owner, name, spans.around(label, getattr(owner, name))) for owner, name, label in places]):
        for _ in range(steps):
            with spans.span("losses and the rest"):
                trainer.step()
    return {name: seconds / steps for name, seconds in spans.seconds.items()}


@contextlib.contextmanager
def _replaced(places: list[tuple[Any, str, Callable[..., Any]]]) -> Iterator[None]:
    """Other functions meanwhile under a name of an object, a module's or an instance's."""
    before = [(owner, name, owner.__dict__.get(name)) for owner, name, _ in places]
    for owner, name, function in places:
        setattr(owner, name, function)
    try:
        yield
    finally:
        for owner, name, own in before:
            setattr(owner, name, own) if own is not None else delattr(owner, name)


class Operations(NamedTuple):
    """What the profiler saw, a step."""

    seconds: float
    """Of the host's clock."""
    conv_seconds: float
    """In convolutions, the quantizer's distances left out; on a GPU of its time."""
    busy_seconds: float | None
    """Of a GPU; None on CPUs."""
    kernels: int
    """Launched on a GPU; on CPUs operations that run on their own."""


def count_operations(trainer: Trainer, steps: int, trace: Path | None = None) -> Operations:
    """Profiles steps, and writes a Chrome trace of them where a file is named."""
    on_gpu = trainer.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    quantizer = trainer.model.quantizer
    forward = quantizer.forward

    def marked(latents: torch.Tensor) -> Any:
        with record_function(QUANTIZER):
            return forward(latents)

    with _replaced([(quantizer, "forward", marked)]), profile(activities=activities) as found:
        began = time.perf_counter()
        for _ in range(steps):
            trainer.step()
        synchronize(trainer.device)
        seconds = time.perf_counter() - began
    if trace is not None:
        found.export_chrome_trace(str(trace))
    events = found.events()
    convs = [event for event in events if "conv" in event.name and not _within(event, QUANTIZER)]
    conv = sum(event.self_device_time_total if on_gpu else event.self_cpu_time_total for event in convs)
    kernels = [event for event in events if event.device_type.name == "CUDA"]
    busy = sum(event.self_device_time_total for event in kernels) / 1e6 / steps
    leaves = [event for event in events if event.name.startswith("aten::") and not event.cpu_children]
    return Operations(
        seconds=seconds / steps,
        conv_seconds=conv / 1e6 / steps,
        busy_seconds=busy if on_gpu else None,
        kernels=round(len(kernels if on_gpu else leaves) / steps),
    )


def _within(event: Any, name: str) -> bool:
    parent = event
    while parent is not None:
        if parent.name == name:
            return True
        parent = parent.cpu_parent
    return False
