"""The `rvqvae.schedule` and `rvqvae.training` objects of a profile."""

from typing import Annotated, Literal

from pydantic import Field

from ds_rvqvae.config.deepspeed import Count, Section


class ScheduleConfig(Section):
    kind: Literal["milestones", "cosine"] = "milestones"
    """cosine: half a wave from the learning rate down to nothing at total_iter (Loshchilov and Hutter 2017), in place
    of milestones. Resumed with another total_iter, a run goes on along the new wave."""
    milestones: list[Count] = [50_000, 200_000, 400_000]
    """Steps at which the learning rate is multiplied by gamma."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.05
    warm_up_iter: Annotated[int, Field(ge=0)] = 0
    """Steps over which the learning rate rises from zero."""


class TrainingConfig(Section):
    total_iter: Count = 300_000
    """Optimizer steps."""
    log_every: Count = 100
    eval_every: Count = 5_000
    save_every: Count = 5_000
    keep_checkpoints: Count = 3
    """Newest checkpoints that stay on disk."""
    keep_every: Count | None = None
    """Checkpoints of steps that are a multiple of this stay for good."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Evaluate and export a moving average of the weights with this decay (Polyak and Juditsky 1992); after t steps at
    most (1 + t) / (10 + t). null: the weights themselves."""
    max_skipped_steps: Count = 25
    """Steps in a row with a loss or gradient that is not finite after which the run gives up."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    gradient_checkpointing: bool = True
    """Recompute the residual stacks in the backward pass instead of keeping their activations."""
    compile: bool = False
    """Compile the model with inductor."""
    auto_batch_size: bool = False
    """Before a run starts, lower its micro batch in sixteens until a step fits on every rank; gradient accumulation
    keeps the global batch."""
    scale_lr: Literal["linear"] | None = None
    """linear: multiply the learning rate by the global batch over reference_batch."""
    reference_batch: Count | None = None
    """The global batch that the learning rate is meant for, for scale_lr (default: the batch sizes that stand in the
    profile's file, before any flag, on seven ranks)."""
    init_from: str | None = None
    """A tokenizer's folder, exported or imported: the run starts from its weights, codebooks and normalisation. Of a
    body's folder, the tokenizer of this run's body part."""
