"""All checks in their order: the dearest answers come first, so that a cut-off keeps them."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.on_gpu import failures, precision, several, speed, start, watching
from tests.on_gpu.box import Box
from tests.on_gpu.claims import Claim


@dataclass(frozen=True)
class Check:
    """One check."""

    name: str
    run: Callable[[Box], list[Claim]]
    seconds: float
    """Its time budget on a GPU; it does not start with less time left, and is ended after three times as long."""
    slots: int = 1
    """The fewest GPUs that it needs."""
    short: bool = False
    """Whether a short rehearsal has it."""

    @property
    def title(self) -> str:
        return (self.run.__doc__ or "").strip().splitlines()[0]


CHECKS = (
    Check("versions", start.versions, 15, short=True),
    Check("launch", start.launch, 40, short=True),
    Check("memory", start.memory, 15, short=True),
    Check("readme_line", several.readme_line, 150, slots=2),
    Check("all_reduce", several.all_reduce, 40, slots=2),
    Check("resume", start.resume, 45),
    Check("bench", speed.bench_baseline, 45),
    Check("equal_ranks", several.equal_ranks, 40, slots=2),
    Check("killed", failures.killed, 40),
    Check("out_of_memory", failures.out_of_memory, 40),
    Check("universal", start.universal, 50),
    Check("waits", precision.waits, 20, short=True),
    Check("bf16", precision.bf16, 45),
    Check("codes", precision.codes, 25, short=True),
    Check("scaling", several.scaling, 150, slots=2),
    Check("same_batch", several.same_batch, 50, slots=2),
    Check("stopped", failures.stopped, 45),
    Check("interrupted", failures.interrupted, 30),
    Check("convolutions", speed.convolutions, 20, short=True),
    Check("monitor", watching.monitor, 5, short=True),
    Check("require_idle", watching.require_idle, 15, short=True),
    Check("auto_batch", precision.auto_batch_size, 40),
    Check("not_finite", failures.not_finite, 25),
    Check("compile", speed.compiled, 100),
    Check("bench_large", speed.bench_large, 40),
    Check("large", speed.large, 60),
    Check("host_cost", speed.host_cost, 100),
    Check("other_number", several.other_number, 90, slots=2),
    Check("two_runs", several.two_runs, 40, slots=2),
    Check("body", several.body, 90, slots=2),
)
