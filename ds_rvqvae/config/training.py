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
    """cosine: half a wave from the learning rate down to nothing at total_iter (Loshchilov and Hutter 2017), in place
    of milestones. Resumed with another total_iter, a run goes on along the new wave."""
    milestones: Annotated[list[Count], FREE] = [50_000, 200_000, 400_000]
    """Steps at which the learning rate is multiplied by gamma."""
    gamma: Annotated[float, Field(gt=0, le=1), FREE] = 0.05
    warm_up_iter: Annotated[int, Field(ge=0), FREE] = 0
    """Steps over which the learning rate rises from zero."""


class TrainingConfig(Section):
    total_iter: Annotated[Count, FREE] = 300_000
    """Optimizer steps."""
    log_every: Annotated[Count, FREE] = 100
    eval_every: Annotated[Count, FREE] = 5_000
    save_every: Annotated[Count, FREE] = 5_000
    keep_checkpoints: Annotated[Count, FREE] = 3
    """Newest checkpoints that stay on disk."""
    keep_every: Annotated[Count | None, FREE] = None
    """Checkpoints of steps that are a multiple of this stay for good."""
    ema_decay: Annotated[Annotated[float, Field(gt=0, lt=1)] | None, FREE] = None
    """Evaluate and export a moving average of the weights with this decay (Polyak and Juditsky 1992); after t steps at
    most (1 + t) / (10 + t). null: the weights themselves."""
    max_skipped_steps: Annotated[Count, FREE] = 25
    """Steps in a row with a loss or gradient that is not finite after which the run gives up."""
    seed: Annotated[int, Field(ge=0, lt=2**63), FREE] = 0
    gradient_checkpointing: Annotated[bool, FREE] = True
    """Recompute the residual stacks in the backward pass instead of keeping their activations."""
    compile: Annotated[bool, FREE] = False
    """Compile the model with inductor."""
    auto_batch_size: Annotated[bool, FREE] = False
    """Before a run starts, lower its micro batch in sixteens until a step fits on every rank; gradient accumulation
    keeps the global batch."""
    scale_lr: Annotated[Literal["linear"] | None, FREE] = None
    """linear: multiply the learning rate by the global batch over reference_batch."""
    reference_batch: Annotated[Count | None, FREE] = None
    """The global batch that the learning rate is meant for, for scale_lr (default: the batch sizes that stand in the
    profile's file, before any flag, on seven ranks)."""
    init_from: Annotated[str | None, FREE] = None
    """A tokenizer, exported or imported, a run or one of its checkpoints, or a repository of the Hugging Face hub: this
    run starts from its weights, codebooks and normalisation. Of a body, from the tokenizer of this run's body part."""
    export_for: Annotated[ForeignName | None, FREE] = None
    """The system whose own code is to load this tokenizer once it is exported: what that code cannot compute is refused
    before a run starts."""


_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def is_repository(name: str | Path) -> bool:
    """Whether `name` can only be the id `owner/name` of a repository of the Hugging Face hub: there is no such folder,
    nor one called `owner`, in which it would be a misspelt one.

    A `Path` never is.
    """
    if not isinstance(name, str) or _REPOSITORY.fullmatch(name) is None:
        return False
    return not Path(name).exists() and not Path(name).parent.is_dir()
