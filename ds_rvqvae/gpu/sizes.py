"""Sizes by arithmetic, without torch: parameters of the nets, ZeRO's states, bytes between ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.config.profile import Profile
from ds_rvqvae.gpu.quantizers import staged_count

_FP32, _BF16 = 4, 2
_START_ALIGNMENT = 2
"""The flat buffer is padded to a multiple of this many elements per rank."""
_TENSOR_ALIGNMENT_BYTES = 16
"""Alignment of each tensor in the flat buffer, under `parameter_alignment`."""
_STACK_AT_ONCE = 4_000_000
"""Parameters of the largest residual stack that is recomputed in one call: `baseline` has 3.1 M, `wide` 16.8 M.
Assumed, not measured on a GPU yet."""
BUCKETS_IN_FLIGHT = 2
"""Buckets of gradients that are reduced at the same time. Each holds memory until its sum has arrived."""


@dataclass(frozen=True)
class ZeroBytes:
    """Bytes of ZeRO on the rank that holds most."""

    parameters: int
    """The flat buffer of the model's weights, which are views of it; complete on every rank."""
    gradients: int
    """Gradients kept from the backward pass to the optimizer step."""
    master_weights: int
    moments: int
    """Both moments of Adam."""
    buckets: int
    """Buffers with gradients that are being reduced."""
    reducing: int
    """Held temporarily in the backward pass: the gradients of a bucket, and a copy of them."""
    accumulating: int
    """A second set of gradients, until it is added to the first."""
    stepping: int
    """Held temporarily in the optimizer step: the flattened gradient, its fp32 copy, AdamW's temporary tensors."""
    on_host: bool
    """Whether master weights and moments are in the host's memory."""


def zero_bytes(profile: Profile, sizes: Sequence[int], gpus: int) -> ZeroBytes:
    """Bytes that ZeRO holds on the rank that holds most.

    Args:
        sizes: number of elements of each parameter tensor, in the model's order.
    """
    zero, bf16 = profile.zero_optimization, profile.bf16
    element = _BF16 if bf16.enabled else _FP32
    flat = flat_count(sizes, gpus, zero.parameter_alignment, element)
    part = flat // gpus
    master = _BF16 if bf16.bf16_master_weights_and_grads else _FP32
    moment = _BF16 if bf16.bf16_optimizer_states else _FP32
    on_host = zero.offload_optimizer is not None and zero.offload_optimizer.device == "cpu"
    gradients = _gradient_bytes(profile, sizes, gpus, flat)
    widened = part * master if master != element else 0
    if needs_long_step(profile):
        buckets = (zero.contiguous_gradients + bool(zero.overlap_comm)) * zero.reduce_bucket_size * element
        collected = max(min(zero.reduce_bucket_size, sum(sizes)), max(sizes))
        reducing = (collected + max(sizes) * (2 if on_host else 1)) * element
        widened += part * element  # a flat copy before it
    else:
        each = [sum(sizes[first:stop]) for first, stop in bucket_bounds(sizes, zero.reduce_bucket_size)]
        at_once = BUCKETS_IN_FLIGHT if gpus > 1 and zero.overlap_comm else 1
        buckets = max(sum(each[first : first + at_once]) for first in range(len(each))) * element
        reducing = 2 * max(each) * element
    return ZeroBytes(
        parameters=flat * element,
        gradients=0 if on_host else gradients,
        master_weights=part * master,
        moments=2 * part * moment,
        buckets=buckets,
        reducing=reducing,
        accumulating=gradients if _is_kept_twice(profile, on_host) else 0,
        stepping=0 if on_host else widened + (0 if profile.optimizer.params.fused else part * moment),
        on_host=on_host,
    )


