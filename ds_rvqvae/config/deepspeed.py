"""The DeepSpeed keys a profile may hold.

DeepSpeed ignores keys it does not know at the top level and in several sections, so a misspelt key would pass without
a word. Every key is therefore named here with its type; what is not named is an error. Keys of ZeRO stage 3, fp16 and
DeepSpeed's own schedulers are left out because this trainer does not use them. Of those that are named,
`without_effect` tells the values that DeepSpeed takes and this training makes nothing of.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from typing_extensions import Self


def _whole_number(value: object) -> object:
    """`5e8` is a float to JSON and a bucket size to DeepSpeed's users."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, BeforeValidator(_whole_number), Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A strictly validated object of a profile: no unknown keys, no coerced types, no NaN, no infinity. Frozen."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True, frozen=True
    )

    def with_values(self, values: Mapping[str, Any]) -> Self:
        """A copy in which keys, by their dotted paths from here, have other values. They are not validated."""
        own: dict[str, Any] = {}
        below: dict[str, dict[str, Any]] = {}
        for path, value in values.items():
            key, _, rest = path.partition(".")
            if rest:
                below.setdefault(key, {})[rest] = value
            else:
                own[key] = value
        sections = {key: getattr(self, key).with_values(found) for key, found in below.items()}
        return self.model_copy(update={**own, **sections})


class OptimizerParams(Section):
    lr: Annotated[float, Field(gt=0)] = 2e-4
    """Learning rate, before its schedule."""
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = [0.9, 0.99]
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay of the optimizer."""
    torch_adam: Literal[True] = True
    """torch's own AdamW, which needs no compiler on the user's machine; DeepSpeed's does not take `fused`."""
    fused: bool = True
    """One kernel for the whole update."""


class OptimizerSection(Section):
    type: Literal["AdamW", "Adam"] = "AdamW"
    params: OptimizerParams = OptimizerParams()


class Bf16Section(Section):
    enabled: bool = True
    immediate_grad_update: bool = False
    check_grad_overflow: Literal[True] = True
    """Must stay on: codebooks and weights skip a non-finite step together."""
    bf16_master_weights_and_grads: bool = False
    bf16_optimizer_states: bool = False


class OffloadOptimizerSection(Section):
    device: Literal["none", "cpu"] = "none"
    pin_memory: bool = False


class ZeroSection(Section):
    stage: Literal[1, 2] = 2
    """Stage 0 under bf16 keeps its fp32 weights where they cannot be read; stage 3 is for models that do not fit."""
    contiguous_gradients: bool = True
    reduce_scatter: bool = True
    reduce_bucket_size: Count = 500_000_000
    """Elements; DeepSpeed's default is a gigabyte of buffer for a model of 18 M parameters."""
    allgather_partitions: bool = True
    allgather_bucket_size: Count = 500_000_000
    """Elements."""
    use_multi_rank_bucket_allreduce: bool = True
    overlap_comm: bool | None = None
    compute_grad_norm: Literal[True] = True
    """Must stay on: a step whose gradient is not finite is recognised by it."""
    load_from_fp32_weights: bool = True
    ignore_unused_parameters: bool = True
    round_robin_gradients: bool = False
    parameter_alignment: bool = False
    offload_optimizer: OffloadOptimizerSection | None = None


class ActivationCheckpointingSection(Section):
    """How activations are checkpointed; whether they are is `rvqvae.training.gradient_checkpointing`."""

    partition_activations: bool = False
    contiguous_memory_optimization: Literal[False] = False
    """Wants checkpoints of one shape, which the stages of an RVQ-VAE do not have."""
    cpu_checkpointing: bool = False
    """Keep what is checkpointed in the host's memory."""
    number_checkpoints: Count | None = None
    synchronize_checkpoint_boundary: bool = False
    profile: bool = False


class DataTypesSection(Section):
    grad_accum_dtype: Literal["fp32", "bf16"] | None = None


class TensorboardSection(Section):
    enabled: bool = True
    output_path: str = ""
    """Empty: the run's folder."""
    job_name: str = "tensorboard"


class CsvMonitorSection(Section):
    enabled: bool = False
    output_path: str = ""
    job_name: str = "csv"


class WandbSection(Section):
    enabled: bool = False
    group: str | None = None
    team: str | None = None
    project: str = "ds_rvqvae"


class CheckpointSection(Section):
    tag_validation: Literal["Ignore", "Warn", "Fail"] = "Fail"
    use_node_local_storage: bool = False


class FlopsProfilerSection(Section):
    enabled: bool = False
    recompute_fwd_factor: Annotated[float, Field(ge=0)] = 0.0
    profile_step: Count = 1
    module_depth: int = -1
    top_modules: Count = 1
    detailed: bool = True
    output_file: str | None = None


class CommsLoggerSection(Section):
    enabled: bool = False
    verbose: bool = False
    prof_all: bool = True
    debug: bool = False
    prof_ops: list[str] = []


