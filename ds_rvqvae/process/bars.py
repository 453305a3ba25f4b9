"""Progress bars that keep their figures on narrow terminals."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from tqdm import tqdm
from tqdm.utils import disp_len

from ds_rvqvae.process.terminal import shortened

_SHORTEST_BAR = 5
"""Cells; below that the figures say more."""
_SHORT_NAME = 14
_USUAL_WIDTH = 79


class Bar(tqdm):  # type: ignore[type-arg]  # it is generic for type checkers only
    """As tqdm's, whose end is cut off where the line is too short. Here the bar gives way first, then the time that
    has passed, further notes and the name; steps, rate, the first note and the time that is left stay longest."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._taken: dict[tuple[int, int], int] = {}
        """The number of the longest form that had room, by width and notes: numbers that grow and shrink by a cell
        do not make the line jump."""
        super().__init__(*args, **options)

    @property
    def format_dict(self) -> dict[str, Any]:
        """What `format_meter` is given."""
        return {**super().format_dict, "taken": self._taken}

    @staticmethod
    def format_meter(  # type: ignore[override]
        n: float, total: float | None, elapsed: float, ncols: int | None = None, **options: Any
    ) -> str:
        """The line, in at most `ncols` cells."""
        options.pop("bar_format", None)
        if ncols is not None and ncols < 1:
            ncols = _USUAL_WIDTH  # a terminal that does not know its size
        taken: dict[tuple[int, int], int] = options.pop("taken", {})
        if not ncols or not total:
            return tqdm.format_meter(n, total or 0, elapsed, ncols=ncols, **options)
        notes = [*filter(None, (options.pop("postfix", None) or "").split(", "))]
        unit, prefix = options.pop("unit", "it"), options.pop("prefix", "") or ""
        rate = options.get("rate") or ((n - options.get("initial", 0)) / elapsed if elapsed else 0)
        key = ncols, len(notes)
        for number, (form, shown, name) in enumerate(_forms(notes, prefix, (total - n) / rate if rate > 0 else None)):
            short = "{desc}" not in form
            meter = partial(tqdm.format_meter, n, total, elapsed, prefix=name, unit="" if short else unit, **options)
            text: str = meter(postfix=", ".join(shown), bar_format=form.replace("{bar}", ""))
            taken[key] = max(number, taken.get(key, 0))
            if short:
                return " ".join(text.replace("s/ ", f"s/{unit} ").split())[:ncols]
            if number == taken[key] and disp_len(text) + (_SHORTEST_BAR if "{bar}" in form else 0) <= ncols:
                break
        return str(meter(postfix=", ".join(shown), bar_format=form, ncols=ncols))


def _forms(notes: list[str], name: str, seconds: float | None) -> Iterator[tuple[str, list[str], str]]:
    """What a line may look like, the longest first, with its notes and its name; the last is to be taken as it is."""
    percent = "{desc}: {percentage:3.0f}%|{bar}| "
    yield percent + "{n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]", notes, name
    brief = "{n_fmt}/{total_fmt} [{rate_fmt}{postfix}, {remaining} left]"
    for shorter in dict.fromkeys((name, shortened(name, _SHORT_NAME))):
        for count in range(len(notes), min(len(notes), 1) - 1, -1):
            yield percent + brief, notes[:count], shorter
    for shorter in (name, shortened(name, _SHORT_NAME)):
        yield "{desc}: " + brief, notes[:1], shorter
    first = "".join(notes[:1]).replace("{", "{{").replace("}", "}}")
    yield " ".join(["{n_fmt}/{total_fmt} {rate_fmt}", first, _duration(seconds)]), [], ""


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}h{minutes:02}m" if hours else str(tqdm.format_interval(seconds))
