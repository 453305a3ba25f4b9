"""Read facts about this machine other than its GPUs: processor, free memory and shared memory, and their limits."""

import functools
import os
import platform
import resource
import shlex
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from ds_rvqvae.errors import UserError, printable

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""The variable that names the GPUs of a process."""
_HIDING = ("", "-1", "nodevfiles", "none", "void")
"""Values of CUDA_VISIBLE_DEVICES with which CUDA finds no GPU; Slurm sets NoDevFiles for a job without GPUs."""
CPU_BF16_VARIABLE = "DS_RVQVAE_CPU_BF16"
"""Sets which bf16 arithmetic the processor is taken to have: `native` or `none`."""
_BF16_FEATURES = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Names of bf16 arithmetic in /proc/cpuinfo; `bf16` is Arm's."""
_ISAS_WITHOUT_BF16 = frozenset({"sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2", "avx512_core", "avx512_core_vnni"})
"""Values of oneDNN's ONEDNN_MAX_CPU_ISA below avx512_core_bf16, the first one with bf16 arithmetic."""
_CGROUP_FILES = (
    ("memory.max", "memory.current", ("inactive_file", "active_file", "slab_reclaimable")),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
)
"""Files of a control group with its limit, its use, and the entries of memory.stat that can be freed; versions 2 and
1."""
_OTHER_FILES = 512
"""File descriptors that a process needs beside those that it asks for."""
_STRICT = "2"
"""The value of vm.overcommit_memory with which the kernel promises no more memory than it has."""


def shown_visible(value: str) -> str:
    """Returns CUDA_VISIBLE_DEVICES with a value, quoted for a shell."""
    return f"{VISIBLE}={shlex.quote(printable(value))}"


def hides_all_gpus(visible: str) -> bool:
    """Returns whether CUDA finds no GPU with this value of CUDA_VISIBLE_DEVICES."""
    return visible.strip().lower() in _HIDING


@dataclass(frozen=True)
class Host:
    """Memory and limits of this machine, in bytes."""

    memory_bytes: int
    """Memory that new processes can still take."""
    memory_limit: str
    """The limit that decides it, in words."""
    shm_total_bytes: int | None
    """Size of /dev/shm; None if there is none."""
    shm_free_bytes: int | None
    memlock_bytes: int | None
    """RLIMIT_MEMLOCK; None means unlimited."""
    infiniband: bool

    @classmethod
    def read(cls, root: Path = Path("/")) -> "Host":
        """Reads the current state of the machine.

        Args:
            root: the folder that contains /proc, /sys and /dev.
        """
        memory = [(psutil.virtual_memory().available, "available on this machine")]
        memory += [(left, "left under the control group's memory limit") for left in _left_in_cgroups(root)]
        memory += [(left, "left to allocate under vm.overcommit_memory=2") for left in _left_to_commit(root)]
        available, limit = min(memory)
        total = free = None
        with suppress(OSError):
            shm = os.statvfs(root / "dev/shm")
            total, free = shm.f_blocks * shm.f_frsize, shm.f_bavail * shm.f_frsize
        memlock, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        unlimited = memlock == resource.RLIM_INFINITY
        ports = root / "sys/class/infiniband"
        infiniband = False
        with suppress(OSError):
            infiniband = any(ports.iterdir())
        return cls(max(0, available), limit, total, free, None if unlimited else memlock, infiniband)


def _left_in_cgroups(root: Path) -> Iterator[int]:
    """Yields the free memory of each control group with a limit, from this process's own group up to the root."""
    lines = []
    with suppress(OSError):
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    folders = set()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            mount = root / "sys/fs/cgroup" / controllers
            group = mount / path.lstrip("/")
            # A container may see its own group as the root, although /proc names a longer path.
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
    """Parses lines of a name and a number."""
    pairs = (line.partition(separator) for line in file.read_text().splitlines())
    return {name: int(value.split()[0]) for name, _, value in pairs if value.strip()}


def processor_name() -> str:
    """Returns the model name of the processor, or else its architecture."""
    return _processor().get("model name") or platform.machine()


def has_bf16_arithmetic() -> bool:
    """Returns whether this processor computes in bf16, so that bf16 makes convolutions faster.

    It does with AVX512-BF16, AMX or Arm's BF16, unless `ONEDNN_MAX_CPU_ISA` (older name `DNNL_MAX_CPU_ISA`) forbids
    them to oneDNN, which computes the convolutions. `DS_RVQVAE_CPU_BF16=native|none` overrides both.

    Raises:
        UserError: that variable has another value.
    """
    forced = os.environ.get(CPU_BF16_VARIABLE)
    if forced:
        if forced not in ("native", "none"):
            raise UserError(f"{CPU_BF16_VARIABLE}={printable(forced)}: give native or none, or unset it")
        return forced == "native"
    if _onednn_limit()[1].lower() in _ISAS_WITHOUT_BF16:
        return False
    features = _processor()
    return bool(_BF16_FEATURES & set((features.get("flags") or features.get("Features") or "").split()))


def bf16_arithmetic_text() -> str:
    """Returns one line that says which bf16 arithmetic this processor has, and how that is known."""
    if os.environ.get(CPU_BF16_VARIABLE):
        reason = f"forced by {CPU_BF16_VARIABLE}"
    elif _onednn_limit()[1].lower() in _ISAS_WITHOUT_BF16:
        reason = "{}={}".format(*_onednn_limit())
    else:
        reason = "by /proc/cpuinfo"
    if has_bf16_arithmetic():
        return f"bf16 arithmetic of this CPU: native ({reason})"
    return f"bf16 arithmetic of this CPU: none ({reason}); convolutions of bf16 tensors compute in fp32"


def _onednn_limit() -> tuple[str, str]:
    """Returns the environment variable that limits oneDNN's instructions, and its value; both are empty if none is
    set."""
    names = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
    return next(((name, value) for name in names if (value := os.environ.get(name))), ("", ""))


@functools.cache
def _processor() -> dict[str, str]:
    """Returns the entries of the first processor in /proc/cpuinfo; empty if there is no such file."""
    with suppress(OSError):
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
        return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    return {}


def allow_files(count: int) -> None:
    """Raises the limit of open files by `count`, as far as the system allows; memory-mapped files count too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    there = 0
    with suppress(OSError):
        there = len(list(Path("/proc/self/fd").iterdir()))
    wanted = there + count + _OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if resource.RLIM_INFINITY != soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