def needs_long_step(profile: Profile) -> str:
    """Returns the setting for which a step is DeepSpeed's own; empty if none is, and a step is the short one of
    `ds_rvqvae.train.zero`."""
    zero, comms = profile.zero_optimization, profile.comms_logger
    sent = profile.communication_data_type
    found = {
        "zero_optimization.stage is not 2": zero.stage != 2,
        "zero_optimization.offload_optimizer is set": zero.offload_optimizer is not None
        and zero.offload_optimizer.device != "none",
        "zero_optimization.reduce_scatter is false": not zero.reduce_scatter,
        "zero_optimization.use_multi_rank_bucket_allreduce is false": not zero.use_multi_rank_bucket_allreduce,
        "zero_optimization.round_robin_gradients is true": zero.round_robin_gradients,
        "zero_optimization.parameter_alignment is true": zero.parameter_alignment,
        "bf16.bf16_master_weights_and_grads is true": profile.bf16.bf16_master_weights_and_grads,
        "communication_data_type is not that of the weights": sent is not None
        and sent != ("bf16" if profile.bf16.enabled else "fp32"),
        "wall_clock_breakdown times DeepSpeed's own": profile.wall_clock_breakdown,
        "comms_logger logs DeepSpeed's own": comms is not None and comms.enabled,
    }
    return next((reason for reason, holds in found.items() if holds), "")


def _is_kept_twice(profile: Profile, on_host: bool) -> bool:
    """Whether DeepSpeed's step holds the gradients of a micro batch beside the sum of those before it."""
    several = profile.gradient_accumulation_steps > 1
    return several and profile.zero_optimization.stage == 2 and not on_host and bool(needs_long_step(profile))


