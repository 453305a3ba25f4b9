"""Choose a run's slots on each machine, which are GPUs or CPU ranks, and check that they exist."""

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
"""Most GPUs, and processes per GPU, that an error names."""


def parse_include(text: str, flag: str = "--include") -> dict[str, list[int]]:
    """Parses `NODE:SLOT,SLOT@NODE` into slots by host, in ascending order; a host without slots (an empty list) gives
    all its slots.

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
    """Returns `NODE:SLOT,SLOT@NODE:SLOT` for slots by host."""
    return "@".join(f"{host}:{','.join(map(str, slots))}" for host, slots in hosts.items())


def read_hostfile(file: Path) -> dict[str, int]:
    """Reads the slots per host of a deepspeed hostfile (`NAME slots=N` lines); raises UserError."""
    try:
        lines = read_text(file).splitlines()
    except (OSError, UnicodeError) as error:
        raise UserError(f"--hostfile {file}: cannot be read: {error}") from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        line = line.partition("#")[0].strip()
        match = re.match(r"(\S+)\s+slots=(\d+)$", line)
        if line and (match is None or match[1] in hosts):
            raise UserError(f"--hostfile {file}:{number}: write one line per host, as NAME slots=N")
        if match:
            hosts[match[1]] = int(match[2])
    if not hosts:
        raise UserError(f"--hostfile {file}: names no host")
    return hosts


def slots_of_hosts(include: str | None, hosts: Mapping[str, int], flag: str = "--include") -> dict[str, list[int]]:
    """Returns the slots that `include` chooses from a hostfile's hosts; all if it is None. Raises UserError."""
    chosen = parse_include(include, flag) if include else {host: [] for host in hosts}
    for host, slots in chosen.items():
        if host not in hosts:
            raise UserError(f"{flag} {include}: the hostfile names no host {host}, only {', '.join(hosts)}")
        if slots and slots[-1] >= hosts[host]:
            raise UserError(f"{flag} {include}: {host} has {hosts[host]} slots, numbered from 0")
    return {host: slots or list(range(hosts[host])) for host, slots in chosen.items()}


def slots_but(exclude: str, hosts: Mapping[str, int]) -> dict[str, list[int]]:
    """Returns the slots that `exclude` leaves on hosts with so many slots; a host without slots in it is excluded
    completely. Raises UserError."""
    left_out = slots_of_hosts(exclude, hosts, "--exclude")
    left = {
        host: [slot for slot in range(count) if slot not in left_out.get(host, [])] for host, count in hosts.items()
    }
    left = {host: slots for host, slots in left.items() if slots}
    if not left:
        raise UserError(f"--exclude {exclude}: leaves no slot")
    return left


def first_slots(count: int, hosts: Mapping[str, int]) -> dict[str, list[int]]:
    """Returns the first `count` slots of every host. Raises UserError if one has fewer."""
    for host, slots in hosts.items():
        if slots < count:
            raise UserError(f"--num_gpus {count}: {host} has {slots} slots in the hostfile")
    return {host: list(range(count)) for host in hosts}


