"""A plan as text for a terminal."""

from ds_rvqvae.config.batch_sizes import window_sizes_text
from ds_rvqvae.gpu.plan import Plan
from ds_rvqvae.process.tables import Column, Table
from ds_rvqvae.process.terminal import PLAIN, Block, Line, Terminal, bar
from ds_rvqvae.text import size

_BAR, _NARROW_BAR, _WIDE = 24, 8, 110
"""Cells of the longest bar on a wide and on a narrow terminal, and the least width, in columns, of a wide one."""


def plan_table(plan: Plan, terminal: Terminal = PLAIN) -> str:
    """Memory per GPU line by line, then speed and traffic of a step. Bars appear on terminals only."""
    return terminal.text(plan_blocks(plan, terminal))


def plan_blocks(plan: Plan, terminal: Terminal = PLAIN) -> list[Block]:
    """The same as lines and tables."""
    return [*_heading(plan), "", *_memory(plan, terminal), "", *_step(plan), "", *_notes(plan)]


def described_parts(plan: Plan) -> list[tuple[str, int, str]]:
    """Name, bytes and explanation of each item of a GPU's memory."""
    training = plan.profile.rvqvae.training
    kept = "kept for the backward pass; residual stacks recomputed" if training.gradient_checkpointing else "all kept"
    whole = plan.profile.zero_optimization.stage == 1 and plan.gradients_bytes >= plan.parameters_bytes
    share = "complete on every GPU" if whole or plan.gpus == 1 else f"of 1/{plan.gpus} of the weights"
    if plan.zero.on_host:
        optimizer = "in the host's memory"
    else:
        optimizer = "fp32 master weights and two moments" + (f", 1/{plan.gpus}" if plan.gpus > 1 else "")
    average = [("weight average", plan.weight_average_bytes, "fp32" + (f", 1/{plan.gpus}" if plan.gpus > 1 else ""))]
    counted = plan.working_bytes + plan.staged_vectors_bytes
    return [
        ("weights", plan.parameters_bytes, f"{_precision(plan)}, complete on every GPU"),
        ("gradients", plan.gradients_bytes, share),
        ("optimizer", plan.optimizer_bytes, optimizer),
        *(average if plan.weight_average_bytes else []),
        ("codebooks", plan.codebooks_bytes, "fp32, with averages and statistics"),
        ("activations", plan.activations_bytes, kept),
        ("buckets", plan.buckets_bytes, "gradients that are being reduced"),
        ("batch", plan.batch_bytes, "motion, fp32"),
        ("working memory", counted, f"temporary; peak in the {plan.peak_moment}"),
        ("CUDA, NCCL, slack", plan.overhead_bytes - counted - plan.weight_average_bytes, "assumed"),
    ]


def _precision(plan: Plan) -> str:
    return "bf16" if plan.profile.bf16.enabled else "fp32"


def _heading(plan: Plan) -> list[Block]:
    profile = plan.profile
    data, training = profile.rvqvae.data, profile.rvqvae.training
    accumulation = profile.gradient_accumulation_steps
    batch = f"{window_sizes_text(data, plan.micro_batch)} x {plan.in_features} columns per GPU"
    recompute = "on" if training.gradient_checkpointing else "off"
    return [
        f"{plan.gpus} x {plan.card.name} with {size(plan.card.memory_bytes)} each; "
        f"{plan.parameter_count:,} trainable parameters",
        batch + (f", {accumulation} times per step" if accumulation > 1 else ""),
        f"{_precision(plan)}, ZeRO stage {profile.zero_optimization.stage}, activation checkpointing {recompute}",
    ]


def _memory(plan: Plan, terminal: Terminal) -> list[Block]:
    parts = described_parts(plan)
    largest = max(count for _, count, _ in parts)
    total, card = plan.total_bytes, plan.card.memory_bytes
    verdict: Line = (f"fits: {total / card:.0%} of the GPU, {size(card - total)} free", "good")
    if not plan.fits:
        verdict = (f"DOES NOT FIT: {size(total - card)} more than the GPU has", "error")
    cells = 0 if terminal.width is None else _BAR if terminal.width >= _WIDE else _NARROW_BAR
    rows: list[list[Line]] = [
        [name, size(count), (bar(count / largest, cells, " ") or " ", "bar"), explanation]
        for name, count, explanation in parts
    ]
    rows.append(["total", size(total), "", verdict])
    columns = [Column(left=True), Column(), Column(left=True), Column(wraps=True)]
    if not cells:
        columns, rows = columns[:2] + columns[3:], [row[:2] + row[3:] for row in rows]
    memory: list[Block] = ["memory per GPU", Table(columns, rows, {len(parts): "title"}, indent=2, headed=False)]
    largest_batch = plan.largest_micro_batch
    if largest_batch:
        memory.append(f"largest micro batch that fits: {largest_batch:,} windows (--batch_size {largest_batch})")
    else:
        memory.append(("not even a micro batch of one window fits", "error"))
    return memory


def _step(plan: Plan) -> list[Block]:
    recomputed = plan.recomputed_flops_per_step
    link = f"at {plan.card.link_bandwidth / 1e9:g} GB/s, {plan.card.link}"
    rows: list[list[Line]] = [
        [
            "arithmetic",
            f"{plan.flops_per_step / 1e9:,.0f} GFLOP",
            _milliseconds(plan.compute_seconds),
            f"and {recomputed / 1e9:,.0f} recomputed" if recomputed else "",
        ],
        ["memory traffic", "", _milliseconds(plan.memory_seconds), ""],
        ["sent", f"{plan.wire_bytes_per_step / 1e6:,.0f} MB", _milliseconds(plan.wire_seconds), link],
    ]
    rows += [
        [
            f"  {transfer.name}",
            f"{transfer.sent_bytes / 1e6:,.1f} MB",
            "",
            f"{transfer.collective} of {transfer.payload_bytes / 1e6:,.1f} MB",
        ]
        for transfer in plan.transfers
    ]
    heading = "per step and GPU, at the maker's stated rates: bounds that no run reaches"
    return [heading, Table([Column(left=True), Column(), Column(), Column(wraps=True)], rows, indent=2, headed=False)]


def _notes(plan: Plan) -> list[Block]:
    notes: list[Block] = [f"pinned host memory per rank: {size(plan.host_bytes)}"]
    if plan.profile.rvqvae.training.compile:
        notes.append("compile is on: inductor may keep fewer bytes than are counted here")
    notes.append(("lines marked assumed are not measured on a GPU yet; all others are computed", "faint"))
    return notes


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.2f} ms"