class DeepSpeedKeys(Section):
    """Top level of a profile: DeepSpeed's own keys."""

    train_batch_size: Count | None = None
    """Global batch; binds the profile to one number of ranks, so the shipped profiles leave it out."""
    train_micro_batch_size_per_gpu: Count
    """Windows per GPU and micro batch."""
    gradient_accumulation_steps: Count = 1
    """Micro batches summed before a step."""
    optimizer: OptimizerSection = OptimizerSection()
    bf16: Bf16Section = Bf16Section()
    zero_optimization: ZeroSection = ZeroSection()
    gradient_clipping: Annotated[float, Field(ge=0)] = 1.0
    """Largest norm of the gradient; 0: off."""
    activation_checkpointing: ActivationCheckpointingSection = ActivationCheckpointingSection()
    data_types: DataTypesSection | None = None
    tensorboard: TensorboardSection = TensorboardSection()
    csv_monitor: CsvMonitorSection | None = None
    wandb: WandbSection | None = None
    checkpoint: CheckpointSection = CheckpointSection()
    flops_profiler: FlopsProfilerSection | None = None
    comms_logger: CommsLoggerSection | None = None
    communication_data_type: Literal["fp32", "bf16", "fp16"] | None = None
    prescale_gradients: bool = False
    gradient_predivide_factor: Annotated[float, Field(gt=0)] = 1.0
    steps_per_print: Count | None = None
    wall_clock_breakdown: bool = False
    memory_breakdown: bool = False
    dump_state: bool = False
    disable_python_gc: bool = False
    log_level: Literal["debug", "info", "warning", "error", "critical"] | None = None

    def without_effect(self) -> list[str]:
        """The keys that are set and change nothing in this training, each with what does; a new run refuses them.

        As DeepSpeed 0.19 reads them: of a log below its level nothing is printed, and nobody asks its log of
        communication for the summary.
        """
        zero, logged = self.zero_optimization, self.log_level in ("debug", "info")
        comms, recompute = self.comms_logger, self.activation_checkpointing
        summed = self.data_types is not None and self.data_types.grad_accum_dtype == "fp32"
        of_bf16 = self.bf16.enabled and zero.stage == 1 and summed
        own = ("partition_activations", "synchronize_checkpoint_boundary", "profile")
        on_cpu = [key for key in own if recompute.cpu_checkpointing and getattr(recompute, key)]
        unscaled = self.prescale_gradients or self.gradient_predivide_factor != 1.0
        needs_log = "DeepSpeed logs it at log_level info alone; set log_level to info as well, or leave it out"
        found = {
            "wandb.enabled": (
                self.wandb is not None and self.wandb.enabled,
                "scalars do not go to Weights & Biases yet; tensorboard and csv_monitor work",
            ),
            "steps_per_print": (
                self.steps_per_print is not None and not logged,
                f"{needs_log}; rvqvae.training.log_every says how often this trainer does",
            ),
            "dump_state": (self.dump_state and not logged, f"{needs_log}; a run's profile.json has all settings"),
            "comms_logger.enabled": (
                comms is not None and comms.enabled and not (logged and comms.verbose),
                "prints nothing but with comms_logger.verbose and log_level info; set both, or leave it out",
            ),
            "zero_optimization.allgather_partitions": (
                not zero.allgather_partitions,
                "DeepSpeed does not read it any more; leave it out",
            ),
            "bf16.immediate_grad_update": (
                self.bf16.immediate_grad_update and not of_bf16,
                "is read under zero_optimization.stage 1 with data_types.grad_accum_dtype fp32 alone; leave it out",
            ),
            "activation_checkpointing.number_checkpoints": (
                recompute.number_checkpoints is not None,
                "is read for contiguous_memory_optimization alone, which this trainer cannot use; leave it out",
            ),
            f"activation_checkpointing.{(on_cpu or [''])[0]}": (
                bool(on_cpu),
                "is not heeded beside cpu_checkpointing; leave one of them out",
            ),
            "prescale_gradients" if self.prescale_gradients else "gradient_predivide_factor": (
                unscaled and zero.reduce_scatter,
                "DeepSpeed does not scale gradients that it scatters; set zero_optimization.reduce_scatter to false",
            ),
        }
        return [f"{key}: {text}" for key, (idle, text) in found.items() if idle]


_PRECISION = "this trainer computes in bf16, or in fp32 with bf16.enabled false"
_ORDER = "this trainer orders its windows itself; see rvqvae.data"
_STAGE_3 = "is of ZeRO stage 3, and this trainer's models fit under stages 1 and 2; see `ds-rvqvae plan`"
NOT_USED = {
    "fp16": _PRECISION,
    "amp": _PRECISION,
    "torch_autocast": _PRECISION,
    "scheduler": "the learning rate is that of rvqvae.schedule (kind, milestones, gamma, warm_up_iter)",
    "comet": "scalars go to tensorboard and csv_monitor",
    "autotuning": "`ds-rvqvae plan` and --auto_batch_size find the batch that fits",
    "elasticity": "--resume goes on with another number of GPUs",
    "curriculum_learning": _ORDER,
    "data_efficiency": _ORDER,
    "sparse_gradients": "no layer of an RVQ-VAE has sparse gradients",
    "sparse_attention": "an RVQ-VAE has no attention",
    "progressive_layer_drop": "there is rvqvae.model.dropout",
    "compression_training": "this trainer does not compress weights",
    "quantize_training": "this trainer does not quantise weights",
    "eigenvalue": "this trainer does not quantise weights",
    "hybrid_engine": "it is for generation by language models",
    "pipeline": "this trainer runs data parallel only",
    "tensor_parallel": "this trainer runs data parallel only",
    "sequence_parallel_size": "this trainer runs data parallel only",
    "aio": "this trainer offloads to the host's memory alone (zero_optimization.offload_optimizer)",
    "compile": "rvqvae.training.compile compiles the model",
    "zero_force_ds_cpu_optimizer": "the optimizer is torch's AdamW",
    "zero_allow_untested_optimizer": "the optimizer is torch's AdamW",
    "zero_optimization.offload_param": _STAGE_3,
    "zero_optimization.sub_group_size": _STAGE_3,
}
"""Keys of DeepSpeed's that a profile does not take, and what there is in their place."""


def why_not_used(key: str) -> str | None:
    """What there is in place of a key of DeepSpeed's, by its path, that a profile does not take; None for others."""
    if key.startswith("zero_optimization.stage3_"):
        return _STAGE_3
    return NOT_USED.get(key)
