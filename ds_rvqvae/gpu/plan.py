"""A plan of a run's memory, arithmetic and traffic per GPU, computed by arithmetic alone, in milliseconds.

Nothing here imports torch. Tests compare each line with the real engine, the real model and torch's own counters.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ds_rvqvae.config.batch_sizes import BatchShape, largest_micro_batch_shape
from ds_rvqvae.config.profile import Profile
from ds_rvqvae.gpu.activations import Activations, activations_of
from ds_rvqvae.gpu.cards import Card
from ds_rvqvae.gpu.quantizers import buffer_bytes, staged_vector_bytes, update_bytes
from ds_rvqvae.gpu.sizes import Transfer, ZeroBytes, parameter_count, parameter_sizes, transfers_of, zero_bytes
from ds_rvqvae.text import MIB

CONTEXT_BYTES = 600 * MIB
"""CUDA context with the kernels of torch, cuBLAS and cuDNN. Assumed, not measured yet."""
NCCL_BYTES = 300 * MIB
"""Buffers and kernels of one NCCL communicator for a ring of the GPUs of one machine. Assumed, not measured yet."""
COMMUNICATORS = 2
"""NCCL communicators of a run on more than one GPU: torch's default group, and DeepSpeed's copy of it, through which
gradients, weights and the sums of the codebooks go."""
WORKSPACE_BYTES = 256 * MIB
"""Workspaces of cuDNN's convolutions and cuBLAS. Assumed, not measured yet."""
FRAGMENTATION = 0.05
"""Fraction of torch's tensors that its allocator reserves in addition. Assumed, not measured yet."""
_FP32 = 4


