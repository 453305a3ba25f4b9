"""The DeepSpeed keys that a profile may have.

DeepSpeed silently ignores unknown keys at the top level and in several sections, so a misspelt key would not be
noticed. Therefore every key is listed here with its type, and any other key is an error. Keys of ZeRO stage 3, fp16 and
DeepSpeed's own schedulers are missing because this trainer does not use them. `without_effect` lists the values that
DeepSpeed accepts but that change nothing in this training.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from typing_extensions import Self


def _whole_number(value: object) -> object:
    """Converts a float without a fraction to an integer: DeepSpeed's users write bucket sizes as `5e8`, which JSON
    reads as a float."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, BeforeValidator(_whole_number), Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A strictly validated, frozen object of a profile: no unknown keys, no type conversion, no NaN, no infinity."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True, frozen=True
    )

    def with_values(self, values: Mapping[str, Any]) -> Self:
        """Returns a copy with other values for some keys, given by their dotted paths from here. They are not
        validated."""
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
    """Decay of AdamW's averages of the gradient and of its square."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to AdamW's denominator."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay of the optimizer."""
    torch_adam: Literal[True] = True
    """Use torch's own AdamW, which needs no compiler on the user's machine; DeepSpeed's has no `fused`."""
    fused: bool = True
    """Use one kernel for the complete update."""


class OptimizerSection(Section):
    type: Literal["AdamW", "Adam"] = "AdamW"
    """AdamW decays weights apart from the gradient, Adam adds the decay to the gradient."""
    params: OptimizerParams = OptimizerParams()


class Bf16Section(Section):
    enabled: bool = True
    """Compute in bf16, with fp32 master weights; false: in fp32."""
    immediate_grad_update: bool = False
    """Add each gradient to the fp32 sum at once. For ZeRO stage 1 with fp32 gradient accumulation."""
    check_grad_overflow: Literal[True] = True
    """Must stay on: codebooks and weights skip a non-finite step together."""
    bf16_master_weights_and_grads: bool = False
    """Keep master weights and gradients in bf16. Less memory, and less exact updates."""
    bf16_optimizer_states: bool = False
    """Keep AdamW's averages in bf16. Needs bf16_master_weights_and_grads."""


class OffloadOptimizerSection(Section):
    device: Literal["none", "cpu"] = "none"
    """Where the optimizer's state is kept. cpu: in the host's memory, where the update is computed too."""
    pin_memory: bool = False
    """Use page-locked host memory for it."""


class ZeroSection(Section):
    stage: Literal[1, 2] = 2
    """ZeRO stage. With stage 0 and bf16 the fp32 weights cannot be read; stage 3 is for models that do not fit on a
    GPU."""
    contiguous_gradients: bool = True
    """Copy gradients into one buffer as they are computed, which avoids fragments of memory. Only DeepSpeed's own step
    reads it; the short one always does so."""
    reduce_scatter: bool = True
    """Send each rank the sum of its part of the gradients only, not of all."""
    reduce_bucket_size: Count = 500_000_000
    """Elements per bucket of gradients, which are reduced together. With small buckets less of the reduction is left
    after the backward pass, but each bucket has the latency of an all-reduce."""
    allgather_partitions: bool = True
    """DeepSpeed no longer reads this key."""
    allgather_bucket_size: Count = 500_000_000
    """Elements per bucket of gathered weights. DeepSpeed 0.19 gathers all weights at once and does not read it."""
    use_multi_rank_bucket_allreduce: bool = True
    """Reduce the parts of several ranks in one all-reduce."""
    overlap_comm: bool | None = None
    """Reduce gradients during the backward pass; null: DeepSpeed's choice."""
    compute_grad_norm: Literal[True] = True
    """Must stay on: it shows that the gradient of a step is not finite."""
    load_from_fp32_weights: bool = True
    """Take master weights from a checkpoint's fp32 copies, not from its bf16 weights."""
    ignore_unused_parameters: bool = True
    """Accept parameters that have no gradient in a step."""
    round_robin_gradients: bool = False
    """Divide the copying of offloaded gradients evenly among ranks."""
    parameter_alignment: bool = False
    """Pad the flat buffers so that each parameter begins at a multiple of 16 bytes."""
    offload_optimizer: OffloadOptimizerSection | None = None