def flat_count(sizes: Sequence[int], gpus: int, parameter_alignment: bool = False, element_bytes: int = 2) -> int:
    """Number of elements of the flat buffer of all parameters, with padding."""
    last = _ends(sizes, parameter_alignment, element_bytes)[-1]
    alignment = _START_ALIGNMENT * gpus
    return -(-last // alignment) * alignment


def owned_gradient_counts(profile: Profile, sizes: Sequence[int], gpus: int) -> list[int]:
    """Gradient elements that each rank keeps: all of each tensor that reaches into its piece of the flat buffer."""
    zero, element = profile.zero_optimization, _BF16 if profile.bf16.enabled else _FP32
    ends = _ends(sizes, zero.parameter_alignment, element)
    part = flat_count(sizes, gpus, zero.parameter_alignment, element) // gpus
    counts = []
    for rank in range(gpus):
        first, past = rank * part, (rank + 1) * part
        owned = sum(size for size, end in zip(sizes, ends, strict=True) if end > first and end - size < past)
        counts.append(owned + max(0, past - max(ends[-1], first)))
    return counts


def _ends(sizes: Sequence[int], parameter_alignment: bool, element_bytes: int) -> list[int]:
    """The end of each tensor in the flat buffer."""
    step = _TENSOR_ALIGNMENT_BYTES // element_bytes if parameter_alignment else 1
    ends, position = [], 0
    for size in sizes:
        ends.append(-(-position // step) * step + size)
        position = ends[-1]
    return ends


def _gradient_bytes(profile: Profile, sizes: Sequence[int], gpus: int, flat: int) -> int:
    zero = profile.zero_optimization
    in_fp32 = profile.data_types is not None and profile.data_types.grad_accum_dtype == "fp32"
    if profile.bf16.enabled and in_fp32:
        return flat * _FP32 // (gpus if zero.stage == 2 else 1)
    element = _BF16 if profile.bf16.enabled else _FP32
    if not needs_long_step(profile):
        return flat * element // gpus
    if zero.stage == 1 and (profile.gradient_accumulation_steps > 1 or not zero.overlap_comm):
        # The parameters' own gradients hold the sums until they are reduced.
        return sum(sizes) * element
    return max(owned_gradient_counts(profile, sizes, gpus)) * element


_DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Transfer:
    """One kind of traffic in an optimizer step, in bytes per rank."""

    name: str
    collective: str
    payload_bytes: int
    """Size of the tensors that are reduced or gathered."""
    sent_bytes: int
    """Bytes that a rank sends, and receives, over a ring of all ranks."""


def bucket_bounds(sizes: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Divides a model's parameters into buckets, whose gradients are reduced together.

    No computation is left to hide the reduction of the last bucket, so it has at most two thirds of the elements of the
    others. What does not fill a bucket is in the first one, which is hidden best.

    Args:
        sizes: elements of each parameter, in the order of `RVQVAE.parameters()`.
        most: elements per bucket, unless one parameter alone has more. A model with no more is one bucket.

    Returns:
        index of the first parameter and index after the last, per bucket, in the order of the backward pass: the last
        parameters first.
    """
    if sum(sizes) <= most:
        return [(0, len(sizes))] if sizes else []
    bounds, first, elements, limit = [], 0, 0, most * 2 // 3
    for index, size in enumerate(sizes):
        if elements and elements + size > limit:
            bounds.append((first, index))
            first, elements, limit = index, 0, most
        elements += size
    return [(first, len(sizes)), *reversed(bounds)]


def recomputes_at_once(profile: Profile) -> bool:
    """Whether a residual stack is recomputed in one call, so that its gradients are complete together.

    That takes less of the host's time, which counts where the arithmetic of a stack is short. A larger stack is
    recomputed so that the gradients of each layer are complete as soon as possible, since their reduction can then
    begin.
    """
    return sum(_stack(profile.rvqvae.model)) <= _STACK_AT_ONCE and not profile.rvqvae.training.compile


def transfers_of(profile: Profile, in_features: int, gpus: int) -> list[Transfer]:
    """Traffic of gradients, weights and codebooks in one optimizer step; a few bytes of norms and flags are omitted."""
    model, zero = profile.rvqvae.model, profile.zero_optimization
    element = 2 if profile.bf16.enabled else 4
    gradient = _DTYPE_BYTES.get(profile.communication_data_type or "", element)
    # Stage 2 keeps no complete gradient in which micro batches could be summed, so it reduces after each of them.
    reductions = profile.gradient_accumulation_steps if zero.stage == 2 else 1
    gradients = parameter_count(in_features, model) * gradient * reductions
    weights = flat_count(parameter_sizes(in_features, model), gpus, zero.parameter_alignment, element) * element
    to_owners = zero.reduce_scatter and not zero.use_multi_rank_bucket_allreduce
    return [
        _transfer("gradients", "reduce" if to_owners else "all-reduce", gradients, gpus),
        _transfer("weights", "all-gather", weights, gpus),
        _transfer("codebooks", "all-reduce", staged_count(model) * 4, gpus),
    ]


def _transfer(name: str, collective: str, payload: int, gpus: int) -> Transfer:
    rounds = 2 if collective == "all-reduce" else 1
    return Transfer(name, collective, payload, rounds * payload * (gpus - 1) // gpus)


def parameter_count(in_features: int, config: ModelConfig) -> int:
    """Number of trainable parameters of encoder and decoder; codebooks are moving averages, not parameters."""
    return sum(parameter_sizes(in_features, config))


def parameter_sizes(in_features: int, config: ModelConfig) -> list[int]:
    """Number of elements of each trainable tensor, in the order of `RVQVAE.parameters()`."""
    return _encoder_sizes(in_features, config) + _decoder_sizes(in_features, config)


def _encoder_sizes(in_features: int, config: ModelConfig) -> list[int]:
    width = config.width
    stage = _conv(width, width, 2 * config.stride_t) + _stack(config)
    return _conv(in_features, width, 3) + config.down_t * stage + _conv(width, config.code_dim, 3)


def _decoder_sizes(in_features: int, config: ModelConfig) -> list[int]:
    width = config.width
    stage = _stack(config) + _conv(width, width, 3)
    last = _conv(width, width, 3) + _conv(width, in_features, 3)
    return _conv(config.code_dim, width, 3) + config.down_t * stage + last


def _conv(inputs: int, outputs: int, kernel: int) -> list[int]:
    return [inputs * outputs * kernel, outputs]


def _stack(config: ModelConfig) -> list[int]:
    norm = [config.width, config.width] if config.norm else []
    block = norm + _conv(config.width, config.width, 3) + norm + _conv(config.width, config.width, 1)
    return config.depth * block
