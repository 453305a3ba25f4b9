"""The message when a device's memory runs out: the batch, the peak, the plan, other users of the GPU, and a remedy."""

import json
import logging
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime

import psutil
import torch
import torch.distributed as dist

from ds_rvqvae.config.profile import Profile
from ds_rvqvae.errors import UserError
from ds_rvqvae.gpu.cards import CARDS
from ds_rvqvae.gpu.nvml import IDLE_MEMORY, Gpu, NoDriverError, list_gpus
from ds_rvqvae.gpu.plan import COMMUNICATORS, CONTEXT_BYTES, NCCL_BYTES, Plan, largest_micro_batch, make_plan
from ds_rvqvae.gpu.processes import Owners
from ds_rvqvae.gpu.snapshot import Snapshot
from ds_rvqvae.runs.start import split_batch
from ds_rvqvae.text import gibibytes

logger = logging.getLogger("ds_rvqvae")

_WORDS = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "Cuda failure 2 'out of memory'",
    "Cuda failure 'out of memory'",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    # torch says this if no plan of cuDNN's found room.
    "unable to find an engine to execute this computation",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
)
"""Messages of libraries whose errors are not torch's own `OutOfMemoryError`."""
_NO_CODE = "could not create a primitive"
"""oneDNN's complete message if a CPU has no memory for the code or the buffers of an operation."""


class OutOfMemory(RuntimeError):  # noqa: N818 - users read this name in their logs
    """A rank ran out of its device's memory; the message is one line."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error`, or an error that it was raised from or after, is an out-of-memory error."""
    seen: list[BaseException] = []
    raised: BaseException | None = error
    while raised is not None and raised not in seen:
        if isinstance(raised, (torch.OutOfMemoryError, MemoryError)) or any(words in str(raised) for words in _WORDS):
            return True
        if str(raised) == _NO_CODE:
            return True
        seen.append(raised)
        raised = raised.__cause__ or raised.__context__
    return False


@contextmanager
def out_of_memory_explained(profile: Profile, in_features: int, device: torch.device) -> Iterator[None]:
    """Raises `OutOfMemory` in place of an out-of-memory error, and writes the details to the log."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        try:
            plan = _plan(profile, in_features, dist.get_world_size(), device)
            message = explanation(plan, planned_bytes(plan, device), peak_of(device), others_on(device))
            logger.error("planned bytes: %s", json.dumps({**plan.parts, "total_bytes": plan.total_bytes}))
            if device.type == "cuda":
                logger.error("%s", torch.cuda.memory_summary(device))
        except Exception:
            # A failure here must not hide the original error.
            logger.exception("the out-of-memory error cannot be explained")
            raise error from None
        raise OutOfMemory(message) from error


def explanation(plan: Plan, planned: int, peak: str, others: str) -> str:
    """The one-line message of `OutOfMemory`.

    Args:
        plan: of the profile, on a GPU with the memory that is available to this rank.
        planned: the plan's figure, in bytes.
        peak: the rank's peak, in words.
        others: the other users of its GPU, in words; empty if there are none.
    """
    room = f"{gibibytes(planned)} planned, {gibibytes(plan.card.memory_bytes)} available on {plan.card.name}"
    said = [f"micro batch {plan.micro_batch} does not fit: {peak}; {room}", others, _advice(plan)]
    return "; ".join(filter(None, [*said, "run.log has the details"]))


def _advice(plan: Plan) -> str:
    """Advice with flags that make the step smaller and keep the global batch."""
    training, share = plan.profile.rvqvae.training, plan.profile.windows_per_rank
    flags = []
    # Smaller micro batches need accumulation, which takes memory too.
    accumulation = max(2, plan.profile.gradient_accumulation_steps)
    accumulated = plan.profile.model_copy(update={"gradient_accumulation_steps": accumulation})
    most = largest_micro_batch(accumulated, plan.in_features, plan.gpus, plan.card)
    if most >= plan.micro_batch:
        # Then the plan is wrong; half is a guess.
        most = plan.micro_batch // 2
    if most:
        size, accumulation = split_batch(share, most)
        flags.append(f"--batch_size {size} --gradient_accumulation_steps {accumulation}")
    if not training.gradient_checkpointing:
        flags.append("--gradient_checkpointing on")
    if not training.auto_batch_size and plan.micro_batch > 1:
        flags.append("--auto_batch_size")
    return f"try {' or '.join(flags)}" if flags else "try other GPUs (--include) or a smaller rvqvae.model.width"


def _plan(profile: Profile, in_features: int, world_size: int, device: torch.device) -> Plan:
    # The message does not use the card's rates of arithmetic and links.
    card = replace(CARDS["4090"], name=_name_of(device), memory_bytes=room_bytes(device, world_size))
    return make_plan(profile, in_features, world_size, card)


def planned_bytes(plan: Plan, device: torch.device) -> int:
    """Bytes that the plan expects of a rank; on a CPU without the overhead of CUDA."""
    return plan.total_bytes if device.type == "cuda" else plan.allocated_bytes


def _name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the host"


def room_bytes(device: torch.device, world_size: int, communicators: int = COMMUNICATORS) -> int:
    """Bytes available to this rank, its own included: the device's memory minus that of other processes.

    On a CPU it is not more than the limits of this process (`ulimit`) permit.

    Args:
        communicators: NCCL communicators that exist by now.
    """
    if device.type != "cuda":
        limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
        free = psutil.virtual_memory().available + psutil.Process().memory_info().rss
        return min([free, *(limit for limit in limits if limit != resource.RLIM_INFINITY)])
    free, total = torch.cuda.mem_get_info(device)
    # The plan counts these two; on the GPU they are neither free nor reserved by torch.
    overhead = CONTEXT_BYTES + (communicators * NCCL_BYTES if world_size > 1 else 0)
    return min(total, free + torch.cuda.memory_reserved(device) + overhead)


def peak_of(device: torch.device) -> str:
    """This rank's peak since the last logged step, in words; on a CPU since its start."""
    if device.type != "cuda":
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return f"{gibibytes(resident)} resident at the peak"
    allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return f"{gibibytes(allocated)} allocated and {gibibytes(reserved)} reserved at the peak"


