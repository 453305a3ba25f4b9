"""All GPUs at one moment, and their forms in output: a plain line, a JSON object, a CSV row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ds_rvqvae.gpu.nvml import Gpu, GpuProcess
from ds_rvqvae.gpu.processes import Owner
from ds_rvqvae.text import GIB, MIB, gibibytes, in_gb, in_gib

CSV_COLUMNS = (
    "time", "gpu", "name", "uuid", "pci_bus_id", "cuda_device", "idle", "memory_used_MiB", "memory_total_MiB",
    "utilisation_percent", "temperature_celsius", "fan_percent", "power_watts", "power_limit_watts",
    "pcie_received_MB_per_s", "pcie_sent_MB_per_s", "energy_joules", "processes", "ranks", "runs", "error",
)  # fmt: skip


@dataclass(frozen=True)
class Snapshot:
    """The GPUs at one moment."""

    time: datetime
    driver_version: str
    cuda_version: str
    gpus: Sequence[Gpu]
    """All GPUs of the machine."""
    shown: Sequence[int]
    """Indices of the requested GPUs."""
    owners: Mapping[int, Owner]
    """By process id."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """The monitor's own environment; its CUDA_VISIBLE_DEVICES determines CUDA's numbers of the GPUs."""

    @property
    def cards(self) -> list[Gpu]:
        """The requested GPUs."""
        return [gpu for gpu in self.gpus if gpu.index in self.shown]

    def owner(self, process: GpuProcess) -> Owner:
        return self.owners.get(process.pid, Owner())

    def cuda_device(self, gpu: Gpu, process: GpuProcess | None = None) -> int | None:
        """CUDA's number of a GPU, here or in one of our ranks; None if it has none or it is unknown."""
        environment = self.environment
        if process is not None:
            rank = self.owner(process).rank
            if rank is None or not rank.environment:
                return None
            environment = rank.environment
        order = cuda_order(self.gpus, environment) or []
        return order.index(gpu.index) if gpu.index in order else None

    def users(self, gpu: Gpu) -> str:
        """The users of a GPU, in words."""
        memory = gpu.memory_used_bytes
        held = ["memory use unknown" if memory is None else f"{gibibytes(memory, '.1f')} in use"]
        computing = [process for process in gpu.processes if not process.graphics]
        return "; ".join(held + [self._user(process) for process in computing or gpu.processes])

    def _user(self, process: GpuProcess) -> str:
        owner = self.owner(process)
        what = [str(owner.rank)] if owner.rank else []
        what += [text for text in (owner.command, owner.user) if text]
        return f"process {process.pid}" + (f" ({', '.join(what)})" if what else "")

    def state(self, gpu: Gpu) -> str:
        """`idle`, or `NOT idle` and the users, or `ERR` and the reason."""
        if gpu.error:
            return f"ERR ({gpu.error})"
        return "idle" if gpu.idle else f"NOT idle ({self.users(gpu)})"


def plain_line(snapshot: Snapshot, gpu: Gpu) -> str:
    """One GPU on one line, for files and pipes."""
    start = f"{snapshot.time.isoformat(timespec='seconds')} GPU {gpu.index} {gpu.name}".rstrip()
    if gpu.error:
        return f"{start}: {snapshot.state(gpu)}"
    readings = [
        f"{in_gib(gpu.memory_used_bytes)} / {in_gib(gpu.memory_total_bytes)} GiB",
        f"{_whole(gpu.utilisation)} %",
        f"{_whole(gpu.temperature)} °C",
        f"{_whole(gpu.power_watts)} / {_whole(gpu.power_limit_watts)} W",
        f"PCIe rx {in_gb(gpu.pcie_received_bytes_per_s)} tx {in_gb(gpu.pcie_sent_bytes_per_s)} GB/s",
    ]
    readings += [f"slice {part.index} {memory_text(part)} GiB" for part in gpu.slices]
    readings += [] if gpu.processes_readable else ["processes N/A"]
    return f"{start}: {', '.join(readings)}; {snapshot.state(gpu)}"


def json_record(snapshot: Snapshot) -> dict[str, Any]:
    """One refresh as JSON, for programs. Units are in the keys; unknown values are null."""
    first = next((gpu for gpu in snapshot.gpus if gpu.index == 0), None)
    return {
        "time": snapshot.time.isoformat(timespec="milliseconds"),
        "driver_version": snapshot.driver_version,
        "cuda_version": snapshot.cuda_version,
        "gpu_0_idle": first.idle if first else None,
        "gpus": [_json_card(snapshot, gpu) for gpu in snapshot.cards],
    }


def _json_card(snapshot: Snapshot, gpu: Gpu) -> dict[str, Any]:
    return {
        "index": gpu.index,
        "name": gpu.name,
        "uuid": gpu.uuid,
        "pci_bus_id": gpu.pci_bus_id,
        "cuda_device": snapshot.cuda_device(gpu),
        "error": gpu.error,
        "idle": gpu.idle,
        "memory_used_bytes": gpu.memory_used_bytes,
        "memory_reserved_bytes": gpu.memory_reserved_bytes,
        "memory_total_bytes": gpu.memory_total_bytes,
        "utilisation_percent": gpu.utilisation,
        "temperature_celsius": gpu.temperature,
        "fan_percent": gpu.fan,
        "power_watts": gpu.power_watts,
        "power_limit_watts": gpu.power_limit_watts,
        "energy_joules": gpu.energy_joules,
        "pcie_received_bytes_per_s": gpu.pcie_received_bytes_per_s,
        "pcie_sent_bytes_per_s": gpu.pcie_sent_bytes_per_s,
        "slowdowns": list(gpu.slowdowns),
        "slices": [vars(part) for part in gpu.slices],
        "processes": [_json_process(snapshot, gpu, process) for process in gpu.processes]
        if gpu.processes_readable
        else None,
    }


