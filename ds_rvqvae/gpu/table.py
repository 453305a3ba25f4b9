"""The monitor's table, as wide as the terminal: cards, totals, GPU 0, processes."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Group
from rich.text import Text

from ds_rvqvae.gpu.nvml import Gpu, GpuProcess, GpuSlice
from ds_rvqvae.gpu.snapshot import Snapshot, memory_text
from ds_rvqvae.text import in_gb, in_gib

HISTORY_SECONDS = 300
_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDEST_TREND = 60
_MEMORY, _TREND = "memory GiB", f"util {HISTORY_SECONDS // 60} min"
_PCIE, _PCIE_NARROW = "PCIe rx/tx GB/s", "rx/tx GB/s"
_READINGS = ("util", "temp", "fan", "power W", _PCIE, _PCIE_NARROW)
_RIGHT = (_MEMORY, *_READINGS, _TREND, "PID", "GiB")
_NO_TREND = -1
_BRANDS = ("NVIDIA ", "GeForce ", "Tesla ")
_BUSY, _FULL = 75, 90
"""Percent of memory from which a bar is yellow, and red."""
_HOT, _HOTTEST = 75, 85
"""Degrees Celsius from which a temperature is yellow, and red."""


class History:
    """Each card's utilisation over the last minutes."""

    def __init__(self, seconds: float = HISTORY_SECONDS) -> None:
        self.seconds = seconds
        self._samples: dict[int | None, deque[tuple[float, float]]] = {}

    def add(self, gpus: Iterable[Gpu], now: float) -> None:
        """Adds one sample a card and their mean; `now` in seconds, of a clock that never goes back."""
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
        """`width` characters up to `now`, each the mean of its span of time; None for the mean of all cards.

        A span without a sample repeats the one before it, so that slow refreshes leave no gaps.
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


def bar(share: float, width: int) -> str:
    """`share` from 0 to 1 as a bar of `width` characters, in eighths."""
    eighths = round(min(1.0, max(0.0, share)) * width * 8)
    full, part = divmod(eighths, 8)
    return ("█" * full + ("▏▎▍▌▋▊▉"[part - 1] if part else "")).ljust(width, "░")


@dataclass
class _Row:
    """Cells by title, and whose sparkline goes with them: a card's, or None for the mean."""

    cells: dict[str, Text]
    trend: int | None = _NO_TREND
    style: str = ""