def others_on(device: torch.device) -> str:
    """Other users of this rank's GPU, or the host's free memory, in words; empty if there are no others."""
    if device.type != "cuda":
        memory = psutil.virtual_memory()
        return f"the host has {gibibytes(memory.available)} of {gibibytes(memory.total)} free for all its processes"
    return others_on_card(str(torch.cuda.get_device_properties(device).uuid), torch.cuda.memory_reserved(device))


def others_on_card(uuid: str, own_bytes: int, own_pid: int | None = None) -> str:
    """Other users of a GPU, in words; empty if there are none.

    Args:
        uuid: of the GPU, as torch or NVML writes it.
        own_bytes: memory of this process on the GPU, used if the driver does not tell it.
        own_pid: this process by default.
    """
    own_pid = os.getpid() if own_pid is None else own_pid
    try:
        gpus = list_gpus()
    except (NoDriverError, UserError) as error:
        return f"other users of the GPU are unknown ({error})"
    gpu = next((gpu for gpu in gpus if _bare(uuid) in map(_bare, _uuids_of(gpu))), None)
    if gpu is None or gpu.error:
        return f"other users of the GPU are unknown ({gpu.error if gpu else 'NVML does not list it'})"
    others = tuple(process for process in gpu.processes if process.pid != own_pid)
    own = next((process.memory_bytes for process in gpu.processes if process.pid == own_pid), None)
    left = (gpu.memory_used_bytes or 0) - (own or own_bytes + CONTEXT_BYTES)
    if own is None and left < IDLE_MEMORY:
        # In a container the driver may report different process ids: then the process that it lists is this one.
        others = ()
    if not others and left < IDLE_MEMORY:
        return ""
    return f"also on GPU {gpu.index}: {_users(replace(gpu, processes=others, memory_used_bytes=max(0, left)))}"


def _users(gpu: Gpu) -> str:
    owners = Owners().look_up(process.pid for process in gpu.processes)
    return Snapshot(datetime.now(), "", "", [gpu], [gpu.index], owners).users(gpu)


def _uuids_of(gpu: Gpu) -> list[str]:
    return [gpu.uuid, *(part.uuid for part in gpu.slices)]


def _bare(uuid: str) -> str:
    """A UUID without the prefix that NVML writes and torch does not."""
    return uuid.removeprefix("GPU-").removeprefix("MIG-")
