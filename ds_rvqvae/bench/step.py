"""Compares a training step with a plain PyTorch loop, in one process and on the same batches."""

import gc
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import deepspeed
import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ds_rvqvae.bench.plain import PlainLoop
from ds_rvqvae.bench.spans import count_operations, split_step, synchronize
from ds_rvqvae.config.profile import Profile
from ds_rvqvae.data.dataset import open_training_data
from ds_rvqvae.data.demo import write_demo_motion
from ds_rvqvae.host import has_bf16_arithmetic, processor_name
from ds_rvqvae.model.exact import Role, in_role
from ds_rvqvae.model.losses import tokenizer_losses
from ds_rvqvae.model.rvqvae import RVQVAE
from ds_rvqvae.train.engine import checkpoint_function
from ds_rvqvae.train.trainer import Trainer

_MATMUL = {"cuda": 8192, "cpu": 2048}
"""Size of the square matrices whose product measures the device's speed."""
_PROFILED = 2
DEMO_CLIPS, DEMO_FRAMES = 12, 1800


def measure_step(
    profile: Profile,
    rounds: int = 7,
    plain: bool = True,
    trace: Path | None = None,
    progress: bool = False,
    asked: Collection[str] = (),
) -> dict[str, Any]:
    """Times complete training steps through DeepSpeed, alone or in turns with the plain loops.

    Under a launcher, such as torchrun, every rank calls it and gets its own results; the plain loops stay on their own.

    Args:
        profile: without `rvqvae.data.path`, demo motion is made.
        rounds: each way takes one step per round, after two rounds that do not count.
        plain: whether the plain loops run too.
        trace: a file for the profiler's trace of this rank.
        asked: paths of the keys that the user has given; a key that does not fit the motion is an error.

    Returns:
        The object that `ds-rvqvae bench --json` prints; seconds per step are medians.

    Raises:
        UserError: motion that cannot be trained on, or no `vector_quantize_pytorch` for the plain loops.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        profile = with_motion(profile, Path(folder), DEMO_CLIPS, DEMO_FRAMES)
        checkpointing = profile.rvqvae.training.gradient_checkpointing
        trainer = make_trainer(profile, Path(folder), asked)
        trainer.initialize_codebooks()
        result = describe(trainer)
        ways = ways_of(trainer, plain)
        seconds = in_turns(ways, trainer.device, rounds, progress)
        # Frees the plain loops' memory, which would count in the peak below.
        ways.clear()
        gc.collect()
        result |= {f"{name}_s": statistics.median(taken) for name, taken in seconds.items()}
        result["spread_s"] = {name: [min(taken), max(taken)] for name, taken in seconds.items()}
        result |= details(trainer, trace)
        if checkpointing is False:
            result["checkpointed_step_s"] = checkpointed(trainer, max(2, rounds // 2))
        trainer.close()
        dist.barrier()
    result |= ratios(result)
    return result


def with_motion(profile: Profile, folder: Path, clips: int, frames: int) -> Profile:
    """Returns the profile with demo motion, made in `folder`, if it names no motion."""
    if profile.rvqvae.data.path is not None:
        return profile
    motion = write_demo_motion(folder / "motion", clips, frames)
    return profile.with_values({"rvqvae.data.path": str(motion)})


def make_trainer(profile: Profile, folder: Path, asked: Collection[str] = ()) -> Trainer:
    """Returns a trainer in this process, for a run that is not kept."""
    profile = profile.with_values({"tensorboard.enabled": False})
    data = open_training_data(profile, asked=asked)
    return Trainer.build(data.fitted(profile), data, folder)


def describe(trainer: Trainer) -> dict[str, Any]:
    """Returns facts about the measured model and settings, and about the machine."""
    profile, data = trainer.profile, trainer.data.config
    return {
        "device": device_name(trainer.device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "deepspeed": deepspeed.__version__,
            "cuda": torch.version.cuda,
        },
        "world_size": trainer.world_size,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "micro_batch": profile.train_micro_batch_size_per_gpu,
        "accumulation": profile.gradient_accumulation_steps,
        "window_size": data.window_size,
        "in_features": trainer.data.in_features,
        "dtype": "bf16" if profile.bf16.enabled else "fp32",
        "cpu_bf16_native": has_bf16_arithmetic() if trainer.device.type == "cpu" else None,
        "activation_checkpointing": profile.rvqvae.training.gradient_checkpointing,
        "compile": profile.rvqvae.training.compile,
    }


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads of {processor_name()}"


def ways_of(trainer: Trainer, plain: bool) -> dict[str, Callable[[], Any]]:
    """Returns the ways to time: the step through DeepSpeed, the same model without it, and the plain loops."""
    ways: dict[str, Callable[[], Any]] = {
        "step": trainer.step,
        "model": bare_model(trainer),
    }
    if plain:
        batches = repeated(trainer)
        dtypes = {"plain_fp32_step": torch.float32, "plain_bf16_step": torch.bfloat16}
        if not computes_in_bf16(trainer.device):
            # On such CPUs, torch's own bf16 convolutions take up to ten times as long as in fp32.
            del dtypes["plain_bf16_step"]
        for name, dtype in dtypes.items():
            loop = PlainLoop(trainer.model, trainer.profile, trainer.device, dtype, trainer.loss_columns)
            ways[name] = step_of(loop, batches)
    return ways


def step_of(loop: PlainLoop, batches: Iterator[list[Tensor]]) -> Callable[[], Tensor]:
    """Returns a step of the plain loop with torch's default settings."""

    def step() -> Tensor:
        with in_role(Role.PEER):
            return loop.step(next(batches))

    return step