class Screen:
    """What is shown of one snapshot.

    Args:
        width, height: of the terminal, in characters; processes that do not fit into the height are counted only.
        heading: more words for the first line.
    """

    def __init__(
        self, snapshot: Snapshot, history: History, now: float, width: int, height: int | None, heading: str = ""
    ) -> None:
        self.snapshot, self.history, self.now, self.width, self.height = snapshot, history, now, width, height
        self.heading = heading
        self.wide, self.gap = width >= 120, 2 if width >= 100 else 1
        self.cards = snapshot.cards
        self.read = [gpu for gpu in self.cards if gpu.error is None]

    def render(self, notes: Sequence[str] = ()) -> Group:
        """All of it; `notes` are lines of trouble that the monitor itself has."""
        head = [self._title(), *self._first_gpu()]
        tail = [*self._visible_devices(), *self._errors(), *(Text(note, style="red") for note in notes)]
        for line in (*head, *tail):
            line.no_wrap, line.overflow = True, "ellipsis"
        rows = 2 + len(self.cards) + sum(len(gpu.slices) for gpu in self.cards)
        room = None if self.height is None else self.height - len(head) - len(tail) - rows
        return Group(*head, *self._card_table(), *tail, *self._process_table(room))

    def _title(self) -> Text:
        snapshot = self.snapshot
        cuda = f" (CUDA {snapshot.cuda_version})" if snapshot.cuda_version else ""
        text = f"{snapshot.time:%Y-%m-%d %H:%M:%S}  driver {snapshot.driver_version}{cuda}"
        return Text(f"{text}  {self.heading}".rstrip(), style="bold")

    def _first_gpu(self) -> list[Text]:
        """Whether GPU 0 is idle, which runs leave alone."""
        first = next((gpu for gpu in self.snapshot.gpus if gpu.index == 0), None)
        if first is None:
            return []
        return [Text(f"GPU 0: {self.snapshot.state(first)}", style="bold green" if first.idle else "bold red")]

    def _visible_devices(self) -> list[Text]:
        variable = self.snapshot.environment.get("CUDA_VISIBLE_DEVICES")
        if variable is None:
            return []
        named = [(self.snapshot.cuda_device(gpu), gpu.index) for gpu in self.snapshot.gpus]
        order = sorted((number, index) for number, index in named if number is not None)
        text = ", ".join(f"cuda:{number} is GPU {index}" for number, index in order) or "no card that can be told"
        return [Text(f"CUDA_VISIBLE_DEVICES={variable} here: {text}", style="dim")]

    def _errors(self) -> list[Text]:
        lines = [Text(f"GPU {gpu.index}: ERR, {gpu.error}", style="red") for gpu in self.cards if gpu.error]
        hidden = ", ".join(str(gpu.index) for gpu in self.read if not gpu.processes_readable)
        if hidden:
            lines.append(Text(f"processes N/A on GPU {hidden}: not permitted, or not told by this driver", style="dim"))
        slowed = "; ".join(f"GPU {gpu.index}: {', '.join(gpu.slowdowns)}" for gpu in self.read if gpu.slowdowns)
        return [*lines, Text(f"slowed down: {slowed}", style="yellow")] if slowed else lines

    def _card_table(self) -> list[Text]:
        rows = [row for gpu in self.cards for row in (self._card_row(gpu), *(_slice_row(gpu, s) for s in gpu.slices))]
        rows.append(self._total_row())
        titles, spark_width = self._fitting(rows)
        for row in rows:
            if row.trend != _NO_TREND:
                row.cells[_TREND] = Text(self.history.sparkline(row.trend, self.now, spark_width), style="cyan")
        return _aligned(titles, rows, self.gap)

    def _fitting(self, rows: "list[_Row]") -> tuple[list[str], int]:
        """The columns that fit into the width, in their order, and the width that is left for the sparkline."""
        pcie = _PCIE if self.wide else _PCIE_NARROW
        order = ["GPU", "name", "", _MEMORY, "util", "temp", "fan", "power W", pcie, _TREND]
        widths = {title: max([len(title), *(len(row.cells.get(title, "")) for row in rows)]) for title in order}
        chosen, left = set(), self.width + self.gap
        # What matters most first; the others follow where there is room.
        for title in ("GPU", _MEMORY, "util", "temp", "power W", "", "name", pcie, _TREND, "fan"):
            if widths[title] + self.gap <= left:
                chosen.add(title)
                left -= widths[title] + self.gap
        return [title for title in order if title in chosen], min(_WIDEST_TREND, widths[_TREND] + left)

    def _card_row(self, gpu: Gpu) -> "_Row":
        cells = {"GPU": Text(str(gpu.index)), "name": Text(_short(gpu.name))}
        if gpu.error:
            return _Row({**cells, **{title: Text("ERR", style="bold red") for title in (_MEMORY, *_READINGS)}})
        return _Row({**cells, **self._readings(gpu), "fan": _number(gpu.fan, "%")}, gpu.index)

    def _total_row(self) -> "_Row":
        cells = {"GPU": Text("total"), "name": Text(f"{len(self.cards)} cards")}
        return _Row({**cells, **self._readings(_Total(self.read))}, None, "bold")

    def _readings(self, device: "Gpu | _Total") -> dict[str, Text]:
        pcie = _pcie(device)
        return {
            "": _memory_bar(device, 20 if self.wide else 8),
            _MEMORY: Text(memory_text(device)),
            "util": _number(device.utilisation, "%"),
            "temp": _temperature(device),
            "power W": _power(device),
            _PCIE: pcie,
            _PCIE_NARROW: pcie,
        }

    def _process_table(self, room: int | None) -> list[Text]:
        """At most `room` lines."""
        found = [(gpu, process) for gpu in self.cards for process in gpu.processes]
        # A desktop's processes last: they are many and rarely what one looks for.
        found.sort(key=lambda pair: (pair[1].graphics, pair[0].index))
        if not found:
            return []
        fit = len(found) if room is None or len(found) < room else max(0, room - 2)
        more = [Text(f"… {len(found) - fit} more processes", style="dim")] if fit < len(found) else []
        if not fit:
            return more
        rows = [self._process_row(gpu, process) for gpu, process in found[:fit]]
        lines = [*_aligned(("GPU", "PID", "GiB", "user", "rank, run", "command"), rows, self.gap), *more]
        return lines if room is not None and len(lines) >= room else [Text(), *lines]

    def _process_row(self, gpu: Gpu, process: GpuProcess) -> _Row:
        owner = self.snapshot.owner(process)
        device = self.snapshot.cuda_device(gpu, process)
        where = f"{gpu.index}" if process.slice is None else f"{gpu.index}.{process.slice}"
        held = in_gib(process.memory_bytes)
        rank = str(owner.rank or "") + ("" if device is None else f" (cuda:{device})")
        command = (owner.command or "N/A") + (" (graphics)" if process.graphics else "")
        texts = {"GPU": where, "PID": str(process.pid), "GiB": held, "user": owner.user or "N/A", "command": command}
        cells = {title: Text(text) for title, text in texts.items()}
        cells["rank, run"] = Text(rank, style="magenta")
        return _Row(cells, style="dim" if process.graphics else "")


