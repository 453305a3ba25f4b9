"""What this machine has beside its cards: its processor, what is left of memory and shared memory, limits on them."""

import os
import platform
import resource
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUP_FILES = (
    ("memory.max", "memory.current", ("inactive_file", "active_file", "slab_reclaimable")),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
)
"""Limit, use, and what of the use can be dropped: of control groups version 2 and version 1."""
_STRICT = "2"
"""vm.overcommit_memory under which the kernel promises no more than it has."""


@dataclass(frozen=True)
class Host:
    """Readings of this machine, in bytes."""

    memory_bytes: int
    """What new processes can still take."""
    memory_limit: str
    """What sets that, in words."""
    shm_total_bytes: int | None
    """Size of /dev/shm; None where there is none."""
    shm_free_bytes: int | None
    memlock_bytes: int | None
    """RLIMIT_MEMLOCK; None is unlimited."""
    infiniband: bool

    @classmethod
    def read(cls, root: Path = Path("/")) -> "Host":
        """The machine now.

        Args:
            root: where /proc, /sys and /dev are looked for.
        """
        memory = [(psutil.virtual_memory().available, "available on this machine")]
        memory += [(left, "left under the control group's memory limit") for left in _left_in_cgroups(root)]
        memory += [(left, "left to promise under vm.overcommit_memory=2") for left in _left_to_commit(root)]
        available, limit = min(memory)
        total = free = None
        with suppress(OSError):
            shm = os.statvfs(root / "dev/shm")
            total, free = shm.f_blocks * shm.f_frsize, shm.f_bavail * shm.f_frsize
        memlock, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        unlimited = memlock == resource.RLIM_INFINITY
        ports = root / "sys/class/infiniband"
        infiniband = ports.is_dir() and any(ports.iterdir())
        return cls(max(0, available), limit, total, free, None if unlimited else memlock, infiniband)


def _left_in_cgroups(root: Path) -> Iterator[int]:
    """What each control group with a limit, from this process's own up, leaves for it."""
    lines = []
    with suppress(OSError):
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    folders = set()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            mount = root / "sys/fs/cgroup" / controllers
            group = mount / path.lstrip("/")
            # A container may see its own group as the root, whatever path it is told.
            folders |= {folder for folder in (group, *group.parents) if folder.is_relative_to(mount)}
    for folder in folders:
        for limit_file, used_file, droppable in _CGROUP_FILES:
            with suppress(OSError, ValueError):  # no such file, or a limit of "max"
                limit, used = int((folder / limit_file).read_text()), int((folder / used_file).read_text())
                statistics = _table(folder / "memory.stat", " ")
                yield limit - used + sum(statistics.get(name, 0) for name in droppable)


def _left_to_commit(root: Path) -> Iterator[int]:
    with suppress(OSError, KeyError, ValueError):
        if (root / "proc/sys/vm/overcommit_memory").read_text().strip() == _STRICT:
            memory = _table(root / "proc/meminfo", ":")
            yield (memory["CommitLimit"] - memory["Committed_AS"]) * 1024


def _table(file: Path, separator: str) -> dict[str, int]:
    """Lines of a name and a number."""
    pairs = (line.partition(separator) for line in file.read_text().splitlines())
    return {name: int(value.split()[0]) for name, _, value in pairs if value.strip()}


def processor_name() -> str:
    """The processor as it calls itself, or else what it is built like."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
