"""What a training step sends between ranks, by arithmetic and without torch.

DeepSpeed's ZeRO stages 1 and 2 reduce gradients by all-reduce, not reduce-scatter, as long as
`use_multi_rank_bucket_allreduce` is on; each rank keeps its share and drops the rest.
"""

from dataclasses import dataclass

from ds_rvqvae.gpu.zero import flat_count
from ds_rvqvae.model.shapes import parameter_count, parameter_sizes, staged_count
from ds_rvqvae.profile import Profile

_DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Transfer:
    """One kind of traffic in an optimizer step, bytes a rank."""

    name: str
    collective: str
    payload_bytes: int
    """Of the tensors that are reduced or gathered."""
    sent_bytes: int
    """What a rank sends, and receives, over a ring of all ranks."""


def transfers_of(profile: Profile, in_features: int, gpus: int) -> list[Transfer]:
    """Gradients, weights and codebooks of one optimizer step; a few bytes of norms and flags are left out."""
    model, zero = profile.rvqvae.model, profile.zero_optimization
    element = 2 if profile.bf16.enabled else 4
    gradient = _DTYPE_BYTES.get(profile.communication_data_type or "", element)
    # Stage 2 keeps no whole gradient to sum micro batches in, so it reduces after each of them.
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
