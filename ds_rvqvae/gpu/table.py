"""The monitor's table, as wide as the terminal: GPUs, totals, GPU 0, processes."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ds_rvqvae.gpu.nvml import Gpu, GpuProcess, GpuSlice
from ds_rvqvae.gpu.snapshot import Snapshot, memory_text
from ds_rvqvae.process.tables import Cell, Column, Table
from ds_rvqvae.process.terminal import Block, Line, Piece, Terminal, bar
from ds_rvqvae.text import in_gb, in_gib

HISTORY_SECONDS = 300
_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDEST_TREND = 60
_MEMORY, _TREND = "memory GiB", f"util {HISTORY_SECONDS // 60} min"
_PCIE, _PCIE_NARROW = "PCIe rx/tx GB/s", "rx/tx GB/s"
_READINGS = ("util", "temp", "fan", "power W", _PCIE, _PCIE_NARROW)
_NO_TREND = -1
_BRANDS = ("NVIDIA ", "GeForce ", "Tesla ")
_BUSY, _FULL = 75, 90
"""Percent of memory from which a bar is yellow or red."""
_HOT, _HOTTEST = 75, 85
"""Degrees Celsius from which a temperature is yellow or red."""


class History:
    """The utilisation of each GPU over the last minutes."""

    def __init__(self, seconds: float = HISTORY_SECONDS) -> None:
        self.seconds = seconds
        self._samples: dict[int | None, deque[tuple[float, float]]] = {}

    def add(self, gpus: Iterable[Gpu], now: float) -> None:
        """Adds one sample per GPU and their mean; `now` in seconds of a monotonic clock."""
        known = {gpu.index: float(gpu.utilisation) for gpu in gpus if gpu.utilisation is not None}
        samples: dict[int | None, float] = dict(known.items())
        if known:
            samples[None] = sum(known.values()) / len(known)
        for index, value in samples.items():
            self._samples.setdefault(index, deque()).append((now, value))
        for queue in self._samples.values():
            while queue and queue[0][0] <= now - self.seconds:
                queue.popleft()

    def sparkline(self, index: int | None, now: float, width: int) -> str:
        """`width` characters up to `now`, each the mean of its time span; `index` None means the mean of all GPUs.

        A span without a sample repeats the previous one, so that slow refreshes leave no gaps.
        """
        span = self.seconds / width
        sums: dict[int, list[float]] = {}
        for time, value in self._samples.get(index, ()):
            sums.setdefault(width - 1 - int((now - time) / span), []).append(value)
        shown, level = [], " "
        for place in range(width):
            if place in sums:
                level = _BLOCKS[min(7, int(sum(sums[place]) / len(sums[place]) / 12.5))]
            shown.append(level)
        return "".join(shown)


@dataclass
class _Row:
    """Cells by title, and the index of the GPU for the sparkline, or None for the mean."""

    cells: dict[str, Cell]
    trend: int | None = _NO_TREND
    style: str = ""


class Screen:
    """The view of one snapshot.

    Args:
        height: of the terminal, in lines; processes that do not fit are only counted.
        heading: additional words for the first line.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        history: History,
        now: float,
        terminal: Terminal,
        height: int | None,
        heading: str = "",
    ) -> None:
        self.snapshot, self.history, self.now, self.terminal, self.height = snapshot, history, now, terminal, height
        self.heading = heading
        self.wide = terminal.width is None or terminal.width >= 120
        self.cards = snapshot.cards
        self.read = [gpu for gpu in self.cards if gpu.error is None]

    def text(self, notes: Sequence[str] = ()) -> str:
        """The complete text; `notes` are lines about problems of the monitor itself."""
        head = self.terminal.text([self._title(), *self._first_gpu(), self._card_table()])
        tail = [*self._visible_devices(), *self._errors(), *((note, "bad") for note in notes)]
        text = "\n".join([head, self.terminal.text(tail)] if tail else [head])
        room = None if self.height is None else self.height - text.count("\n") - 1
        processes = self._process_table(room)
        return "\n".join([text, self.terminal.text(processes)] if processes else [text])

    def _title(self) -> Line:
        snapshot = self.snapshot
        cuda = f" (CUDA {snapshot.cuda_version})" if snapshot.cuda_version else ""
        text = f"{snapshot.time:%Y-%m-%d %H:%M:%S}"
        for more in (f"  driver {snapshot.driver_version}", cuda, f"  {self.heading}" if self.heading else ""):
            if self.terminal.width is not None and len(text + more) > self.terminal.width:
                break
            text += more
        return (text, "title")

    def _first_gpu(self) -> list[Line]:
        """The line that says whether GPU 0 is idle; runs leave GPU 0 free."""
        first = next((gpu for gpu in self.snapshot.gpus if gpu.index == 0), None)
        if first is None:
            return []
        return [(f"GPU 0: {self.snapshot.state(first)}", "best" if first.idle else "error")]

    def _visible_devices(self) -> list[Line]:
        variable = self.snapshot.environment.get("CUDA_VISIBLE_DEVICES")
        if variable is None:
            return []
        named = [(self.snapshot.cuda_device(gpu), gpu.index) for gpu in self.snapshot.gpus]
        order = sorted((number, index) for number, index in named if number is not None)
        text = ", ".join(f"cuda:{number} is GPU {index}" for number, index in order) or "no known GPU"
        return [(f"CUDA_VISIBLE_DEVICES={variable} here: {text}", "faint")]

    def _errors(self) -> list[Line]:
        lines: list[Line] = [(f"GPU {gpu.index}: ERR, {gpu.error}", "bad") for gpu in self.cards if gpu.error]
        hidden = ", ".join(str(gpu.index) for gpu in self.read if not gpu.processes_readable)
        if hidden:
            lines.append((f"processes N/A on GPU {hidden}: not permitted, or not reported by this driver", "faint"))
        slowed = "; ".join(f"GPU {gpu.index}: {', '.join(gpu.slowdowns)}" for gpu in self.read if gpu.slowdowns)
        return [*lines, (f"slowed down: {slowed}", "warning")] if slowed else lines

    def _card_table(self) -> Table:
        rows = [row for gpu in self.cards for row in (self._card_row(gpu), *(_slice_row(gpu, s) for s in gpu.slices))]
        rows.append(self._total_row())
        columns = [
            Column("GPU", left=True),
            Column("name", left=True, shrinks=True, dropped=6),
            Column("", left=True, dropped=5),
            Column(_MEMORY, dropped=1),
            Column("util", dropped=2),
            Column("temp", dropped=3),
            Column("fan", dropped=9),
            Column("power W", dropped=4),
            Column(_PCIE if self.wide else _PCIE_NARROW, dropped=7),
            Column(_TREND, grows=_WIDEST_TREND, dropped=8),
        ]
        return _table(columns, [row if row.trend == _NO_TREND else self._with_trend(row) for row in rows])

    def _with_trend(self, row: _Row) -> _Row:
        def trend(width: int) -> Line:
            return (self.history.sparkline(row.trend, self.now, width), "bar")

        return _Row({**row.cells, _TREND: trend}, row.trend, row.style)

    def _card_row(self, gpu: Gpu) -> _Row:
        cells: dict[str, Cell] = {"GPU": str(gpu.index), "name": _short(gpu.name)}
        if gpu.error:
            return _Row({**cells, **dict.fromkeys((_MEMORY, *_READINGS), ("ERR", "error"))})
        return _Row({**cells, **self._readings(gpu), "fan": _number(gpu.fan, "%")}, gpu.index)

    def _total_row(self) -> _Row:
        cells: dict[str, Cell] = {"GPU": "total", "name": f"{len(self.cards)} GPUs"}
        return _Row({**cells, **self._readings(_Total(self.read))}, None, "title")

    def _readings(self, device: "Gpu | _Total") -> dict[str, Cell]:
        pcie = _pcie(device)
        return {
            "": _memory_bar(device, 20 if self.wide else 8),
            _MEMORY: memory_text(device),
            "util": _number(device.utilisation, "%"),
            "temp": _temperature(device),
            "power W": _power(device),
            _PCIE: pcie,
            _PCIE_NARROW: pcie,
        }

    def _process_table(self, room: int | None) -> list[Block]:
        """The table of processes, in at most `room` lines."""
        found = [(gpu, process) for gpu in self.cards for process in gpu.processes]
        # Processes of a desktop come last: they are many and rarely of interest.
        found.sort(key=lambda pair: (pair[1].graphics, pair[0].index))
        if not found:
            return []
        fit = len(found) if room is None or len(found) < room else max(0, room - 2)
        more: list[Block] = [(f"… {len(found) - fit} more processes", "faint")] if fit < len(found) else []
        if not fit:
            return more
        columns = [
            Column("GPU", left=True),
            Column("PID"),
            Column("GiB", dropped=1),
            Column("user", left=True, shrinks=True, dropped=3),
            Column("rank, run", left=True, shrinks=True, dropped=4),
            Column("command", left=True, shrinks=True, dropped=2),
        ]
        table = _table(columns, [self._process_row(gpu, process) for gpu, process in found[:fit]])
        return [*([""] if room is None or fit + 1 + len(more) < room else []), table, *more]

    def _process_row(self, gpu: Gpu, process: GpuProcess) -> _Row:
        owner = self.snapshot.owner(process)
        device = self.snapshot.cuda_device(gpu, process)
        where = f"{gpu.index}" if process.slice is None else f"{gpu.index}.{process.slice}"
        held = in_gib(process.memory_bytes)
        rank = str(owner.rank or "") + ("" if device is None else f" (cuda:{device})")
        command = (owner.command or "N/A") + (" (graphics)" if process.graphics else "")
        cells: dict[str, Cell] = {"GPU": where, "PID": str(process.pid), "GiB": held, "user": owner.user or "N/A"}
        cells |= {"rank, run": (rank, "magenta"), "command": command}
        return _Row(cells, style="faint" if process.graphics else "")