def _aligned(titles: Sequence[str], rows: Sequence[_Row], gap: int) -> list[Text]:
    """A line of titles and one a row. Rich's own tables take five times as long, every refresh."""
    widths = [
        max([cell_len(title), *(row.cells[title].cell_len for row in rows if title in row.cells)]) for title in titles
    ]
    lines = []
    for row in (_Row({title: Text(title) for title in titles}, style="bold"), *rows):
        line = Text(style=row.style, no_wrap=True, overflow="ellipsis")
        for title, width in zip(titles, widths, strict=True):
            cell = row.cells.get(title, Text())
            room = " " * (width - cell.cell_len)
            if title in _RIGHT:
                line.append(room)
            line.append_text(cell)
            line.append(" " * gap if title in _RIGHT else room + " " * gap)
        line.rstrip()
        lines.append(line)
    return lines


class _Total:
    """Sums over cards, and the mean utilisation and highest temperature; None where no card says."""

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        self.memory_used_bytes = _sum(gpu.memory_used_bytes for gpu in gpus)
        self.memory_total_bytes = _sum(gpu.memory_total_bytes for gpu in gpus)
        rates = [gpu.utilisation for gpu in gpus if gpu.utilisation is not None]
        self.utilisation = round(sum(rates) / len(rates)) if rates else None
        self.temperature = max((gpu.temperature for gpu in gpus if gpu.temperature is not None), default=None)
        self.power_watts = _sum(gpu.power_watts for gpu in gpus)
        self.power_limit_watts = None  # a machine's supply is not the sum of its cards' limits
        self.pcie_received_bytes_per_s = _sum(gpu.pcie_received_bytes_per_s for gpu in gpus)
        self.pcie_sent_bytes_per_s = _sum(gpu.pcie_sent_bytes_per_s for gpu in gpus)


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _short(name: str) -> str:
    for brand in _BRANDS:
        name = name.removeprefix(brand)
    return name


def _number(value: float | None, unit: str = "") -> Text:
    return Text("N/A", style="dim") if value is None else Text(f"{value:.0f}{unit}")


def _memory_bar(device: Gpu | _Total, width: int) -> Text:
    used, total = device.memory_used_bytes, device.memory_total_bytes
    if used is None or not total:
        return Text("")
    percent = 100 * used / total
    return Text(
        bar(used / total, width), style="red" if percent >= _FULL else "yellow" if percent >= _BUSY else "green"
    )


def _temperature(device: Gpu | _Total) -> Text:
    text = _number(device.temperature, "°C")
    degrees = device.temperature or 0
    if degrees >= _HOT:
        text.stylize("red" if degrees >= _HOTTEST else "yellow")
    return text


def _power(device: Gpu | _Total) -> Text:
    used, limit = _number(device.power_watts), _number(device.power_limit_watts)
    return used if device.power_limit_watts is None else used + " / " + limit


def _pcie(device: Gpu | _Total) -> Text:
    received, sent = device.pcie_received_bytes_per_s, device.pcie_sent_bytes_per_s
    return _number(None) if received is None and sent is None else Text(f"{in_gb(received)} / {in_gb(sent)}")


def _slice_row(gpu: Gpu, part: GpuSlice) -> _Row:
    name = _short(part.name).removeprefix(_short(gpu.name)).strip().removeprefix("MIG ")
    cells = {"GPU": f"{gpu.index}.{part.index}", "name": name, _MEMORY: memory_text(part)}
    return _Row({title: Text(text) for title, text in cells.items()}, style="dim")
