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
    """How the learning rate falls. cosine: half a wave from the learning rate down to nothing at total_iter (Loshchilov
    and Hutter 2017), in place of milestones. Resumed with another total_iter, a run goes on along the new wave."""
    milestones: Annotated[list[Count], FREE] = [50_000, 200_000, 400_000]
    """Steps at which it falls. The learning rate is multiplied by gamma at each."""
    gamma: Annotated[float, Field(gt=0, le=1), FREE] = 0.05
    """Factor of the rate at each of them."""
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
    """Newest checkpoints that stay on disk."""
    keep_every: Annotated[Count | None, FREE] = None
    """Checkpoints at multiples of this stay for good."""
    ema_decay: Annotated[Annotated[float, Field(gt=0, lt=1)] | None, FREE] = None
    """Evaluate and export averaged weights. A moving average with this decay (Polyak and Juditsky 1992); after t steps
    at most (1 + t) / (10 + t). null: the weights themselves."""
    max_skipped_steps: Annotated[Count, FREE] = 25
    """Non-finite steps in a row that end the run. Such a step has a loss or gradient that is not finite."""
    seed: Annotated[int, Field(ge=0, lt=2**63), FREE] = 0
    """Seed of everything random."""
    gradient_checkpointing: Annotated[bool, FREE] = True
    """Recompute activations: less memory. Those of the residual stacks, in the backward pass, are not kept."""
    compile: Annotated[bool, FREE] = False
    """Compile the model with inductor."""
    auto_batch_size: Annotated[bool, FREE] = False
    """Lower the micro batch until a step fits. In sixteens, before a run starts, on every rank; gradient accumulation
    keeps the global batch."""
    scale_lr: Annotated[Literal["linear"] | None, FREE] = None
    """Scale the learning rate by the global batch. linear: multiply it by the global batch over reference_batch."""
    reference_batch: Annotated[Count | None, FREE] = None
    """The global batch that lr is meant for. For scale_lr; null: the batch sizes that stand in the profile's file,
    before any flag, on seven ranks."""
    init_from: Annotated[str | None, FREE] = None
    """Start from the weights of a tokenizer or run. An exported or imported tokenizer, a run or one of its checkpoints,
    or a repository of the Hugging Face hub: this run starts from its weights, codebooks and normalisation. Of a body,
    from the tokenizer of this run's body part."""
    export_for: Annotated[ForeignName | None, FREE] = None
    """The system whose own code is to load the tokenizer. What that code cannot compute is refused before a run starts.
    """


_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def is_repository(name: str | Path) -> bool:
    """Whether `name` can only be the id `owner/name` of a repository of the Hugging Face hub: there is no such folder,
    nor one called `owner`, in which it would be a misspelt one.

    A `Path` never is.
    """
    if not isinstance(name, str) or _REPOSITORY.fullmatch(name) is None:
        return False
    return not Path(name).exists() and not Path(name).parent.is_dir()