class ActivationCheckpointingSection(Section):
    """How activations are checkpointed; `rvqvae.training.gradient_checkpointing` says whether they are."""

    partition_activations: bool = False
    """Divide checkpointed activations among model-parallel ranks, which this training does not have."""
    contiguous_memory_optimization: Literal[False] = False
    """Must stay off: it needs checkpoints of one shape, and those of an RVQ-VAE's stages differ."""
    cpu_checkpointing: bool = False
    """Keep checkpointed activations in the host's memory."""
    number_checkpoints: Count | None = None
    """For contiguous_memory_optimization only, which this training cannot use."""
    synchronize_checkpoint_boundary: bool = False
    """Wait for the GPU at each checkpointed region. For measurements."""
    profile: bool = False
    """Measure the time of each checkpointed region."""


class DataTypesSection(Section):
    grad_accum_dtype: Literal["fp32", "bf16"] | None = None
    """Type in which the gradients of micro batches are summed; null: DeepSpeed's choice."""


class TensorboardSection(Section):
    enabled: bool = True
    """Write TensorBoard files."""
    output_path: str = ""
    """Folder for TensorBoard files; empty: the run's folder."""
    job_name: str = "tensorboard"
    """Folder of the files in output_path."""


class CsvMonitorSection(Section):
    enabled: bool = False
    """Write scalars to CSV files."""
    output_path: str = ""
    """Folder for them; empty: DeepSpeed's choice."""
    job_name: str = "csv"
    """Folder of the files in output_path."""


class WandbSection(Section):
    enabled: bool = False
    """Must stay off: scalars are not sent to Weights & Biases."""
    group: str | None = None
    """No effect while wandb is off."""
    team: str | None = None
    """No effect while wandb is off."""
    project: str = "ds_rvqvae"
    """No effect while wandb is off."""


class CheckpointSection(Section):
    tag_validation: Literal["Ignore", "Warn", "Fail"] = "Fail"
    """The reaction if ranks save under different names. Fail: end; Warn: warn; Ignore: nothing."""
    use_node_local_storage: bool = False
    """Save on each machine's own disk, not on a shared one."""


class FlopsProfilerSection(Section):
    enabled: bool = False
    """Count and time operations of one step, and print them."""
    recompute_fwd_factor: Annotated[float, Field(ge=0)] = 0.0
    """Fraction of the forward pass that is computed again, for the estimate of the backward pass."""
    profile_step: Count = 1
    """The step that is measured."""
    module_depth: int = -1
    """Depth down to which modules are printed; -1: all."""
    top_modules: Count = 1
    """Modules to print per depth."""
    detailed: bool = True
    """Print every module."""
    output_file: str | None = None
    """File for the text; null: standard output."""


class CommsLoggerSection(Section):
    enabled: bool = False
    """Log collectives. Needs verbose and log_level info."""
    verbose: bool = False
    """Print a line per collective."""
    prof_all: bool = True
    """Log all kinds of collectives."""
    debug: bool = False
    """Name the calling function in each line."""
    prof_ops: list[str] = []
    """Kinds to log if prof_all is false."""


