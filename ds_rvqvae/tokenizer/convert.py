"""Work on many files: several at once, each named with what became of it, none left half-written."""

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ds_rvqvae.data.formats.finding import FoundFile, find_files
from ds_rvqvae.errors import UserError, text_of
from ds_rvqvae.files import check_writable, remove_unfinished, sync
from ds_rvqvae.motion.clip import ClipError, LeftOut
from ds_rvqvae.process.bars import Bar
from ds_rvqvae.process.signals import Stopped
from ds_rvqvae.tokenizer.tokenizer import MotionTokenizer

_SYNCED_AT_ONCE = 16
WORKERS = 2
"""Files at once: one is read or written while the model, which takes one clip at a time, works on another."""


class Converted(NamedTuple):
    """A clip that is done: now, or already before."""

    file: str
    output: str
    seconds: float = 0.0
    """Of motion."""
    skipped: bool = False
    notes: tuple[str, ...] = ()


@dataclass
class Report:
    """What became of every clip."""

    done: list[Converted] = field(default_factory=list)
    skipped: list[Converted] = field(default_factory=list)
    failed: list[LeftOut] = field(default_factory=list)
    elapsed: float = 0.0
    stopped: Stopped | None = None
    """The signal that came before all files were done."""

    def add(self, outcomes: Sequence[Converted | LeftOut]) -> None:
        """Sorts what became of a file's clips into the three lists."""
        for outcome in outcomes:
            if isinstance(outcome, LeftOut):
                self.failed.append(outcome)
            else:
                (self.skipped if outcome.skipped else self.done).append(outcome)

    @property
    def seconds(self) -> float:
        """Of motion that was converted now."""
        return sum(converted.seconds for converted in self.done)

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "done": [
                {"file": clip.file, "output": clip.output, "seconds": clip.seconds, "notes": list(clip.notes)}
                for clip in self.done
            ],
            "skipped": [{"file": clip.file, "output": clip.output} for clip in self.skipped],
            "failed": [{"file": clip.file, "reason": clip.reason} for clip in self.failed],
            "hours": self.seconds / 3600,
            "elapsed_s": self.elapsed,
            "times_real_time": self.seconds / self.elapsed if self.elapsed else None,
            "stopped": self.stopped is not None,
        }

    def text(self) -> str:
        """The summary line, and a line for each note, however many files it is about."""
        lines = [
            f"{len(self.done)} done, {len(self.skipped)} skipped, {len(self.failed)} failed"
            + (", stopped before the rest" if self.stopped is not None else "")
        ]
        if self.done:
            lines[0] += (
                f"; {self.seconds / 3600:.2f} hours of motion in {self.elapsed:.1f} s, "
                f"{self.seconds / max(self.elapsed, 1e-9):.0f} times real time"
            )
        notes: dict[str, list[str]] = {}
        for clip in self.done:
            for note in clip.notes:
                notes.setdefault(note, []).append(clip.file)
        for note, files in notes.items():
            lines.append(f"{note}: {files[0]}" + (f" and {len(files) - 1} more" if len(files) > 1 else ""))
        return text_of(lines)


class Converter(Protocol):
    """What is done to each file."""

    out: Path
    suffixes: tuple[str, ...]
    """Files that are taken of folders."""

    def start(self, found: Sequence[FoundFile]) -> None:
        """Called once with all files, before the first; `out` is there."""

    def convert(self, found: FoundFile) -> Iterator[Converted | LeftOut]:
        """Converts the clips of one file, in a thread; what it raises becomes the file's reason."""
        ...


def convert_files(converter: Converter, paths: Sequence[Path], workers: int) -> Report:
    """Converts files, and those in folders, into `converter.out`, `workers` at once.

    Raises:
        UserError: no file, two files with one name in `out`, or a folder that cannot be written.
    """
    began = time.perf_counter()
    found, left_out = find_files(paths, converter.suffixes, leave_out=converter.out)
    if not found:
        raise UserError(_nothing(paths, converter.suffixes, left_out))
    found = _without_clashes(found, converter.out)
    _prepare(converter, found)
    report = Report(failed=left_out)
    stopping = threading.Event()
    with ThreadPoolExecutor(workers) as pool:
        jobs: list[Future[list[Converted | LeftOut]]] = []
        try:
            jobs += [pool.submit(_outcomes, converter, file, stopping) for file in found]
            for _ in Bar(as_completed(jobs), total=len(jobs), unit="file", disable=None, leave=False):
                pass
        except Stopped as stop:
            report.stopped = stop
            stopping.set()
            pool.shutdown(cancel_futures=True)  # waits for the clips at hand
        except BaseException:
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for job in jobs:
        if not job.cancelled():
            report.add(job.result())
    _sync(report, converter.out)
    report.elapsed = time.perf_counter() - began
    return report


