"""What DeepSpeed's ZeRO stages 1 and 2 hold on each rank, by arithmetic and without torch.

After DeepSpeed 0.19.8, `runtime/zero/stage_1_and_2.py`: all parameters lie in one flat buffer, padded so that it splits
evenly; a rank owns one part of it, whose fp32 master weights and Adam moments it alone holds. Of gradients a rank
keeps every tensor that reaches into its part, whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ds_rvqvae.profile import Profile

_FP32, _BF16 = 4, 2
_START_ALIGNMENT = 2
"""Elements a rank that the flat buffer is padded to."""
_TENSOR_ALIGNMENT_BYTES = 16
"""Of each tensor in the flat buffer, under `parameter_alignment`."""


@dataclass(frozen=True)
class ZeroBytes:
    """Bytes on the rank that holds most."""

    parameters: int
    """The flat buffer that the model's weights are views of; whole on every rank."""
    gradients: int
    """Kept from the backward pass to the optimizer step."""
    master_weights: int
    moments: int
    """Both of Adam's."""
    buckets: int
    """Buffers that gradients are collected in while they are reduced."""
    reducing: int
    """Held for a moment in the backward pass: the flattened copy of a bucket, and the largest gradient."""
    accumulating: int
    """A second set of gradients, until it is added to the first."""
    stepping: int
    """Held for a moment in the optimizer step: the flattened gradient, its fp32 copy, what AdamW makes."""
    on_host: bool
    """Whether master weights and moments lie in the host's memory."""


def zero_bytes(profile: Profile, sizes: Sequence[int], gpus: int) -> ZeroBytes:
    """What ZeRO holds.

    Args:
        sizes: elements of each parameter tensor, in the model's order.
    """
    zero, bf16 = profile.zero_optimization, profile.bf16
    element = _BF16 if bf16.enabled else _FP32
    flat = flat_count(sizes, gpus, zero.parameter_alignment, element)
    part = flat // gpus
    master = _BF16 if bf16.bf16_master_weights_and_grads else _FP32
    moment = _BF16 if bf16.bf16_optimizer_states else _FP32
    on_host = zero.offload_optimizer is not None and zero.offload_optimizer.device == "cpu"
    gradients = _gradient_bytes(profile, sizes, gpus, flat)
    collected = min(zero.reduce_bucket_size, sum(sizes))
    flattened = part * element + (part * master if master != element else 0)
    return ZeroBytes(
        parameters=flat * element,
        gradients=0 if on_host else gradients,
        master_weights=part * master,
        moments=2 * part * moment,
        buckets=(zero.contiguous_gradients + bool(zero.overlap_comm)) * zero.reduce_bucket_size * element,
        reducing=(max(collected, max(sizes)) + max(sizes) * (2 if on_host else 1)) * element,
        accumulating=gradients if profile.gradient_accumulation_steps > 1 and zero.stage == 2 and not on_host else 0,
        stepping=0 if on_host else flattened + (0 if profile.optimizer.params.fused else part * moment),
        on_host=on_host,
    )


def flat_count(sizes: Sequence[int], gpus: int, parameter_alignment: bool = False, element_bytes: int = 2) -> int:
    """Elements of the flat buffer of all parameters, with its padding."""
    last = _ends(sizes, parameter_alignment, element_bytes)[-1]
    alignment = _START_ALIGNMENT * gpus
    return -(-last // alignment) * alignment


def owned_gradient_counts(profile: Profile, sizes: Sequence[int], gpus: int) -> list[int]:
    """Elements of gradient that each rank keeps: tensors that reach into its part of the flat buffer, whole."""
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
    """Where each tensor ends in the flat buffer."""
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
    if zero.stage == 1 and (profile.gradient_accumulation_steps > 1 or not zero.overlap_comm):
        # Summed, or left, in the parameters' own gradients until they are reduced.
        return sum(sizes) * element
    return max(owned_gradient_counts(profile, sizes, gpus)) * element