class DeepSpeedKeys(Section):
    """The top level of a profile: DeepSpeed's own keys."""

    train_batch_size: Count | None = None
    """Global batch. It binds the profile to one number of ranks, so the shipped profiles do not set it."""
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
    """Type in which gradients are sent; null: that of the gradients."""
    prescale_gradients: bool = False
    """Divide gradients before they are summed. Needs reduce_scatter false."""
    gradient_predivide_factor: Annotated[float, Field(gt=0)] = 1.0
    """Divide by this before the sum, and by the rest after it. Needs reduce_scatter false."""
    steps_per_print: Count | None = None
    """Steps between DeepSpeed's own lines. Needs log_level info."""
    wall_clock_breakdown: bool = False
    """Time the passes of each step and print them."""
    memory_breakdown: bool = False
    """Print the memory in use at points of a step."""
    dump_state: bool = False
    """Print DeepSpeed's own settings at the start. Needs log_level info."""
    disable_python_gc: bool = False
    """Turn off Python's automatic garbage collection."""
    log_level: Literal["debug", "info", "warning", "error", "critical"] | None = None
    """Level of DeepSpeed's own log."""

    def without_effect(self) -> list[str]:
        """Returns the keys that are set but change nothing in this training, each with a remedy; a new run refuses
        them.

        This follows DeepSpeed 0.19: it prints nothing below its log level, and nothing asks its communication log for
        the summary.
        """
        zero, logged = self.zero_optimization, self.log_level in ("debug", "info")
        comms, recompute = self.comms_logger, self.activation_checkpointing
        summed = self.data_types is not None and self.data_types.grad_accum_dtype == "fp32"
        of_bf16 = self.bf16.enabled and zero.stage == 1 and summed
        own = ("partition_activations", "synchronize_checkpoint_boundary", "profile")
        on_cpu = [key for key in own if recompute.cpu_checkpointing and getattr(recompute, key)]
        unscaled = self.prescale_gradients or self.gradient_predivide_factor != 1.0
        needs_log = "DeepSpeed logs it only at log_level info; set log_level to info as well, or leave it out"
        found = {
            "wandb.enabled": (
                self.wandb is not None and self.wandb.enabled,
                "scalars do not go to Weights & Biases yet; tensorboard and csv_monitor work",
            ),
            "steps_per_print": (
                self.steps_per_print is not None and not logged,
                f"{needs_log}; rvqvae.training.log_every says how often this trainer logs",
            ),
            "dump_state": (self.dump_state and not logged, f"{needs_log}; a run's profile.json has all settings"),
            "comms_logger.enabled": (
                comms is not None and comms.enabled and not (logged and comms.verbose),
                "prints only with comms_logger.verbose and log_level info; set both, or leave it out",
            ),
            "zero_optimization.allgather_partitions": (
                not zero.allgather_partitions,
                "DeepSpeed no longer reads it; leave it out",
            ),
            "bf16.immediate_grad_update": (
                self.bf16.immediate_grad_update and not of_bf16,
                "is read only with zero_optimization.stage 1 and data_types.grad_accum_dtype fp32; leave it out",
            ),
            "activation_checkpointing.number_checkpoints": (
                recompute.number_checkpoints is not None,
                "is read only with contiguous_memory_optimization, which this trainer cannot use; leave it out",
            ),
            f"activation_checkpointing.{(on_cpu or [''])[0]}": (
                bool(on_cpu),
                "has no effect together with cpu_checkpointing; leave one of them out",
            ),
            "prescale_gradients" if self.prescale_gradients else "gradient_predivide_factor": (
                unscaled and zero.reduce_scatter,
                "DeepSpeed does not scale gradients that it scatters; set zero_optimization.reduce_scatter to false",
            ),
        }
        return [f"{key}: {text}" for key, (idle, text) in found.items() if idle]


_PRECISION = "this trainer computes in bf16, or in fp32 with bf16.enabled false"
_ORDER = "this trainer orders its windows itself; see rvqvae.data"
_STAGE_3 = "it belongs to ZeRO stage 3, and this trainer's models fit with stages 1 and 2; see `ds-rvqvae plan`"
NOT_USED = {
    "fp16": _PRECISION,
    "amp": _PRECISION,
    "torch_autocast": _PRECISION,
    "scheduler": "set the schedule of the learning rate with rvqvae.schedule (kind, milestones, gamma, warm_up_iter)",
    "comet": "scalars go to tensorboard and csv_monitor",
    "autotuning": "`ds-rvqvae plan` and --auto_batch_size find the batch that fits",
    "elasticity": "--resume continues a run with another number of GPUs",
    "curriculum_learning": _ORDER,
    "data_efficiency": _ORDER,
    "sparse_gradients": "no layer of an RVQ-VAE has sparse gradients",
    "sparse_attention": "an RVQ-VAE has no attention",
    "progressive_layer_drop": "use rvqvae.model.dropout",
    "compression_training": "this trainer does not compress weights",
    "quantize_training": "this trainer does not quantise weights",
    "eigenvalue": "this trainer does not quantise weights",
    "hybrid_engine": "it is for generation by language models",
    "pipeline": "this trainer runs data parallel only",
    "tensor_parallel": "this trainer runs data parallel only",
    "sequence_parallel_size": "this trainer runs data parallel only",
    "aio": "this trainer offloads only to the host's memory (zero_optimization.offload_optimizer)",
    "compile": "rvqvae.training.compile compiles the model",
    "zero_force_ds_cpu_optimizer": "the optimizer is torch's AdamW",
    "zero_allow_untested_optimizer": "the optimizer is torch's AdamW",
    "zero_optimization.offload_param": _STAGE_3,
    "zero_optimization.sub_group_size": _STAGE_3,
}
"""Keys of DeepSpeed that a profile may not have, and what to use in their place."""


def why_not_used(key: str) -> str | None:
    """Returns what to use in place of a key of DeepSpeed, by its path, that a profile may not have; None for other
    keys."""
    if key.startswith("zero_optimization.stage3_"):
        return _STAGE_3
    return NOT_USED.get(key)
