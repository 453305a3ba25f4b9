"""`--auto_batch_size`: finds by trial the micro batch whose step fits on every rank.

A trial runs the model forward and backward on random motion of the real size, next to as many bytes as the engine will
hold. It calls no collective, so that no rank waits for one that runs out of memory; after the trial the ranks agree.
It leaves no trace: no tensor, no draw from a random generator, no peak in the memory statistics.
"""

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.distributed as dist

from ds_rvqvae.config.profile import Profile
from ds_rvqvae.errors import UserError
from ds_rvqvae.gpu.cards import CARDS
from ds_rvqvae.gpu.plan import COMMUNICATORS, NCCL_BYTES, Plan, make_plan
from ds_rvqvae.model.losses import LossColumns, tokenizer_losses
from ds_rvqvae.model.rvqvae import RVQVAE
from ds_rvqvae.runs.start import split_batch, with_batch
from ds_rvqvae.text import gibibytes
from ds_rvqvae.train.engine import checkpoint_function
from ds_rvqvae.train.memory import is_out_of_memory, planned_bytes, room_bytes

_STEP = 16


def fit_batch(
    profile: Profile, in_features: int, device: torch.device, columns: LossColumns | None = None
) -> tuple[Profile, str]:
    """Finds the micro batch whose step fits on every rank; accumulation keeps the global batch.

    Every rank calls this before its engine is built, and all end with the same sizes.

    Args:
        in_features: columns of the motion.
        columns: for the losses that need them.

    Returns:
        The profile with these sizes, and one line that names the sizes tried and chosen.

    Raises:
        UserError: not even one window fits.
    """
    share = profile.windows_per_rank
    refusals: list[str] = []
    for size in micro_batches(profile.train_micro_batch_size_per_gpu, share):
        tried = with_batch(profile, (size, share // size))
        plan = make_plan(tried, in_features, dist.get_world_size(), CARDS["4090"])
        refused = _ranks_where(not _fits(plan, device, columns), device)
        if not refused:
            return tried, _summary(refusals, size, share)
        refusals.append(f"{size} {'not' if refusals else 'does not fit'} on {_names_of(refused)}")
    raise UserError(_nothing_fits(plan, refused, device))


def micro_batches(largest: int, share: int) -> list[int]:
    """Micro batches to try: `largest` down in steps of 16, then halves of 16, each lowered to a divisor of `share`.

    Args:
        share: windows per rank in an optimizer step.
    """
    sizes = [largest, *range(largest - _STEP, _STEP - 1, -_STEP), 16, 8, 4, 2, 1]
    return sorted({split_batch(share, size)[0] for size in sizes if size <= largest}, reverse=True)


def _fits(plan: Plan, device: torch.device, columns: LossColumns | None) -> bool:
    """Whether a step fits into this rank's memory."""
    fits = True
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            if device.type == "cuda":
                _try_step(plan, device, columns)
            else:
                # On a CPU oneDNN makes no more operations in a thread in which it was once out of memory.
                with ThreadPoolExecutor(1) as thread:
                    thread.submit(_try_step, plan, device, columns).result()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            fits = False
    # Only here the error is gone, and with it the stack frames that hold the tensors.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.reset_accumulated_memory_stats(device)
    return fits


def _try_step(plan: Plan, device: torch.device, columns: LossColumns | None) -> None:
    """Runs a step with the memory use of the plan's run; raises torch's error if it does not fit."""
    profile, settings = plan.profile, plan.profile.rvqvae
    # A step takes most memory when it uses all levels.
    model = RVQVAE(plan.in_features, settings.model.model_copy(update={"quantize_dropout_prob": 0.0}))
    model = model.to(device, torch.bfloat16 if profile.bf16.enabled else torch.float32).train()
    model.set_checkpointing(checkpoint_function(profile))
    for parameter in model.parameters():
        # The engine passes each gradient on at once; the bytes that it keeps are in `_engine_bytes`.
        add_hook: Callable[..., Any] = parameter.register_post_accumulate_grad_hook  # torch has no types for it
        add_hook(_drop_gradient)
    # Before there is an engine, only torch's default group has a communicator.
    later = (COMMUNICATORS - 1) * NCCL_BYTES if device.type == "cuda" and plan.gpus > 1 else 0
    held = torch.empty(_engine_bytes(plan) + later, dtype=torch.uint8, device=device)
    motion = torch.randn(*plan.largest_shape, plan.in_features, device=device)
    model.set_step(settings.training.seed, step=0)
    output = model(motion)
    losses = tokenizer_losses(output.reconstruction, motion, output.commit_loss, settings.loss, columns)
    torch.autograd.backward(losses.loss)
    del losses
    del output
    momentary = max(plan.peaks[moment] for moment in ("optimizer step", "codebook update", "evaluation"))
    torch.empty(momentary, dtype=torch.uint8, device=device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    del held


def _drop_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


def _engine_bytes(plan: Plan) -> int:
    """Bytes that a step holds during the backward pass, besides the model, its activations and its batch."""
    zero = plan.zero
    engine = (
        plan.optimizer_bytes
        + plan.weight_average_bytes
        + zero.gradients
        + zero.accumulating
        + zero.buckets
        + zero.reducing
    )
    next_batch = plan.batch_bytes - plan.largest_shape.frames * plan.in_features * torch.float32.itemsize
    accumulation = plan.profile.gradient_accumulation_steps
    other_vectors = plan.staged_vectors_bytes * (accumulation - 1) // accumulation
    return engine + next_batch + other_vectors


def _ranks_where(mine: bool, device: torch.device) -> list[int]:
    """The ranks that pass True for `mine`; every rank calls it."""
    answer = torch.tensor([int(mine)], device=device)
    answers = [torch.empty_like(answer) for _ in range(dist.get_world_size())]
    dist.all_gather(answers, answer)
    return [rank for rank, yes in enumerate(answers) if yes.item()]


def _names_of(ranks: list[int]) -> str:
    if len(ranks) == dist.get_world_size() > 1:
        return "any rank"
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _summary(refusals: list[str], micro_batch: int, share: int) -> str:
    batch = share * dist.get_world_size()
    if not refusals:
        return f"--auto_batch_size: micro batch {micro_batch} fits on every rank"
    chosen = f"micro batch {micro_batch} x accumulation {share // micro_batch}, global batch {batch:,} as before"
    return f"--auto_batch_size: {', '.join(refusals)}; {chosen}"


def _nothing_fits(plan: Plan, refused: list[int], device: torch.device) -> str:
    """The message why the run cannot start, with the memory of the rank that has the least."""
    least = torch.tensor([room_bytes(device, plan.gpus, communicators=1)], device=device)
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    planned, room = gibibytes(planned_bytes(plan, device)), gibibytes(int(least.item()))
    helps = "a smaller rvqvae.model.width or window_size, or GPUs with more free memory"
    if not plan.profile.rvqvae.training.gradient_checkpointing:
        helps = f"--gradient_checkpointing on, {helps}"
    return (
        f"--auto_batch_size: not even {plan.micro_batch} window of {plan.largest_shape.window_size} frames fits "
        f"on {_names_of(refused)}: {planned} planned, {room} available on the rank with the least; try {helps}"
    )
