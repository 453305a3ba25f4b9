"""The owners of a GPU's processes: user, command, and for our runs the rank and the run."""

import os
import pwd
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil

from ds_rvqvae.errors import UserError, printable
from ds_rvqvae.process.slurm import Task

TRAINER = "ds_rvqvae.train"
MPS_SERVER = "nvidia-cuda-mps-server"


@dataclass(frozen=True)
class Rank:
    """A rank of one of our runs."""

    rank: int | None
    """None if only its local rank is known, as for another user's process."""
    local_rank: int | None
    world_size: int | None
    run: str | None
    """The run's folder, or its name if no more is known."""
    environment: Mapping[str, str]
    """Empty if it cannot be read."""

    def __str__(self) -> str:
        number = f"rank {self.rank}" if self.rank is not None else f"local rank {self.local_rank}"
        of = f" of {self.world_size}" if self.world_size else ""
        return f"{number}{of}" + (f", {Path(self.run).name}" if self.run else "")


@dataclass(frozen=True)
class Owner:
    """The owner of a process; fields that cannot be read, as for another container's process, are None."""

    user: str | None = None
    command: str | None = None
    rank: Rank | None = None
    uid: int | None = None
    """None if the process is not visible: it is another container's, hidden from this user, or has just ended."""

    @property
    def of_this_user(self) -> bool:
        return self.uid == os.getuid()

    @property
    def serves_all(self) -> bool:
        """Whether it is a server of CUDA's MPS for all users; the driver lists its clients too. A server that does not
        belong to root serves only its own user."""
        return self.uid == 0 and self.command == MPS_SERVER


class Owners:
    """The owners of processes, each looked up once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[float, Owner]] = {}

    def look_up(self, pids: Iterable[int]) -> dict[int, Owner]:
        """The owner of every process of `pids`; forgets all others."""
        self._known = {pid: self._find(pid) for pid in set(pids)}
        return {pid: owner for pid, (_, owner) in self._known.items()}

    def _find(self, pid: int) -> tuple[float, Owner]:
        try:
            process = psutil.Process(pid)
            started = process.create_time()
        except (psutil.Error, OSError, ValueError):
            return 0.0, _hidden(pid)
        known_start, known = self._known.get(pid, (None, None))
        # A rank opens its run's log some time after it appears on the GPU.
        if known is not None and known_start == started and not (known.rank and known.rank.run is None):
            return started, known
        return started, _owner(process)


def _hidden(pid: int) -> Owner:
    """The owner of a hidden process: under hidepid=1 its folder still shows its user."""
    with suppress(OSError, ValueError):
        uid = Path(f"/proc/{pid}").stat().st_uid
        with suppress(KeyError):
            return Owner(printable(pwd.getpwuid(uid).pw_name), uid=uid)
        return Owner(uid=uid)
    return Owner()


def _owner(process: psutil.Process) -> Owner:
    user = command = rank = uid = None
    line: list[str] = []
    with suppress(psutil.Error, OSError):
        uid = process.uids().real
    with suppress(psutil.Error, OSError, KeyError):
        user = printable(process.username())
    with suppress(psutil.Error, OSError):
        line = process.cmdline()
        command = short_command(line) or printable(process.name())
    with suppress(psutil.Error, OSError):
        rank = _rank(process, line)
    return Owner(user, command, rank, uid)


def short_command(line: Sequence[str]) -> str:
    """Program and script or module of a command line, without arguments, which may hold secrets."""
    # Some programs write their title over the complete line.
    words = line[0].split() if len(line) == 1 else list(line)
    if not words:
        return ""
    shown = [Path(words[0]).name]
    if shown[0].startswith("python"):
        rest = iter(words[1:])
        for word in rest:
            if word == "-m":
                shown += ["-m", next(rest, "")]
                break
            if word in ("-c", "-"):
                shown.append(word)
                break
            if word in ("-W", "-X"):
                next(rest, None)
            elif not word.startswith("-"):
                shown.append(Path(word).name)
                break
    return printable(" ".join(shown))


def _rank(process: psutil.Process, line: Sequence[str]) -> Rank | None:
    # deepspeed's launchers name the module too, but do not run it.
    if ("-m", TRAINER) not in pairwise(line):
        return None
    environment: dict[str, str] = {}
    with suppress(psutil.Error, OSError):
        environment = process.environ()
    with suppress(UserError):
        task = Task.of(environment, is_own=False)
        if task is not None and "RANK" not in environment:
            environment = {**environment, **task.variables()}  # as the rank itself does
    local_rank = _number(environment.get("LOCAL_RANK") or _flag(line, "local_rank"))
    # Without a launcher there is one rank, and no variable tells its number.
    alone = bool(environment) and "RANK" not in environment
    rank = 0 if alone else _number(environment.get("RANK"))
    if rank is None and local_rank is None:
        local_rank = 0
    return Rank(rank, local_rank, _number(environment.get("WORLD_SIZE")), _run(process, line), environment)


def _run(process: psutil.Process, line: Sequence[str]) -> str | None:
    """The folder whose log the rank holds open, otherwise the one from its command line."""
    with suppress(OSError):
        for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
            with suppress(OSError):
                target = descriptor.readlink()
                if target.name == "run.log":
                    return printable(str(target.parent))
    name = _flag(line, "name")
    if name is None:
        return None
    folder = Path(_flag(line, "out") or "runs", name)
    with suppress(psutil.Error, OSError):
        folder = process.cwd() / folder
    return printable(str(folder))


def _flag(line: Sequence[str], name: str) -> str | None:
    """The value of `--name VALUE` or `--name=VALUE`."""
    for word, following in zip(line, [*line[1:], None], strict=True):
        if word == f"--{name}":
            return following
        if word.startswith(f"--{name}="):
            return word.partition("=")[2]
    return None


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdecimal() else None
