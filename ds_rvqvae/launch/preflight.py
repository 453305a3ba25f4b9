"""Check the machine before any rank starts: memory of the GPUs, driver, memory of the host, shared memory, port."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ds_rvqvae.config.batch_sizes import window_sizes_text
from ds_rvqvae.config.profile import Profile
from ds_rvqvae.errors import UserError
from ds_rvqvae.gpu.cards import CARDS
from ds_rvqvae.gpu.nvml import Gpu
from ds_rvqvae.gpu.plan import Plan, make_plan
from ds_rvqvae.gpu.plan_table import described_parts
from ds_rvqvae.host import Host, bf16_arithmetic_text
from ds_rvqvae.launch.hosts import Ranks
from ds_rvqvae.launch.slots import Cards, format_include
from ds_rvqvae.process.compiling import check_compiler
from ds_rvqvae.process.terminal import Line
from ds_rvqvae.process.torch_build import Build, numbers_of
from ds_rvqvae.runs.start import split_batch
from ds_rvqvae.text import GIB, MIB, counted, size

CARD_PROCESS_BYTES, LEAST_CARD_PROCESS_BYTES = 3 * GIB, GIB // 2
"""Host memory of a rank on a GPU: Python, torch with its CUDA libraries, CUDA's context. Both are assumed, not measured
yet; the second is a lower bound."""
CPU_PROCESS_BYTES, LEAST_CPU_PROCESS_BYTES = 512 * MIB, 192 * MIB
"""The same for a CPU rank, without its tensors; it takes 280 MiB after importing torch and DeepSpeed."""
NCCL_SHARED_BYTES = 64 * MIB
"""Bytes of /dev/shm per rank: NCCL takes 9.2 MiB per connection if GPUs cannot reach each other directly, on two
channels for a ring and trees. Assumed, not measured yet."""
_LEAST_MEMLOCK = GIB
"""RLIMIT_MEMLOCK below which NCCL may not register its buffers with InfiniBand."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    topic: str
    text: str
    warning: bool = False

    def words(self) -> Line:
        """Returns the result as a line, marked if it is a warning."""
        return [("warning: ", "warning"), self.text] if self.warning else self.text


@dataclass(frozen=True)
class Room:
    """Memory for a rank on a GPU, or on the MIG slice of it that CUDA uses."""

    gpu: Gpu
    whole_bytes: int
    free_bytes: int

    @classmethod
    def of(cls, gpu: Gpu) -> "Room | None":
        """Returns the room on a GPU; None if the driver does not report its memory."""
        device = gpu.slices[0] if gpu.slices else gpu
        total, used = device.memory_total_bytes, device.memory_used_bytes
        if not total or used is None:
            return None
        reserved = 0 if gpu.slices else gpu.memory_reserved_bytes or 0
        return cls(gpu, total - reserved, max(0, total - reserved - used))


@dataclass(frozen=True)
class Preflight:
    """A run's plan, for its GPU with the least free memory, and the results of the checks."""

    plan: Plan
    room: Room | None
    """The room on that GPU; None if it is not known or not on this machine."""
    on_cpu: bool
    """Whether the ranks are CPU ranks, which need no memory for CUDA."""
    findings: list[Finding]

    def plan_lines(self) -> list[str]:
        """Returns a short form of the plan."""
        plan, data = self.plan, self.plan.profile.rvqvae.data
        recompute = "on" if plan.profile.rvqvae.training.gradient_checkpointing else "off"
        precision = "bf16" if plan.profile.bf16.enabled else "fp32"
        parts = [(name, count) for name, count, _ in described_parts(plan) if count]
        if self.on_cpu:
            parts = [(name, count) for name, count in parts if not name.startswith("CUDA")]
        parts.sort(key=lambda part: -part[1])
        total = sum(count for _, count in parts)
        lines = [
            f"{counted(plan.gpus, 'CPU rank' if self.on_cpu else 'GPU')}, each with "
            f"{window_sizes_text(data, plan.micro_batch)} x {plan.in_features} columns",
            f"{plan.parameter_count:,} trainable parameters, {precision}, "
            f"ZeRO stage {plan.profile.zero_optimization.stage}, activation checkpointing {recompute}",
            f"{size(total)} each: {', '.join(f'{name} {size(count)}' for name, count in parts)}",
        ]
        if self.room is not None:
            lines.append(
                f"largest micro batch that fits into the {size(self.room.free_bytes)} free on GPU "
                f"{self.room.gpu.index}: {plan.largest_micro_batch:,} windows"
            )
        return lines