def _table(columns: Sequence[Column], rows: Sequence[_Row]) -> Table:
    cells = [[row.cells.get(column.title, "") for column in columns] for row in rows]
    return Table(columns, cells, {number: row.style for number, row in enumerate(rows)})


class _Total:
    """Sums over GPUs, mean utilisation and highest temperature; None if no GPU gives the reading."""

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        self.memory_used_bytes = _sum(gpu.memory_used_bytes for gpu in gpus)
        self.memory_total_bytes = _sum(gpu.memory_total_bytes for gpu in gpus)
        rates = [gpu.utilisation for gpu in gpus if gpu.utilisation is not None]
        self.utilisation = round(sum(rates) / len(rates)) if rates else None
        self.temperature = max((gpu.temperature for gpu in gpus if gpu.temperature is not None), default=None)
        self.power_watts = _sum(gpu.power_watts for gpu in gpus)
        self.power_limit_watts = None  # a machine's supply is not the sum of its GPUs' limits
        self.pcie_received_bytes_per_s = _sum(gpu.pcie_received_bytes_per_s for gpu in gpus)
        self.pcie_sent_bytes_per_s = _sum(gpu.pcie_sent_bytes_per_s for gpu in gpus)


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _short(name: str) -> str:
    for brand in _BRANDS:
        name = name.removeprefix(brand)
    return name


