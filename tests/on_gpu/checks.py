"""All checks in their order: the most useful answers come first, so that a cut-off keeps them."""

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
    """Its time budget on a GPU, which is assumed; it does not start with less time left, and is ended after three times
    as long."""
    slots: int = 1
    """The fewest GPUs that it needs."""
    rehearsed: bool = False
    """Whether a rehearsal has it that does not ask for all: it ends soon on CPU ranks."""
    short: bool = False
    """Whether a short rehearsal has it."""

    @property
    def title(self) -> str:
        return (self.run.__doc__ or self.name).strip().splitlines()[0]


CHECKS = (
    Check("versions", start.versions, 8, rehearsed=True, short=True),
    Check("launch", start.launch, 30, rehearsed=True, short=True),
    Check("memory", start.memory, 10, rehearsed=True, short=True),
    Check("all_reduce", several.all_reduce, 30, slots=2),
    Check("readme_line", several.readme_line, 120, slots=2, rehearsed=True),
    Check("resume", start.resume, 30, rehearsed=True),
    Check("bench", speed.bench_baseline, 30),
    Check("equal_ranks", several.equal_ranks, 30, slots=2, rehearsed=True),
    Check("killed", failures.killed, 20, rehearsed=True),
    Check("out_of_memory", failures.out_of_memory, 30, rehearsed=True),
    Check("universal", start.universal, 30),
    Check("waits", precision.waits, 15, rehearsed=True, short=True),
    Check("bf16", precision.bf16, 25),
    Check("codes", precision.codes, 20, rehearsed=True, short=True),
    Check("scaling", several.scaling, 120, slots=2),
    Check("same_batch", several.same_batch, 40, slots=2),
    Check("stopped", failures.stopped, 30),
    Check("interrupted", failures.interrupted, 18, rehearsed=True),
    Check("convolutions", speed.convolutions, 15, rehearsed=True, short=True),
    Check("monitor", watching.monitor, 4, rehearsed=True, short=True),
    Check("require_idle", watching.require_idle, 12, rehearsed=True, short=True),
    Check("auto_batch", precision.auto_batch_size, 20),
    Check("not_finite", failures.not_finite, 16, rehearsed=True),
    Check("compile", speed.compiled, 60),
    Check("bench_large", speed.bench_large, 20),
    Check("large", speed.large, 40),
    Check("host_cost", speed.host_cost, 40),
    Check("other_number", several.other_number, 70, slots=2),
    Check("two_runs", several.two_runs, 30, slots=2),
    Check("body", several.body, 70, slots=2),
)