def check_machine(
    profile: Profile,
    in_features: int,
    ranks: Ranks,
    cards: Cards | None,
    *,
    idle: Sequence[int] = (),
    dry_run: bool = False,
    host: Host | None = None,
    build: Build | None = None,
) -> Preflight:
    """Checks whether this machine and its GPUs have what a run needs.

    Args:
        in_features: columns of the motion.
        cards: this machine's GPUs; None if the ranks are CPU ranks or on other machines.
        idle: GPUs that `Cards.require_idle` or `check_not_of_others` will check, so that their users are not an error
            here.
        dry_run: whether nothing will start, so that a torch without CUDA, or no compiler, is only a
            warning.
        host, build: values in place of this machine's.

    Raises:
        UserError: the run cannot start here.
    """
    plan = make_plan(profile, in_features, ranks.world_size, CARDS["4090"])
    arithmetic = Finding("arithmetic", bf16_arithmetic_text())
    if ranks.local is None:
        elsewhere = "the ranks run on other hosts, which are not checked from this machine"
        return Preflight(plan, None, ranks.cpu, [Finding("GPUs", elsewhere), _port(ranks)])
    host = host or Host.read()
    findings, room = [arithmetic] if ranks.cpu else [], None
    if cards is not None:
        room = _least_room(cards, ranks.local, idle)
        if room is not None:
            # Only the memory of the GPU matters here.
            plan = replace(plan, card=replace(plan.card, name=room.gpu.name, memory_bytes=room.free_bytes))
        findings += _cards(cards, ranks.local)
        findings.append(_driver(cards, build or Build.read(), dry_run))
        findings.append(_card_memory(plan, room, cards, ranks.local))
    if profile.rvqvae.training.compile:
        findings.append(_compiler(ranks.cpu, dry_run))
    findings.append(_host_memory(plan, ranks, host))
    if cards is not None:
        findings.append(_pinned_memory(plan, ranks, host))
        findings.append(_shared_memory(len(ranks.local), host))
    return Preflight(plan, room, ranks.cpu, [*findings, _port(ranks)])


def _least_room(cards: Cards, slots: Sequence[int], idle: Sequence[int]) -> Room | None:
    """Returns the room on the GPU with the least free memory, among those that report it; without those that are
    refused because they are not idle."""
    gpus = [gpu for gpu in cards.gpus if gpu.index in slots and (gpu.idle or gpu.index not in idle)]
    rooms = [room for room in map(Room.of, gpus) if room is not None]
    return min(rooms, key=lambda room: room.free_bytes, default=None)


def _cards(cards: Cards, slots: Sequence[int]) -> list[Finding]:
    names = " and ".join(sorted({cards.gpus[slot].name for slot in slots}))
    findings = [Finding("GPUs", f"GPU {', '.join(map(str, slots))}: {names or 'without a name'}")]
    warnings = cards.warnings(slots)
    findings += [Finding("GPUs", warning, warning=True) for warning in warnings]
    if 0 not in slots and cards.gpus[0].idle:
        findings.append(Finding("GPU 0", "left out, and idle"))
    return findings


def _driver(cards: Cards, build: Build, dry_run: bool) -> Finding:
    """Raises UserError for a driver that is too old, or a torch without CUDA."""
    driver, serves = cards.snapshot.driver_version, cards.snapshot.cuda_version
    torch = f"torch {build.version}".rstrip()
    if not build.version:
        return Finding("driver", f"{driver}; the CUDA version that torch is built for is not known", warning=True)
    if build.cuda is None:
        text = f"{torch} is built without CUDA and cannot use these GPUs: install a build for CUDA {serves or 12}"
        if dry_run:
            return Finding("driver", text, warning=True)
        raise UserError(f"{text}, or set LOCAL_SIZE=8 in the environment for eight CPU ranks")
    wanted = f"{torch} is built for CUDA {build.cuda}"
    if not serves:
        return Finding("driver", f"{driver or 'it'} does not report which CUDA it supports; {wanted}", warning=True)
    if not build.can_use_cards(serves):
        raise UserError(
            f"the NVIDIA driver {driver} supports CUDA up to {serves}, but {wanted}: {build.way_on(serves)}"
        )
    older = numbers_of(serves) < numbers_of(build.cuda)
    within = "; this is enough within one major version, as NVIDIA documents" if older else ""
    return Finding("driver", f"{driver} supports CUDA up to {serves}, {wanted}{within}")


def _compiler(on_cpu: bool, dry_run: bool) -> Finding:
    """Raises UserError if torch.compile would fail in the ranks."""
    try:
        return Finding("compiler", check_compiler(on_cpu))
    except UserError as error:
        if dry_run:
            return Finding("compiler", str(error), warning=True)
        raise


def _card_memory(plan: Plan, room: Room | None, cards: Cards, slots: Sequence[int]) -> Finding:
    """Raises UserError if the plan does not fit into the free memory and no smaller batch will be searched for."""
    needed = plan.total_bytes
    untold = [str(slot) for slot in slots if Room.of(cards.gpus[slot]) is None]
    if room is None or (untold and needed <= room.free_bytes):
        unknown = f"; the driver does not report the memory of GPU {', '.join(untold)}" if untold else ""
        return Finding("GPU memory", f"{size(needed)} per GPU planned{unknown}", warning=True)
    if needed <= room.free_bytes:
        free = f"{size(room.free_bytes)} of {size(room.whole_bytes)} on GPU {room.gpu.index}"
        return Finding("GPU memory", f"{size(needed)} per GPU planned; the least free memory is {free}")
    text = _too_little(plan, room, cards)
    if not plan.largest_micro_batch:
        raise UserError(f"{text}; not even one window fits{_other_cards(plan, cards, slots)}")
    if plan.profile.rvqvae.training.auto_batch_size:
        return Finding("GPU memory", f"{text}; --auto_batch_size searches for a batch that fits", warning=True)
    raise UserError(
        f"{text}; the largest micro batch that fits is {plan.largest_micro_batch}: {_smaller_batch(plan)}, "
        f"--auto_batch_size{_other_cards(plan, cards, slots)}"
    )


