"""Format numbers as text: bytes, counts, durations."""

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


def in_gib(count: float | None, digits: str = ".1f") -> str:
    """Returns bytes in GiB, without the unit: `18.2`; `N/A` for None.

    Args:
        digits: how the number is formatted.
    """
    return "N/A" if count is None else f"{count / GIB:{digits}}"


def in_gb(count: float | None, digits: str = ".1f") -> str:
    """Returns bytes in units of 1,000,000,000, without the unit: `18.2`; `N/A` for None."""
    return "N/A" if count is None else f"{count / 1e9:{digits}}"


def gibibytes(count: float, digits: str = ".2f") -> str:
    """Returns bytes in GiB with the unit: `18.20 GiB`."""
    return f"{in_gib(count, digits)} GiB"


def gigabytes(count: float, digits: str = ".1f") -> str:
    """Returns bytes in units of 1,000,000,000 with the unit: `18.2 GB`."""
    return f"{in_gb(count, digits)} GB"


def size(count: float, short: bool = True) -> str:
    """Returns bytes in the unit that leaves one to four digits before the decimal point.

    Args:
        short: the form for tables, `512 B`, `1.5 KiB`, `2.50 GiB`, with GiB as the largest unit; else `512 bytes`, `2.5
            GiB`, `1.5 TiB`.
    """
    units = ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"))
    for scale, unit in units if short else ((TIB, "TiB"), *units):
        if count >= scale:
            return f"{count / scale:,.{2 if short and scale == GIB else 1}f} {unit}"
    return f"{count:,.0f} {'B' if short else 'bytes'}"


def counted(count: int, noun: str) -> str:
    """Returns a count with its noun: `1 clip`, `1,005 clips`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def duration(seconds: float) -> str:
    """Returns a duration: `2 h 5 min 3 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (rest, "s"))
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or "0 s"
