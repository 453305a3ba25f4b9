"""A plan as text for a terminal."""

from ds_rvqvae.config.batch_sizes import window_sizes_text
from ds_rvqvae.errors import text_of
from ds_rvqvae.gpu.plan import Plan
from ds_rvqvae.text import size

_BAR = 24


def plan_table(plan: Plan) -> str:
    """Memory a card line by line, then speed and traffic of a step."""
    return text_of([*_heading(plan), "", *_memory(plan), "", *_step(plan), "", *_notes(plan)])


def described_parts(plan: Plan) -> list[tuple[str, int, str]]:
    """Name, bytes and explanation of each part of a card's memory."""
    training = plan.profile.rvqvae.training
    kept = "kept for the backward pass; residual stacks recomputed" if training.gradient_checkpointing else "all kept"
    whole = plan.profile.zero_optimization.stage == 1 and plan.gradients_bytes >= plan.parameters_bytes
    share = "whole on every card" if whole or plan.gpus == 1 else f"of 1/{plan.gpus} of the weights"
    if plan.zero.on_host:
        optimizer = "in the host's memory"
    else:
        optimizer = "fp32 master weights and two moments" + (f", 1/{plan.gpus}" if plan.gpus > 1 else "")
    average = [("weight average", plan.weight_average_bytes, "fp32" + (f", 1/{plan.gpus}" if plan.gpus > 1 else ""))]
    counted = plan.working_bytes + plan.staged_vectors_bytes
    return [
        ("weights", plan.parameters_bytes, f"{_precision(plan)}, whole on every card"),
        ("gradients", plan.gradients_bytes, share),
        ("optimizer", plan.optimizer_bytes, optimizer),
        *(average if plan.weight_average_bytes else []),
        ("codebooks", plan.codebooks_bytes, "fp32, with averages and statistics"),
        ("activations", plan.activations_bytes, kept),
        ("buckets", plan.buckets_bytes, "DeepSpeed's buffers for reducing gradients"),
        ("batch", plan.batch_bytes, "motion, fp32"),
        ("working memory", counted, f"for moments; peak in the {plan.peak_moment}"),
        ("CUDA, NCCL, slack", plan.overhead_bytes - counted - plan.weight_average_bytes, "assumed"),
    ]


def _precision(plan: Plan) -> str:
    return "bf16" if plan.profile.bf16.enabled else "fp32"


def _heading(plan: Plan) -> list[str]:
    profile = plan.profile
    data, training = profile.rvqvae.data, profile.rvqvae.training
    accumulation = profile.gradient_accumulation_steps
    batch = f"{window_sizes_text(data, plan.micro_batch)} x {plan.in_features} columns a card"
    recompute = "on" if training.gradient_checkpointing else "off"
    return [
        f"{plan.gpus} x {plan.card.name} with {size(plan.card.memory_bytes)} each; "
        f"{plan.parameter_count:,} trainable parameters",
        batch + (f", {accumulation} times a step" if accumulation > 1 else ""),
        f"{_precision(plan)}, ZeRO stage {profile.zero_optimization.stage}, activation checkpointing {recompute}",
    ]


def _memory(plan: Plan) -> list[str]:
    parts = described_parts(plan)
    largest = max(count for _, count, _ in parts)
    lines = ["memory a card"]
    for name, count, explanation in parts:
        bar = "█" * round(_BAR * count / largest) or ("▏" if count else "")
        lines.append(f"  {name:<18}{size(count):>12}  {bar:<{_BAR}}  {explanation}")
    total, card = plan.total_bytes, plan.card.memory_bytes
    if plan.fits:
        verdict = f"fits: {total / card:.0%} of the card, {size(card - total)} free"
    else:
        verdict = f"DOES NOT FIT: {size(total - card)} more than the card has"
    lines.append(f"  {'total':<18}{size(total):>12}  {verdict}")
    largest_batch = plan.largest_micro_batch
    if largest_batch:
        lines.append(f"largest micro batch that fits: {largest_batch:,} windows (--batch_size {largest_batch})")
    else:
        lines.append("not even a micro batch of one window fits")
    return lines


def _step(plan: Plan) -> list[str]:
    recomputed = plan.recomputed_flops_per_step
    again = f", and {recomputed / 1e9:,.0f} recomputed" if recomputed else ""
    lines = [
        "a step, a card, at the rates the maker states: bounds that no run reaches",
        f"  arithmetic  {plan.flops_per_step / 1e9:>9,.0f} GFLOP  {_milliseconds(plan.compute_seconds)}{again}",
        f"  its memory  {'':>15}  {_milliseconds(plan.memory_seconds)}",
        f"  sent        {plan.wire_bytes_per_step / 1e6:>9,.0f} MB     {_milliseconds(plan.wire_seconds)}"
        f" at {plan.card.link_bandwidth / 1e9:g} GB/s, {plan.card.link}",
    ]
    for transfer in plan.transfers:
        lines.append(
            f"    {transfer.name:<10}{transfer.sent_bytes / 1e6:>9,.1f} MB"
            f"     {transfer.collective} of {transfer.payload_bytes / 1e6:,.1f} MB"
        )
    return lines


def _notes(plan: Plan) -> list[str]:
    notes = [f"pinned host memory a rank: {size(plan.host_bytes)}"]
    if plan.profile.rvqvae.training.compile:
        notes.append("compile is on: inductor may keep less than is counted here")
    notes.append("lines marked assumed were not measured on a card yet; all others are counted")
    return notes


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:>8,.2f} ms"