def _smaller_batch(plan: Plan) -> str:
    """Returns flags with which the run fits: smaller micro batches of the same global batch, or else a smaller global
    batch."""
    most = min(plan.largest_micro_batch, plan.micro_batch)
    while most:
        # Gradient accumulation takes some memory too.
        windows, accumulation = split_batch(plan.profile.windows_per_rank, most)
        update = {"train_micro_batch_size_per_gpu": windows, "gradient_accumulation_steps": accumulation}
        profile = plan.profile.model_copy(update=update)
        if make_plan(profile, plan.in_features, plan.gpus, plan.card).fits:
            return f"--batch_size {windows} --gradient_accumulation_steps {accumulation}"
        most = windows - 1
    return f"--batch_size {plan.largest_micro_batch}"


def _too_little(plan: Plan, room: Room, cards: Cards) -> str:
    gpu, needed = room.gpu, plan.total_bytes
    text = f"GPU {gpu.index} has {size(room.free_bytes)} free of {size(room.whole_bytes)}"
    text += f" and the run is planned to take {size(needed)} with {plan.micro_batch} windows per GPU"
    if needed <= room.whole_bytes:
        return f"{text}, so others must free some: {cards.users(gpu)}"
    return text if gpu.idle else f"{text}, more than all of it; {cards.users(gpu)}"


def _other_cards(plan: Plan, cards: Cards, slots: Sequence[int]) -> str:
    """Returns a hint with the GPUs that have enough room, if any."""
    rooms = filter(None, (Room.of(cards.gpus[slot]) for slot in slots))
    others = [room.gpu.index for room in rooms if plan.total_bytes <= room.free_bytes]
    return f", or --include {format_include(others)}" if others else ""


def _host_memory(plan: Plan, placed: Ranks, host: Host) -> Finding:
    """Raises UserError if there is not even room for the processes."""
    ranks = len(placed.local or ())
    if placed.cpu:
        least, each = LEAST_CPU_PROCESS_BYTES, CPU_PROCESS_BYTES + plan.allocated_bytes
    else:
        least, each = LEAST_CARD_PROCESS_BYTES, CARD_PROCESS_BYTES + plan.host_bytes
    there = f"{size(host.memory_bytes)} is {host.memory_limit}"
    named = counted(ranks, "rank")
    if host.memory_bytes < ranks * least:
        raise UserError(f"host memory: {named} need {size(ranks * least)} or more, but {there}; free some")
    text = f"{named} of about {size(each)}, together {size(ranks * each)} of the host's memory; {there}"
    return Finding("host memory", text, warning=host.memory_bytes < ranks * each)


def _pinned_memory(plan: Plan, ranks: Ranks, host: Host) -> Finding:
    pinned = f"{size(len(ranks.local or ()) * plan.host_bytes)} of that is page-locked for the GPUs"
    limit = "unlimited" if host.memlock_bytes is None else size(host.memlock_bytes)
    if len(ranks.hosts) > 1 and host.infiniband and _is_small(host.memlock_bytes):
        text = f"RLIMIT_MEMLOCK is {limit}, too little for NCCL over InfiniBand: ulimit -l unlimited"
        return Finding("pinned memory", f"{text}, or --nccl_ib_disable", warning=True)
    return Finding("pinned memory", f"{pinned}; RLIMIT_MEMLOCK, which limits only InfiniBand, is {limit}")


def _is_small(memlock_bytes: int | None) -> bool:
    return memlock_bytes is not None and memlock_bytes < _LEAST_MEMLOCK


def _shared_memory(ranks: int, host: Host) -> Finding:
    if ranks == 1:
        return Finding("/dev/shm", "not used by one rank")
    wanted = ranks * NCCL_SHARED_BYTES
    if host.shm_total_bytes is None or host.shm_free_bytes is None:
        return Finding("/dev/shm", "there is no /dev/shm, which NCCL needs between GPUs", warning=True)
    text = f"{size(host.shm_free_bytes)} of {size(host.shm_total_bytes)} free in /dev/shm, where NCCL may take "
    text += f"{size(wanted)} for {ranks} ranks"
    if host.shm_free_bytes >= wanted:
        return Finding("/dev/shm", text)
    # A killed run leaves its segments in it.
    small = host.shm_total_bytes < wanted
    todo = "start the container with --shm-size=1g or --ipc=host" if small else "delete what killed runs left in it"
    return Finding("/dev/shm", f"{text}: {todo}", warning=True)


def _port(ranks: Ranks) -> Finding:
    state = "free" if ranks.first_here else "on rank 0's host, not checked"
    return Finding("master port", f"{ranks.port}: {state}")
