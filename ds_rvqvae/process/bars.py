"""Show progress bars that keep their numbers on narrow terminals."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from tqdm import tqdm
from tqdm.utils import disp_len

from ds_rvqvae.process.terminal import shortened

_SHORTEST_BAR = 5
"""In terminal cells; a shorter bar is left out, and the numbers stay."""
_SHORT_NAME = 14
_USUAL_WIDTH = 79


class Bar(tqdm):  # type: ignore[type-arg]  # tqdm is generic for type checkers only
    """A progress bar as tqdm's, for short lines too. tqdm cuts the end of a line that is too long; this class first
    shortens the bar, then drops the elapsed time, further notes and the name. Steps, rate, the first note and the
    remaining time stay longest."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._taken: dict[tuple[int, int], int] = {}
        """The number of the longest form that had room, by width and notes, so that numbers which grow and shrink by a
        cell do not make the line jump."""
        super().__init__(*args, **options)

    @property
    def format_dict(self) -> dict[str, Any]:
        """The arguments of `format_meter`."""
        return {**super().format_dict, "taken": self._taken}

    @staticmethod
    def format_meter(  # type: ignore[override]
        n: float, total: float | None, elapsed: float, ncols: int | None = None, **options: Any
    ) -> str:
        """Returns the line, in at most `ncols` cells."""
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
    """Yields forms of a line with their notes and name, the longest first; the last one is used even if it is too
    long."""
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