def repeated(trainer: Trainer) -> Iterator[list[Tensor]]:
    """Yields the first batches of the run again and again, so that the plain loops do not wait for data."""
    batches = [trainer.loader.next() for _ in range(4)]
    while True:
        yield from batches


def computes_in_bf16(device: torch.device) -> bool:
    """Returns whether a device has arithmetic for bf16 numbers."""
    return device.type != "cpu" or has_bf16_arithmetic()


def bare_model(trainer: Trainer) -> Callable[[], None]:
    """Returns the forward and backward pass of the same model in the same precision, without engine and optimizer."""
    model = RVQVAE(trainer.data.in_features, trainer.profile.rvqvae.model).to(trainer.device)
    if trainer.profile.bf16.enabled:
        model.to(torch.bfloat16)
    model.train().set_checkpointing(checkpoint_function(trainer.profile))
    batches = repeated(trainer)

    def step() -> None:
        for batch in next(batches):
            motion = batch.to(trainer.device)
            output = model(motion)
            losses = tokenizer_losses(
                output.reconstruction, motion, output.commit_loss, trainer.profile.rvqvae.loss, trainer.loss_columns
            )
            torch.autograd.backward(losses.loss)
        model.zero_grad(set_to_none=True)
        model.quantizer.drop_staged()

    return step


def in_turns(
    ways: dict[str, Callable[[], Any]], device: torch.device, rounds: int, progress: bool
) -> dict[str, list[float]]:
    """Returns the seconds of each way, one step of each per round; a plain loop that runs out of GPU memory is left
    out. Ranks begin each step together, since one that waits for another would count it."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 2):
        for name in ways:
            dist.barrier()
            if name not in seconds:
                continue
            try:
                taken = timed(ways[name], device)
            except torch.cuda.OutOfMemoryError:
                if not name.startswith("plain"):
                    raise
                del seconds[name]
                torch.cuda.empty_cache()
                continue
            if round_ > 1:
                seconds[name].append(taken)
        if progress:
            print(f"round {round_ - 1} of {rounds}", file=sys.stderr, flush=True)
    return seconds


def timed(function: Callable[[], Any], device: torch.device) -> float:
    synchronize(device)
    began = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - began


def details(trainer: Trainer, trace: Path | None) -> dict[str, Any]:
    """Returns the parts of a step, its operations, and its speed relative to the device's matrix products."""
    device = trainer.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    taken = statistics.median(timed(trainer.step, device) for _ in range(3))
    operations = count_operations(trainer, _PROFILED, trace)
    flops = step_flops(trainer)
    in_bf16 = trainer.profile.bf16.enabled and computes_in_bf16(device)
    rate = matmul_rate(device, torch.bfloat16 if in_bf16 else torch.float32)
    return {
        # A compiled model is not split into parts, because that would compile it anew.
        "parts_s": None if trainer.profile.rvqvae.training.compile else split_step(trainer, _PROFILED + 1),
        "conv_share": operations.conv_seconds / operations.seconds,
        "conv_s": operations.conv_seconds,
        "device_busy_share": operations.busy_seconds and operations.busy_seconds / operations.seconds,
        "kernels": operations.kernels,
        "flops": flops,
        "matmul_flops": rate,
        "mfu": flops / taken / rate,
        "peak_memory_bytes": peak_memory(device),
        "data_wait_share": data_wait_share(trainer),
    }


def step_flops(trainer: Trainer) -> float:
    """Returns the floating-point operations of one optimizer step on this rank, without recomputation."""
    config = trainer.profile.rvqvae
    batch = trainer.profile.train_micro_batch_size_per_gpu
    with torch.device("meta"):
        model = RVQVAE(trainer.data.in_features, config.model).eval()
        motion = torch.zeros(batch, config.data.window_size, trainer.data.in_features)
    with FlopCounterMode(display=False) as counter:
        latents = model.encode_latents(motion)
        torch.autograd.backward(model.decode_latents(latents).sum())
    return float(counter.get_total_flops()) * trainer.profile.gradient_accumulation_steps


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Returns floating-point operations per second of large square matrix products: the best of several."""
    size = _MATMUL["cuda" if device.type == "cuda" else "cpu"]
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(timed(lambda: left @ right, device) for _ in range(10))


def peak_memory(device: torch.device) -> int:
    """Returns peak bytes allocated on a GPU; on CPUs, the resident bytes of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


def data_wait_share(trainer: Trainer) -> float:
    trainer.loader.take_wait()
    seconds = sum(timed(trainer.step, trainer.device) for _ in range(3))
    return trainer.loader.take_wait() / seconds


def checkpointed(trainer: Trainer, steps: int) -> float:
    """Returns seconds per step with activation checkpointing."""
    profile = trainer.profile.with_values({"rvqvae.training.gradient_checkpointing": True})
    trainer.model.set_checkpointing(checkpoint_function(profile))
    taken = [timed(trainer.step, trainer.device) for _ in range(steps + 1)]
    trainer.model.set_checkpointing(None)
    return statistics.median(taken[1:])


def ratios(result: dict[str, Any]) -> dict[str, Any]:
    """Returns the speed relative to the plain loops, and the fraction of the step that is not the bare model."""
    step = result["step_s"]
    found = {
        f"times_{name}": result[f"{name}_step_s"] / step
        for name in ("plain_fp32", "plain_bf16")
        if f"{name}_step_s" in result
    }
    return found | {"added_share": (step - result["model_s"]) / step}