def _json_process(snapshot: Snapshot, gpu: Gpu, process: GpuProcess) -> dict[str, Any]:
    owner = snapshot.owner(process)
    rank = owner.rank
    return {
        "pid": process.pid,
        "user": owner.user,
        "command": owner.command,
        "memory_bytes": process.memory_bytes,
        "graphics": process.graphics,
        "slice": process.slice,
        "rank": rank.rank if rank else None,
        "local_rank": rank.local_rank if rank else None,
        "world_size": rank.world_size if rank else None,
        "run": rank.run if rank else None,
        "cuda_device": snapshot.cuda_device(gpu, process),
    }


def csv_rows(snapshot: Snapshot) -> list[list[Any]]:
    """One row per GPU, with `CSV_COLUMNS`; unknown values are empty."""
    rows = []
    for gpu in snapshot.cards:
        ranks = [owner.rank for owner in map(snapshot.owner, gpu.processes) if owner.rank]
        rows.append(
            [
                *(snapshot.time.isoformat(timespec="milliseconds"), gpu.index, gpu.name, gpu.uuid, gpu.pci_bus_id),
                *(snapshot.cuda_device(gpu), int(gpu.idle)),
                *(_scaled(gpu.memory_used_bytes, MIB), _scaled(gpu.memory_total_bytes, MIB)),
                *(gpu.utilisation, gpu.temperature, gpu.fan, gpu.power_watts, gpu.power_limit_watts),
                *(_scaled(gpu.pcie_received_bytes_per_s, 1e6), _scaled(gpu.pcie_sent_bytes_per_s, 1e6)),
                gpu.energy_joules,
                len(gpu.processes) if gpu.processes_readable else None,
                " ".join(str(rank.rank) for rank in ranks if rank.rank is not None),
                " ".join(sorted({rank.run for rank in ranks if rank.run})),
                gpu.error,
            ]
        )
    return rows


def scalars(snapshot: Snapshot) -> dict[str, float]:
    """TensorBoard's scalars by tag; missing readings of a GPU are left out."""
    values: dict[str, float | None] = {}
    for gpu in snapshot.cards:
        used = gpu.memory_used_bytes
        values[f"GPU_memory_used_GiB/gpu_{gpu.index}"] = None if used is None else used / GIB
        values[f"GPU_utilisation_percent/gpu_{gpu.index}"] = gpu.utilisation
        values[f"GPU_power_watts/gpu_{gpu.index}"] = gpu.power_watts
        values[f"GPU_temperature_celsius/gpu_{gpu.index}"] = gpu.temperature
    return {tag: float(value) for tag, value in values.items() if value is not None}


def memory_text(device: Any) -> str:
    """Used and total GiB of a GPU or slice, `18.2 / 24.0`."""
    return f"{in_gib(device.memory_used_bytes)} / {in_gib(device.memory_total_bytes)}"


def _whole(value: float | None) -> str:
    return "N/A" if value is None else f"{value:.0f}"


def _scaled(count: float | None, unit: float) -> float | None:
    return None if count is None else round(count / unit, 1)


def cuda_order(gpus: Sequence[Gpu], environment: Mapping[str, str]) -> list[int] | None:
    """The driver's indices of `cuda:0`, `cuda:1`, … in a process with that environment; None if they are unknown.

    It reads CUDA_VISIBLE_DEVICES as CUDA does: numbers, UUIDs or the beginning of a UUID, up to the first entry that
    names no GPU; the list is empty if an entry appears twice. Without CUDA_DEVICE_ORDER=PCI_BUS_ID, number 0 is the
    fastest GPU, so numbers are known only if all GPUs are of the same model.
    """
    alike = len({gpu.name for gpu in gpus if gpu.name}) <= 1  # a lost GPU may have no name
    in_order = alike or environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [gpu.index for gpu in gpus] if in_order else None
    order: list[int] = []
    for entry in (text.strip() for text in visible.split(",")):
        number = entry.isdecimal()
        if number and not in_order:
            return None
        named = [gpu.index for gpu in gpus if (gpu.index == int(entry) if number else has_uuid(gpu, entry))]
        if len(named) != 1:
            break
        # Two slices of one GPU are two devices; CUDA uses only one of them in a process.
        if named[0] in order and not entry.startswith("MIG-"):
            return []
        order += named
    return order


def has_uuid(gpu: Gpu, text: str) -> bool:
    """Whether `text` is the UUID of a GPU or of one of its slices, or the beginning of such a UUID."""
    if text.startswith("MIG-GPU-"):  # drivers before 470 write MIG-GPU-UUID/INSTANCE/INSTANCE
        return bool(gpu.uuid) and text[4:].partition("/")[0] == gpu.uuid
    uuids = [gpu.uuid, *(part.uuid for part in gpu.slices)]
    return text.startswith(("GPU-", "MIG-")) and any(uuid.startswith(text) for uuid in uuids)
