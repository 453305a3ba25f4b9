"""Which slots of which machines a run takes, and whether they are there: cards, or CPU ranks."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ds_rvqvae.config.launch_flags import DEFAULT_INCLUDE
from ds_rvqvae.errors import ExitStatus, UserError
from ds_rvqvae.files import read_text
from ds_rvqvae.gpu.nvml import IDLE_MEMORY, Driver, Gpu, GpuProcess, NoDriverError
from ds_rvqvae.gpu.processes import Owners
from ds_rvqvae.gpu.snapshot import Snapshot
from ds_rvqvae.text import size

LOCAL = "localhost"
_MOST_NAMED = 3
"""Cards, and processes of a card, that a refusal names."""


def parse_include(text: str, flag: str = "--include") -> dict[str, list[int]]:
    """Slots by host of `NODE:SLOT,SLOT@NODE`, in rising order; a host without slots (an empty list) gives all of its.

    Raises:
        UserError: the text is not of that form.
    """
    hosts: dict[str, list[int]] = {}
    for node in text.split("@"):
        match = re.fullmatch(r"([^\s:@,]+)(?::(\d+(?:,\d+)*))?", node)
        if match is None:
            if re.fullmatch(r"\d+(,\d+)*", text):
                raise UserError(f"{flag} {text}: names no host; write {flag} {LOCAL}:{text}")
            raise UserError(f"{flag} {text}: write it as HOST:SLOT,SLOT, for example {DEFAULT_INCLUDE}")
        slots = [int(slot) for slot in match[2].split(",")] if match[2] else []
        if len(set(slots)) < len(slots) or match[1] in hosts:
            raise UserError(f"{flag} {text}: names a slot or a host twice")
        hosts[match[1]] = sorted(slots)
    return hosts


def format_include(slots: Sequence[int]) -> str:
    return format_hosts({LOCAL: slots})


def format_hosts(hosts: Mapping[str, Sequence[int]]) -> str:
    """`NODE:SLOT,SLOT@NODE:SLOT` of slots by host."""
    return "@".join(f"{host}:{','.join(map(str, slots))}" for host, slots in hosts.items())


def read_hostfile(file: Path) -> dict[str, int]:
    """Slots a host of a deepspeed hostfile (`NAME slots=N` lines); raises UserError."""
    try:
        lines = read_text(file).splitlines()
    except (OSError, UnicodeError) as error:
        raise UserError(f"--hostfile {file}: cannot be read: {error}") from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        line = line.partition("#")[0].strip()
        match = re.match(r"(\S+)\s+slots=(\d+)$", line)
        if line and (match is None or match[1] in hosts):
            raise UserError(f"--hostfile {file}:{number}: one line a host, written as NAME slots=N")
        if match:
            hosts[match[1]] = int(match[2])
    if not hosts:
        raise UserError(f"--hostfile {file}: names no host")
    return hosts


def slots_of_hosts(include: str | None, hosts: Mapping[str, int], flag: str = "--include") -> dict[str, list[int]]:
    """The slots that `include` takes of a hostfile's hosts; all of them without one. Raises UserError."""
    chosen = parse_include(include, flag) if include else {host: [] for host in hosts}
    for host, slots in chosen.items():
        if host not in hosts:
            raise UserError(f"{flag} {include}: the hostfile names no host {host}, only {', '.join(hosts)}")
        if slots and slots[-1] >= hosts[host]:
            raise UserError(f"{flag} {include}: {host} has {hosts[host]} slots, numbered from 0")
    return {host: slots or list(range(hosts[host])) for host, slots in chosen.items()}


def slots_but(exclude: str, hosts: Mapping[str, int]) -> dict[str, list[int]]:
    """The slots that `exclude` leaves of hosts with so many; it names whole hosts without slots. Raises UserError."""
    left_out = slots_of_hosts(exclude, hosts, "--exclude")
    left = {
        host: [slot for slot in range(count) if slot not in left_out.get(host, [])] for host, count in hosts.items()
    }
    left = {host: slots for host, slots in left.items() if slots}
    if not left:
        raise UserError(f"--exclude {exclude}: leaves no slot")
    return left


def first_slots(count: int, hosts: Mapping[str, int]) -> dict[str, list[int]]:
    """The first `count` slots of every host. Raises UserError where one has fewer."""
    for host, slots in hosts.items():
        if slots < count:
            raise UserError(f"--num_gpus {count}: {host} has {slots} slots by the hostfile")
    return {host: list(range(count)) for host in hosts}