def _number(value: float | None, unit: str = "") -> Piece:
    return ("N/A", "faint") if value is None else f"{value:.0f}{unit}"


def _memory_bar(device: Gpu | _Total, width: int) -> Line:
    used, total = device.memory_used_bytes, device.memory_total_bytes
    if used is None or not total:
        return ""
    percent = 100 * used / total
    return (bar(used / total, width), "bad" if percent >= _FULL else "warning" if percent >= _BUSY else "good")


def _temperature(device: Gpu | _Total) -> Line:
    degrees = device.temperature
    if degrees is None or degrees < _HOT:
        return _number(degrees, "°C")
    return (f"{degrees:.0f}°C", "bad" if degrees >= _HOTTEST else "warning")


def _power(device: Gpu | _Total) -> Line:
    used = _number(device.power_watts)
    return used if device.power_limit_watts is None else [used, " / ", _number(device.power_limit_watts)]


def _pcie(device: Gpu | _Total) -> Line:
    received, sent = device.pcie_received_bytes_per_s, device.pcie_sent_bytes_per_s
    return _number(None) if received is None and sent is None else f"{in_gb(received)} / {in_gb(sent)}"


def _slice_row(gpu: Gpu, part: GpuSlice) -> _Row:
    name = _short(part.name).removeprefix(_short(gpu.name)).strip().removeprefix("MIG ")
    return _Row({"GPU": f"{gpu.index}.{part.index}", "name": name, _MEMORY: memory_text(part)}, style="faint")
