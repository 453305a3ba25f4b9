"""The `rvqvae.schedule` and `rvqvae.training` objects of a profile."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ds_rvqvae.config.deepspeed import Count, Section
from ds_rvqvae.config.facts import FREE
from ds_rvqvae.config.names import FOREIGN_FORMATS

if TYPE_CHECKING:
    ForeignName = str
else:
    ForeignName = Literal[FOREIGN_FORMATS]


class ScheduleConfig(Section):
    kind: Annotated[Literal["milestones", "cosine"], FREE] = "milestones"
    """How the learning rate falls. milestones: at certain steps; cosine: along half a cosine wave from the learning
    rate to zero at total_iter (Loshchilov and Hutter 2017). A run that is resumed with another total_iter follows the
    new wave."""
    milestones: Annotated[list[Count], FREE] = [50_000, 200_000, 400_000]
    """Steps at which it falls. The learning rate is multiplied by gamma at each."""
    gamma: Annotated[float, Field(gt=0, le=1), FREE] = 0.05
    """Factor of the rate at each milestone."""
    warm_up_iter: Annotated[int, Field(ge=0), FREE] = 0
    """Steps over which the rate rises from zero."""


class TrainingConfig(Section):
    total_iter: Annotated[Count, FREE] = 300_000
    """Optimizer steps of the run."""
    log_every: Annotated[Count, FREE] = 100
    """Steps from one logged line to the next."""
    eval_every: Annotated[Count, FREE] = 5_000
    """Steps from one evaluation to the next."""
    save_every: Annotated[Count, FREE] = 5_000
    """Steps from one checkpoint to the next."""
    keep_checkpoints: Annotated[Count, FREE] = 3
    """Newest checkpoints to keep on disk."""
    keep_every: Annotated[Count | None, FREE] = None
    """Checkpoints at multiples of this are kept."""
    ema_decay: Annotated[Annotated[float, Field(gt=0, lt=1)] | None, FREE] = None
    """Evaluate and export averaged weights. The value is the decay of the moving average (Polyak and Juditsky 1992),
    at most (1 + t) / (10 + t) after t steps. null: the weights themselves."""
    max_skipped_steps: Annotated[Count, FREE] = 25
    """Non-finite steps in a row that end the run. The loss or gradient of such a step is not finite."""
    seed: Annotated[int, Field(ge=0, lt=2**63), FREE] = 0
    """Seed of everything random."""
    gradient_checkpointing: Annotated[bool, FREE] = True
    """Recompute activations: less memory. Activations of the residual stacks are not kept, but computed again in the
    backward pass."""
    compile: Annotated[bool, FREE] = False
    """Compile the model with inductor."""
    compile_mode: Annotated[
        Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"], FREE
    ] = "default"
    """The mode of torch.compile. It needs compile. reduce-overhead: on GPUs, CUDA graphs, which the host starts as one;
    their memory is not in the plan. max-autotune: also the fastest kernels, found by trying."""
    auto_batch_size: Annotated[bool, FREE] = False
    """Lower the micro batch until a step fits. It is lowered in steps of 16 before a run starts, on every rank;
    gradient accumulation keeps the global batch."""
    scale_lr: Annotated[Literal["linear"] | None, FREE] = None
    """Scale the learning rate by the global batch. linear: multiply it by the global batch divided by
    reference_batch."""
    reference_batch: Annotated[Count | None, FREE] = None
    """The global batch that lr is meant for. It is used by scale_lr; null: the global batch of the profile's file,
    without flags, on seven ranks."""
    init_from: Annotated[str | None, FREE] = None
    """Start from the weights of a tokenizer or run. An exported or imported tokenizer, a run or one of its checkpoints,
    or a repository of the Hugging Face hub. This run starts from its weights, codebooks and normalisation; of a body's
    tokenizers, it takes the one of this run's body part."""
    export_for: Annotated[ForeignName | None, FREE] = None
    """The system whose own code will load the tokenizer. A profile whose tokenizer it could not load is refused."""


_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def is_repository(name: str | Path) -> bool:
    """Returns whether `name` can only be the id `owner/name` of a repository of the Hugging Face hub: there is no such
    folder, and no folder `owner` in which it could be a misspelt name.

    A `Path` is never one.
    """
    if not isinstance(name, str) or _REPOSITORY.fullmatch(name) is None:
        return False
    return not Path(name).exists() and not Path(name).parent.is_dir()