def cpu_slots(environment: Mapping[str, str]) -> int | None:
    """How many CPU ranks are this machine's slots, None where its slots are cards.

    As deepspeed does: with DS_ACCELERATOR=cpu or LOCAL_SIZE=N there are N of them, one a NUMA node without N.

    Raises:
        UserError: LOCAL_SIZE is no number of ranks.
    """
    size = environment.get("LOCAL_SIZE")
    if environment.get("DS_ACCELERATOR", "cpu" if size else "cuda") != "cpu":
        return None
    if size is None:
        return max(1, len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))))
    if not size.isdecimal() or int(size) < 1:
        raise UserError(f"LOCAL_SIZE={size}: give the number of CPU slots, 1 or more")
    return int(size)


def check_cpu_slots(slots: Sequence[int], count: int) -> None:
    """Raises UserError where one of `slots` is not among the `count` CPU slots."""
    missing = [slot for slot in slots if slot >= count]
    if missing:
        raise UserError(
            f"no CPU slot {', '.join(map(str, missing))}: there are {count}, numbered from 0; "
            f"use --include {format_include(range(count))}, or LOCAL_SIZE={slots[-1] + 1} in the environment"
        )


@dataclass(frozen=True)
class Cards:
    """This machine's cards at one moment, checked against what a run wants of them."""

    snapshot: Snapshot

    @classmethod
    def read(cls) -> "Cards":
        """Raises UserError with exit status 4 where no NVIDIA driver answers."""
        try:
            with Driver() as driver:
                gpus = [card.read() for card in driver.cards()]
        except NoDriverError as error:
            raise UserError(
                f"no NVIDIA driver answers on this machine ({error}); --demo trains on any machine, "
                "and LOCAL_SIZE=8 in the environment makes eight CPU ranks the slots",
                ExitStatus.NO_DRIVER,
            ) from None
        owners = Owners().look_up(process.pid for gpu in gpus for process in gpu.processes)
        now = datetime.now().astimezone()
        shown = [gpu.index for gpu in gpus]
        return cls(Snapshot(now, driver.version, driver.cuda_version, gpus, shown, owners))

    @property
    def gpus(self) -> Sequence[Gpu]:
        return self.snapshot.gpus

    def users(self, gpu: Gpu) -> str:
        """Who uses a card, in words."""
        return self.snapshot.users(gpu)

    def check_there(self, slots: Sequence[int], what: str) -> None:
        """Raises UserError where this machine lacks one of `slots`; `what` names the flag or variable that asked."""
        missing = [str(slot) for slot in slots if slot >= len(self.gpus)]
        if not missing:
            return
        there = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in self.gpus) or "none"
        use = (
            f"; use --include {format_include(range(len(self.gpus)))}" if what != "--require_idle" and self.gpus else ""
        )
        raise UserError(f"{what}: no GPU {', '.join(missing)} on this machine, which has GPUs: {there}{use}")

    def check_readable(self, slots: Sequence[int]) -> None:
        """Raises UserError where a card of `slots` is lost to the driver."""
        for slot in slots:
            if error := self.gpus[slot].error:
                others = [gpu.index for gpu in self.gpus if gpu.index in slots and not gpu.error]
                rest = f", or go on without it: --include {format_include(others)}" if others else ""
                raise UserError(f"GPU {slot} cannot be read ({error}): reset it or restart the machine{rest}")

    def others(self, slot: int) -> list[GpuProcess]:
        """The processes that compute on a card and are not of this user, for all that can be seen.

        One that is not seen here, as of another container or where /proc hides it, counts as another user's: those of
        this user are seen, unless they run in another container.
        """
        owned = [(process, self.snapshot.owner(process)) for process in self.gpus[slot].processes]
        others = [process for process, owner in owned if not owner.of_this_user and not owner.serves_all]
        return [process for process in others if not process.graphics]

    def any_unseen(self, slots: Sequence[int]) -> bool:
        """Whether a process computes on a card of `slots` of which nothing can be told."""
        return any(self.snapshot.owner(process).uid is None for slot in slots for process in self.others(slot))

    def of_others(self, slots: Sequence[int]) -> list[int]:
        """Those of `slots` that another user computes on and a run may not take: all but GPU 0, whose users are a
        warning, or a refusal by `require_idle`."""
        return [slot for slot in slots if slot != 0 and self.others(slot)]

    def check_not_of_others(self, slots: Sequence[int]) -> None:
        """Raises UserError with exit status 3, naming who uses it, where another user computes on a card of `slots`."""
        taken = self.of_others(slots)
        if not taken:
            return
        left = [slot for slot in slots if slot not in taken]
        ways = ["wait"] + [f"take others by --include {format_include(left)}"] * bool(left)
        shown = [f"GPU {slot}: {self._named(self.others(slot))}" for slot in taken[:_MOST_NAMED]]
        shown += [f"GPU {', '.join(map(str, taken[_MOST_NAMED:]))} likewise"] * (len(taken) > _MOST_NAMED)
        who = "another or an unknown user" if self.any_unseen(taken) else "another user"
        raise UserError(
            f"{who} computes on GPUs of this run: {'; '.join(shown)}; {', '.join(ways)}, or share them by --share_gpus",
            ExitStatus.CARD_NOT_IDLE,
        )

    def warnings(self, slots: Sequence[int]) -> list[str]:
        """What a run on `slots` should know: GPU 0 taken, busy cards, processes that are not told, cards in slices."""
        lines = ["GPU 0 is included, so nothing is left for the desktop and for evaluation"] if 0 in slots else []
        for gpu in self.gpus:
            if not gpu.idle and (gpu.index == 0 or gpu.index in slots):
                lines.append(self._not_idle(gpu) + self._whose(gpu))
            if gpu.slices and gpu.index in slots:
                lines.append(f"GPU {gpu.index} is split into MIG slices, of which a rank gets the first alone")
        untold = [str(slot) for slot in slots if not (self.gpus[slot].processes_readable or self.gpus[slot].error)]
        if untold:
            why = "not permitted, or not told by this driver"
            lines.append(f"who computes on GPU {', '.join(untold)} cannot be told ({why}): others may be on it")
        return lines

    def _whose(self, gpu: Gpu) -> str:
        """What is said after the processes of a busy card: whose they are, and of memory that none of them holds."""
        computing = [process for process in gpu.processes if not process.graphics]
        unseen = [process.pid for process in computing if self.snapshot.owner(process).uid is None]
        others = [process.pid for process in self.others(gpu.index) if process.pid not in unseen]
        text = ""
        kinds = [(others, "of another user"), (unseen, "that cannot be seen from here")]
        kinds.append(([process.pid for process in computing if process.pid not in [*others, *unseen]], "of this user"))
        for pids, what in kinds:
            if pids:
                text += f", {what}" if len(pids) == len(computing) else f"; {', '.join(map(str, pids))} {what}"
        held = [process.memory_bytes for process in gpu.processes]
        if gpu.memory_used_bytes is not None and gpu.memory_reserved_bytes is not None and None not in held:
            untold = gpu.memory_used_bytes - sum(filter(None, held))
            if untold >= IDLE_MEMORY and gpu.processes_readable:
                text += f"; {size(untold)} of it is held by no process that the driver lists here"
        return text

    def _named(self, processes: Sequence[GpuProcess]) -> str:
        """Processes with their users, programs and memory."""
        texts = []
        for process in processes[:_MOST_NAMED]:
            owner = self.snapshot.owner(process)
            user = owner.user or ("a user that cannot be seen from here" if owner.uid is None else f"user {owner.uid}")
            what = [str(owner.rank)] if owner.rank else []
            what += [owner.command] if owner.command else []
            what += [size(process.memory_bytes)] if process.memory_bytes is not None else []
            texts.append(f"process {process.pid} of {user}" + (f" ({', '.join(what)})" if what else ""))
        more = len(processes) - len(texts)
        return " and ".join(texts) + (f" and {more} more" if more else "")

    def require_idle(self, indices: Sequence[int]) -> None:
        """Raises UserError with exit status 3, naming who uses it, where a card of `indices` is not idle."""
        self.check_there(indices, "--require_idle")
        busy = [self._not_idle(self.gpus[index]) for index in indices if not self.gpus[index].idle]
        if busy:
            raise UserError(f"--require_idle: {'; '.join(busy)}", ExitStatus.CARD_NOT_IDLE)

    def _not_idle(self, gpu: Gpu) -> str:
        if gpu.error:
            return f"GPU {gpu.index} cannot be read ({gpu.error})"
        return f"GPU {gpu.index} is not idle: {self.users(gpu)}"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
