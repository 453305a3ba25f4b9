"""Measures the host time of a training step: the profile's layers with so few numbers that arithmetic takes no time."""

import contextlib
import statistics
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ds_rvqvae.bench.counting import count_step
from ds_rvqvae.bench.plain import PlainLoop
from ds_rvqvae.bench.step import describe, in_turns, make_trainer, repeated, step_of, with_motion
from ds_rvqvae.config.profile import Profile
from ds_rvqvae.data.columns import columns_in_use
from ds_rvqvae.errors import UserError
from ds_rvqvae.gpu.sizes import bucket_bounds, parameter_sizes
from ds_rvqvae.model import nets
from ds_rvqvae.train.engine import checkpoint_function
from ds_rvqvae.train.trainer import Trainer

ROUNDS = 40
_WIDTH, _CODE_DIM, _CODES = 32, 32, 64
_CODES_IN_WINDOW = 4
_SHRUNK = (
    *("rvqvae.model.width", "rvqvae.model.code_dim", "rvqvae.model.nb_code", "rvqvae.data.window_size"),
    "train_micro_batch_size_per_gpu",
)
_CLIPS, _FRAMES = 4, 300
_WARM_UP = 3


def measure_host(
    profile: Profile,
    rounds: int = ROUNDS,
    plain: bool = True,
    checkpointing: bool = False,
    progress: bool = False,
    asked: Collection[str] = (),
) -> dict[str, Any]:
    """Times training steps with almost no arithmetic, in turns with the plain loop, and counts their operations.

    Layers, levels, losses and optimizer are the profile's; `shrunk` makes its tensors small. Convolutions are those of
    GPUs and of CPUs with bf16 arithmetic, in the step and in the plain loop alike. Under a launcher, such as torchrun,
    every rank calls it and gets its own results, and the plain loop is under DistributedDataParallel.

    Args:
        profile: its `gradient_checkpointing` holds for the count of operations; it is counted without compilation.
        rounds: each way takes one step per round, after two rounds that do not count.
        plain: whether the plain loop runs too.
        checkpointing: whether the timed steps recompute activations; the plain loop never does.
        asked: paths of the keys that the user has given; a key that does not fit the motion is an error.

    Returns:
        The object that `ds-rvqvae bench --host --json` prints; seconds per step are medians.

    Raises:
        UserError: motion that cannot be trained on, nets that the plain loop cannot build, or a profile in fp32, which
            is not compared with a loop in bf16.
    """
    if plain and not profile.bf16.enabled:
        raise UserError("--host: the plain loop is in bf16 and the profile in fp32; leave the loop out by --no_plain")
    given, profile = profile, shrunk(profile)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, _convolutions_of_gpus():
        profile = with_motion(profile, Path(folder), _CLIPS, _FRAMES)
        trainer = make_trainer(profile, Path(folder), asked)
        trainer.model.set_checkpointing(checkpoint_function(given))  # small stacks could be recomputed another way
        trainer.initialize_codebooks()
        for _ in range(_WARM_UP):
            trainer.step()
        count = count_step(trainer)
        timed = given.with_values({"rvqvae.training.gradient_checkpointing": checkpointing})
        trainer.model.set_checkpointing(checkpoint_function(timed))
        seconds = in_turns(_ways(trainer, plain), trainer.device, rounds, progress)
        result = describe(trainer)
        trainer.close()
        dist.barrier()
    return result | {
        "activation_checkpointing": checkpointing,
        "rounds": rounds,
        "shrunk": {name: [_value(given, name), _value(profile, name)] for name in _SHRUNK},
        "buckets": [buckets_of(given), buckets_of(profile)],
        "convolutions": "native",
        "host_step_s": statistics.median(seconds["step"]),
        "host_plain_bf16_s": _median(seconds, "plain_bf16"),
        "host_ddp_bf16_s": _median(seconds, "ddp_bf16"),
        "spread_s": {f"host_{name}": [min(taken), max(taken)] for name, taken in seconds.items()},
        "operations": count.operations,
        "operations_by_kind": count.kinds,
        "operations_with_checkpointing": profile.rvqvae.training.gradient_checkpointing,
        "host_waits": count.host_waits._asdict(),
    }


def shrunk(profile: Profile) -> Profile:
    """Returns the profile with few channels, short code vectors, few codes, one short window per micro batch."""
    model = profile.rvqvae.model
    values: dict[str, Any] = {
        "rvqvae.model.width": min(model.width, _WIDTH),
        "train_micro_batch_size_per_gpu": 1,
        "train_batch_size": None,
        "rvqvae.training.auto_batch_size": False,
        "rvqvae.data.window_size": _CODES_IN_WINDOW * model.code_stride,
        "rvqvae.data.window_sizes": None,
        "rvqvae.data.window_stride": _CODES_IN_WINDOW * model.code_stride,
    }
    if model.grid_key is None:  # a grid decides the length of a code vector and the number of codes
        values |= {"rvqvae.model.code_dim": min(model.code_dim, _CODE_DIM)}
        values |= {"rvqvae.model.nb_code": min(model.nb_code, _CODES)}
    return profile.with_values(values)


def buckets_of(profile: Profile) -> int:
    """Number of buckets in which a profile's gradients are reduced."""
    sizes = parameter_sizes(columns_in_use(profile.rvqvae.data, None), profile.rvqvae.model)
    return len(bucket_bounds(sizes, profile.zero_optimization.reduce_bucket_size))


def _ways(trainer: Trainer, plain: bool) -> dict[str, Callable[[], Any]]:
    """Returns the step through DeepSpeed and, on request, the plain loop from the same weights and the same step."""
    ways: dict[str, Callable[[], Any]] = {"step": trainer.step}
    if plain:
        loop = PlainLoop(
            *(trainer.model, trainer.profile, trainer.device, torch.bfloat16, trainer.loss_columns), tuned=True
        )
        loop.steps_done = trainer.steps_done  # so that quantizer dropout is the same
        ways["plain_bf16" if trainer.world_size == 1 else "ddp_bf16"] = step_of(loop, repeated(trainer))
    return ways


@contextlib.contextmanager
def _convolutions_of_gpus() -> Iterator[None]:
    """Inside, convolutions of bf16 tensors are single operations on every CPU, as on GPUs."""
    before, nets.ROUND_TO_BF16 = nets.ROUND_TO_BF16, False
    try:
        yield
    finally:
        nets.ROUND_TO_BF16 = before


def _median(seconds: dict[str, list[float]], name: str) -> float | None:
    return statistics.median(seconds[name]) if name in seconds else None


def _value(profile: Profile, path: str) -> Any:
    value: Any = profile
    for key in path.split("."):
        value = getattr(value, key)
    return value