def cpu_slots(environment: Mapping[str, str]) -> int | None:
    """Returns the number of CPU ranks if these are this machine's slots, None if its slots are GPUs.

    It follows deepspeed: with DS_ACCELERATOR=cpu or LOCAL_SIZE=N there are N of them, or one per NUMA node if
    LOCAL_SIZE is not set.

    Raises:
        UserError: LOCAL_SIZE is not a number of ranks.
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
    """Raises UserError if one of `slots` is not among the `count` CPU slots."""
    missing = [slot for slot in slots if slot >= count]
    if missing:
        raise UserError(
            f"no CPU slot {', '.join(map(str, missing))}: there are {count}, numbered from 0; "
            f"use --include {format_include(range(count))}, or LOCAL_SIZE={slots[-1] + 1} in the environment"
        )


@dataclass(frozen=True)
class Cards:
    """This machine's GPUs at one moment, with checks for a run."""

    snapshot: Snapshot

    @classmethod
    def read(cls) -> "Cards":
        """Reads the GPUs; raises UserError with exit status 4 if no NVIDIA driver answers."""
        try:
            with Driver() as driver:
                gpus = [card.read() for card in driver.cards()]
        except NoDriverError as error:
            raise UserError(
                f"no NVIDIA driver answers on this machine ({error}); --demo trains on any machine, "
                "and LOCAL_SIZE=8 in the environment trains on eight CPU ranks",
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
        """Returns who uses a GPU, in words."""
        return self.snapshot.users(gpu)

    def check_there(self, slots: Sequence[int], what: str) -> None:
        """Raises UserError if this machine lacks one of `slots`; `what` names the flag or variable that chose them."""
        missing = [str(slot) for slot in slots if slot >= len(self.gpus)]
        if not missing:
            return
        there = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in self.gpus) or "none"
        use = (
            f"; use --include {format_include(range(len(self.gpus)))}" if what != "--require_idle" and self.gpus else ""
        )
        raise UserError(f"{what}: no GPU {', '.join(missing)} on this machine, which has GPUs: {there}{use}")

    def check_readable(self, slots: Sequence[int]) -> None:
        """Raises UserError if the driver cannot read a GPU of `slots`."""
        for slot in slots:
            if error := self.gpus[slot].error:
                others = [gpu.index for gpu in self.gpus if gpu.index in slots and not gpu.error]
                rest = f", or continue without it: --include {format_include(others)}" if others else ""
                raise UserError(f"GPU {slot} cannot be read ({error}): reset it or restart the machine{rest}")

    def others(self, slot: int) -> list[GpuProcess]:
        """Returns the processes that compute on a GPU and seem to be another user's.

        A process that the system does not list, because it is in another container or /proc hides it, counts as another
        user's: the processes of this user are listed, unless they run in another container.
        """
        owned = [(process, self.snapshot.owner(process)) for process in self.gpus[slot].processes]
        others = [process for process, owner in owned if not owner.of_this_user and not owner.serves_all]
        return [process for process in others if not process.graphics]

    def any_unseen(self, slots: Sequence[int]) -> bool:
        """Returns whether a process without a known user computes on a GPU of `slots`."""
        return any(self.snapshot.owner(process).uid is None for slot in slots for process in self.others(slot))

    def of_others(self, slots: Sequence[int]) -> list[int]:
        """Returns those of `slots` that a run may not take because another user computes on them. GPU 0 is never one of
        them: its users are a warning, or an error of `require_idle`."""
        return [slot for slot in slots if slot != 0 and self.others(slot)]

    def check_not_of_others(self, slots: Sequence[int]) -> None:
        """Raises UserError with exit status 3 if another user computes on a GPU of `slots`; it names the user."""
        taken = self.of_others(slots)
        if not taken:
            return
        left = [slot for slot in slots if slot not in taken]
        ways = ["wait"] + [f"use others with --include {format_include(left)}"] * bool(left)
        shown = [f"GPU {slot}: {self._named(self.others(slot))}" for slot in taken[:_MOST_NAMED]]
        shown += [f"GPU {', '.join(map(str, taken[_MOST_NAMED:]))} likewise"] * (len(taken) > _MOST_NAMED)
        who = "another or an unknown user" if self.any_unseen(taken) else "another user"
        raise UserError(
            f"{who} computes on GPUs of this run: {'; '.join(shown)}; {', '.join(ways)}, or share them with "
            "--share_gpus",
            ExitStatus.CARD_NOT_IDLE,
        )

    def warnings(self, slots: Sequence[int]) -> list[str]:
        """Returns warnings for a run on `slots`: GPU 0 is used, GPUs are busy, processes are not known, GPUs are
        split."""
        lines = ["GPU 0 is included, so no GPU is left for the desktop and for evaluation"] if 0 in slots else []
        for gpu in self.gpus:
            if not gpu.idle and (gpu.index == 0 or gpu.index in slots):
                lines.append(self._not_idle(gpu) + self._whose(gpu))
            if gpu.slices and gpu.index in slots:
                lines.append(f"GPU {gpu.index} is split into MIG slices; a rank gets only the first one")
        untold = [str(slot) for slot in slots if not (self.gpus[slot].processes_readable or self.gpus[slot].error)]
        if untold:
            why = "not permitted, or not reported by this driver"
            lines.append(f"the processes on GPU {', '.join(untold)} are not known ({why}): others may use it")
        return lines

    def _whose(self, gpu: Gpu) -> str:
        """Returns the text after the processes of a busy GPU: their users, and memory that no process has."""
        computing = [process for process in gpu.processes if not process.graphics]
        unseen = [process.pid for process in computing if self.snapshot.owner(process).uid is None]
        others = [process.pid for process in self.others(gpu.index) if process.pid not in unseen]
        text = ""
        kinds = [(others, "of another user"), (unseen, "not visible from here")]
        kinds.append(([process.pid for process in computing if process.pid not in [*others, *unseen]], "of this user"))
        for pids, what in kinds:
            if pids:
                text += f", {what}" if len(pids) == len(computing) else f"; {', '.join(map(str, pids))} {what}"
        held = [process.memory_bytes for process in gpu.processes]
        if gpu.memory_used_bytes is not None and gpu.memory_reserved_bytes is not None and None not in held:
            untold = gpu.memory_used_bytes - sum(filter(None, held))
            if untold >= IDLE_MEMORY and gpu.processes_readable:
                text += f"; {size(untold)} of it belongs to no process that the driver lists here"
        return text

    def _named(self, processes: Sequence[GpuProcess]) -> str:
        """Returns processes with their users, programs and memory, in words."""
        texts = []
        for process in processes[:_MOST_NAMED]:
            owner = self.snapshot.owner(process)
            user = owner.user or ("a user not visible from here" if owner.uid is None else f"user {owner.uid}")
            what = [str(owner.rank)] if owner.rank else []
            what += [owner.command] if owner.command else []
            what += [size(process.memory_bytes)] if process.memory_bytes is not None else []
            texts.append(f"process {process.pid} of {user}" + (f" ({', '.join(what)})" if what else ""))
        more = len(processes) - len(texts)
        return " and ".join(texts) + (f" and {more} more" if more else "")

    def require_idle(self, indices: Sequence[int]) -> None:
        """Raises UserError with exit status 3 if a GPU of `indices` is not idle; it names the users."""
        self.check_there(indices, "--require_idle")
        busy = [self._not_idle(self.gpus[index]) for index in indices if not self.gpus[index].idle]
        if busy:
            raise UserError(f"--require_idle: {'; '.join(busy)}", ExitStatus.CARD_NOT_IDLE)

    def _not_idle(self, gpu: Gpu) -> str:
        if gpu.error:
            return f"GPU {gpu.index} cannot be read ({gpu.error})"
        return f"GPU {gpu.index} is not idle: {self.users(gpu)}"


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