@dataclass(frozen=True)
class Plan:
    """Memory of one GPU at the step's peak, on the rank that holds most, and operations and traffic of one step."""

    profile: Profile
    in_features: int
    gpus: int
    card: Card
    micro_batch: int
    """Windows of `window_size`; with other window sizes, as many windows as have the same number of frames."""
    zero: ZeroBytes
    activations: Activations
    codebooks_bytes: int
    """The quantizer's buffers, with its staged statistics and candidates."""
    staged_vectors_bytes: int
    """Vectors and codes of a step, which the quantizer keeps until its update."""
    batch_bytes: int

    @property
    def largest_shape(self) -> BatchShape:
        """The micro batch with the most frames; memory and operations are those of this one."""
        return largest_micro_batch_shape(self.profile.rvqvae.data, self.micro_batch)

    @property
    def parameter_count(self) -> int:
        """Trainable parameters, without codebooks."""
        return parameter_count(self.in_features, self.profile.rvqvae.model)

    @property
    def parameters_bytes(self) -> int:
        return self.zero.parameters

    @property
    def gradients_bytes(self) -> int:
        return self.zero.gradients

    @property
    def optimizer_bytes(self) -> int:
        """fp32 master weights and both of Adam's moments, on the GPU."""
        return 0 if self.zero.on_host else self.zero.master_weights + self.zero.moments

    @property
    def weight_average_bytes(self) -> int:
        """The moving average of the weights that this rank owns, in fp32, on the GPU."""
        return 0 if self.zero.on_host else self._average_bytes

    @property
    def _average_bytes(self) -> int:
        is_kept = self.profile.rvqvae.training.ema_decay is not None
        return _FP32 * -(-self.parameter_count // self.gpus) if is_kept else 0

    @property
    def activations_bytes(self) -> int:
        """Bytes that autograd keeps for the backward pass of one micro batch."""
        return self.activations.kept_bytes

    @property
    def buckets_bytes(self) -> int:
        return self.zero.buckets

    @cached_property
    def peaks(self) -> dict[str, int]:
        """Bytes on top of weights, optimizer, codebooks and batch, at each moment of a step that could be its peak."""
        zero, model = self.zero, self.profile.rvqvae.model
        carried = zero.gradients if self.profile.gradient_accumulation_steps > 1 else 0
        backward = self.activations.backward_peak() + zero.gradients + zero.accumulating
        return {
            "forward pass": self.activations.forward_peak() + carried,
            "backward pass": backward + zero.buckets + zero.reducing,
            "optimizer step": zero.gradients + zero.stepping,
            "codebook update": update_bytes(model),
            # A copy of the model in fp32, and a copy of the weights if their average is evaluated. The activations of
            # the held-out clips are not counted.
            "evaluation": self.parameter_count * _FP32 + self.codebooks_bytes + self.weight_average_bytes,
        }

    @property
    def peak_moment(self) -> str:
        return max(self.peaks, key=lambda name: self.peaks[name])

    @property
    def working_bytes(self) -> int:
        """Bytes held temporarily at the peak, in addition to gradients, activations and buckets."""
        lasting = self.gradients_bytes + self.activations_bytes + self.buckets_bytes
        return max(0, max(self.peaks.values()) - lasting)

    @property
    def overheads(self) -> dict[str, int]:
        """The parts of `overhead_bytes`; the first three are computed, the others assumed."""
        allocated = self.allocated_bytes
        return {
            "working_bytes": self.working_bytes,
            "staged_vectors_bytes": self.staged_vectors_bytes,
            "weight_average_bytes": self.weight_average_bytes,
            "cuda_context_bytes": CONTEXT_BYTES,
            "nccl_bytes": COMMUNICATORS * NCCL_BYTES if self.gpus > 1 else 0,
            "workspace_bytes": WORKSPACE_BYTES,
            "fragmentation_bytes": int(FRAGMENTATION * allocated),
        }

    @property
    def allocated_bytes(self) -> int:
        """Peak of the tensors themselves, as `torch.cuda.max_memory_allocated` counts it."""
        lasting = self.parameters_bytes + self.gradients_bytes + self.optimizer_bytes + self.codebooks_bytes
        step = self.activations_bytes + self.buckets_bytes + self.batch_bytes + self.weight_average_bytes
        return lasting + step + self.working_bytes + self.staged_vectors_bytes

    @property
    def overhead_bytes(self) -> int:
        return sum(self.overheads.values())

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by JSON key; their sum is `total_bytes`."""
        keys = ("parameters", "gradients", "optimizer", "codebooks", "activations", "buckets", "batch", "overhead")
        return {f"{key}_bytes": getattr(self, f"{key}_bytes") for key in keys}

    @property
    def total_bytes(self) -> int:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether the run fits into an empty GPU."""
        return self.total_bytes <= self.card.memory_bytes

    @property
    def host_bytes(self) -> int:
        """Page-locked host memory per rank: batches gathered ahead, and offloaded tensors."""
        data = self.profile.rvqvae.data
        ahead = data.num_workers + 2 if data.num_workers else 1
        step = self.largest_shape.frames * self.in_features * _FP32
        zero = self.zero
        offloaded = zero.master_weights + zero.moments + self._average_bytes if zero.on_host else 0
        batches = ahead * step * self.profile.gradient_accumulation_steps
        return batches + offloaded + self.activations.offloaded_bytes

    @property
    def flops_per_step(self) -> int:
        """Floating point operations per GPU of an optimizer step, forward and backward, without recomputation."""
        return self.activations.flops * self.profile.gradient_accumulation_steps

    @property
    def recomputed_flops_per_step(self) -> int:
        """Floating point operations that activation checkpointing does again."""
        return self.activations.recomputed_flops * self.profile.gradient_accumulation_steps

    @property
    def compute_seconds(self) -> float:
        """Time for the operations of a step, with recomputation, at the GPU's stated rate."""
        rate = self.card.bf16_flops if self.profile.bf16.enabled else self.card.fp32_flops
        return (self.flops_per_step + self.recomputed_flops_per_step) / rate

    @property
    def memory_seconds(self) -> float:
        """Time to write and read once the tensors of a step and of its optimizer, at the stated memory rate."""
        recomputed = sum(layer.recomputed for layer in self.activations.layers)
        micro = self.activations_bytes + recomputed
        step = self.optimizer_bytes + self.gradients_bytes + self.parameters_bytes
        return 2 * (micro * self.profile.gradient_accumulation_steps + step) / self.card.memory_bandwidth

    @cached_property
    def transfers(self) -> list[Transfer]:
        return transfers_of(self.profile, self.in_features, self.gpus)

    @property
    def wire_bytes_per_step(self) -> int:
        """Bytes that a rank sends in an optimizer step over a ring of all ranks; it receives as many."""
        return sum(transfer.sent_bytes for transfer in self.transfers)

    @property
    def wire_seconds(self) -> float:
        """Time for this traffic at the link's stated rate."""
        return self.wire_bytes_per_step / self.card.link_bandwidth

    @cached_property
    def largest_micro_batch(self) -> int:
        """The largest micro batch, in windows, with which the run fits into an empty GPU; 0 if not even one fits."""

        def fits(windows: int) -> bool:
            return self.with_micro_batch(windows).fits

        return _largest(fits) if fits(1) else 0

    def with_micro_batch(self, windows: int) -> "Plan":
        """The same run with a different micro batch per GPU."""
        return replace(self, **_of_batch(self.profile, self.in_features, windows))

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON; sizes in bytes, times in seconds, all per GPU and optimizer step."""
        return {
            "gpus": self.gpus,
            "card": self.card.name,
            "card_bytes": self.card.memory_bytes,
            "in_features": self.in_features,
            "micro_batch": self.micro_batch,
            "global_batch": self.micro_batch * self.profile.gradient_accumulation_steps * self.gpus,
            "parameter_count": self.parameter_count,
            **self.parts,
            "total_bytes": self.total_bytes,
            "fits": self.fits,
            "flops_per_step": self.flops_per_step,
            "wire_bytes_per_step": self.wire_bytes_per_step,
            "largest_micro_batch": self.largest_micro_batch,
            "allocated_bytes": self.allocated_bytes,
            "peak_moment": self.peak_moment,
            "overheads": self.overheads,
            "host_bytes": self.host_bytes,
            "recomputed_flops_per_step": self.recomputed_flops_per_step,
            "compute_seconds": self.compute_seconds,
            "memory_seconds": self.memory_seconds,
            "wire_seconds": self.wire_seconds,
            "wire": {
                transfer.name: {
                    "collective": transfer.collective,
                    "payload_bytes": transfer.payload_bytes,
                    "sent_bytes": transfer.sent_bytes,
                }
                for transfer in self.transfers
            },
        }


def make_plan(
    profile: Profile,
    in_features: int,
    gpus: int,
    card: Card,
    micro_batch: int | None = None,
) -> Plan:
    """Makes the plan of a run.

    Args:
        in_features: columns of the motion.
        gpus: number of GPUs, all of the same model.
        micro_batch: windows per GPU at once, in place of the profile's.
    """
    windows = profile.train_micro_batch_size_per_gpu if micro_batch is None else micro_batch
    return Plan(
        profile=profile,
        in_features=in_features,
        gpus=gpus,
        card=card,
        zero=zero_bytes(profile, parameter_sizes(in_features, profile.rvqvae.model), gpus),
        codebooks_bytes=sum(buffer_bytes(profile.rvqvae.model).values()),
        **_of_batch(profile, in_features, windows),
    )


def _of_batch(profile: Profile, in_features: int, windows: int) -> dict[str, Any]:
    """The fields of a plan that depend on the micro batch."""
    model, data = profile.rvqvae.model, profile.rvqvae.data
    accumulation = profile.gradient_accumulation_steps
    shape = largest_micro_batch_shape(data, windows)
    vectors = shape.frames // model.code_stride * accumulation
    # The next micro batch arrives while the previous one is still in memory.
    batches = 1 if accumulation == 1 else 2
    return {
        "micro_batch": windows,
        "activations": activations_of(profile, in_features, shape.windows, window_size=shape.window_size),
        "staged_vectors_bytes": vectors * staged_vector_bytes(model),
        "batch_bytes": batches * shape.frames * in_features * _FP32,
    }


def largest_micro_batch(profile: Profile, in_features: int, gpus: int, card: Card) -> int:
    """The largest micro batch, in windows, with which a run fits; see `Plan.largest_micro_batch`."""
    return make_plan(profile, in_features, gpus, card, micro_batch=1).largest_micro_batch


def _largest(fits: Callable[[int], bool]) -> int:
    """The largest integer that fits, by bisection; 1 must fit, and no number above one that does not fit."""
    past = 2
    while fits(past):
        past *= 2
    known = past // 2
    while past - known > 1:
        middle = (known + past) // 2
        known, past = (middle, past) if fits(middle) else (known, middle)
    return known