def checked_levels(levels: int | None, parts: Mapping[str, MotionTokenizer]) -> int | None:
    """`--levels`; raises UserError where one of the tokenizers has not so many."""
    for part, tokenizer in parts.items():
        most = tokenizer.model.config.num_quantizers
        if levels is not None and not 1 <= levels <= most:
            raise UserError(f"--levels {levels}: {part or 'this tokenizer'} has levels 1 to {most}")
    return levels


def _prepare(converter: Converter, found: Sequence[FoundFile]) -> None:
    try:
        converter.out.mkdir(parents=True, exist_ok=True)
        remove_unfinished(converter.out)
        check_writable(converter.out)
        converter.start(found)
    except OSError as error:
        raise UserError(f"--out {converter.out}: cannot be written: {error.strerror or error}") from None


def _sync(report: Report, out: Path) -> None:
    """Waits until what was made is on the disk; what cannot get there has failed.

    All at once, at the end: after each of 1,000 small files it takes fifty times as long. What a crash of the machine
    leaves of files before is not taken as done.
    """

    def failed(clip: Converted) -> LeftOut | None:
        try:
            sync(Path(clip.output))
        except OSError as error:
            return LeftOut(clip.file, reason_of(error, Path(clip.file)))
        return None

    with ThreadPoolExecutor(_SYNCED_AT_ONCE) as pool:
        outcomes = list(pool.map(failed, report.done))
    report.failed += [outcome for outcome in outcomes if outcome is not None]
    report.done = [clip for clip, outcome in zip(report.done, outcomes, strict=True) if outcome is None]
    for folder in {out, *(Path(clip.output).parent for clip in report.done)}:
        with suppress(OSError):  # folders of some file systems cannot be synced
            sync(folder)


def _outcomes(converter: Converter, found: FoundFile, stopping: threading.Event) -> list[Converted | LeftOut]:
    """All that became of a file; never raises."""
    outcomes: list[Converted | LeftOut] = []
    try:
        for outcome in converter.convert(found):
            outcomes.append(outcome)
            if stopping.is_set():
                break
    except Exception as error:  # one file, whatever is wrong with it, does not stop the others
        outcomes.append(LeftOut(str(found.file), reason_of(error, found.file)))
    return outcomes


def reason_of(error: Exception, file: Path) -> str:
    """One line for what went wrong with `file`, without its name."""
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    text = " ".join(str(error).split())
    known = isinstance(error, (ClipError, UserError))
    return text.removeprefix(f"{file}: ") if known else f"{type(error).__name__}: {text}"


def _nothing(paths: Sequence[Path], suffixes: tuple[str, ...], left_out: Sequence[LeftOut]) -> str:
    if left_out:
        more = f" (and {len(left_out) - 1} more)" if len(left_out) > 1 else ""
        return f"{left_out[0].file}: {left_out[0].reason}{more}"
    wanted = " or ".join(filter(None, (", ".join(suffixes[:-1]), suffixes[-1])))
    return f"{paths[0]}: no {wanted} file in it or below" + (" or in the others" if paths[1:] else "")


def _without_clashes(found: Sequence[FoundFile], out: Path) -> list[FoundFile]:
    """The files, each once; raises UserError where two have one name in `out`, or where `out` is where they are."""
    by_target: dict[Path, FoundFile] = {}
    for entry in found:
        target = out / entry.relative.with_suffix(".npz")
        other = by_target.setdefault(target, entry)
        if os.path.realpath(other.file) != os.path.realpath(entry.file):
            raise UserError(f"{other.file} and {entry.file} would both be written to {target}; take one at a time")
    inputs = {os.path.realpath(entry.file) for entry in by_target.values()}
    for target, entry in by_target.items():
        if os.path.realpath(target) in inputs:
            raise UserError(f"--out {out}: {entry.file} would be written over {target}; name another folder")
    return list(by_target.values())
