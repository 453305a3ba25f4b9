"""Convert many files: several at once, with a result for each, and no half-written file."""

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
from ds_rvqvae.text import counted
from ds_rvqvae.tokenizer.tokenizer import MotionTokenizer

_SYNCED_AT_ONCE = 16
_SHOWN = 12
"""The most lines for failures in a summary."""
WORKERS = 2
"""Files at once: one is read or written while the model, which takes one clip at a time, processes another."""


class Converted(NamedTuple):
    """A clip that was converted, now or by an earlier call."""

    file: str
    output: str
    seconds: float = 0.0
    """Length of the motion."""
    skipped: bool = False
    notes: tuple[str, ...] = ()


@dataclass
class Report:
    """The result for every clip."""

    done: list[Converted] = field(default_factory=list)
    skipped: list[Converted] = field(default_factory=list)
    failed: list[LeftOut] = field(default_factory=list)
    elapsed: float = 0.0
    stopped: Stopped | None = None
    """The signal that stopped the work before all files were done."""

    def add(self, outcomes: Sequence[Converted | LeftOut]) -> None:
        """Sorts the results of a file's clips into the three lists."""
        for outcome in outcomes:
            if isinstance(outcome, LeftOut):
                self.failed.append(outcome)
            else:
                (self.skipped if outcome.skipped else self.done).append(outcome)

    @property
    def seconds(self) -> float:
        """The length of the motion that was converted now."""
        return sum(converted.seconds for converted in self.done)

    def to_dict(self) -> dict[str, Any]:
        """Returns the report for `--json`."""
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

    def failures(self) -> str:
        """Returns one line per reason, with the number of files that it is true of, and twelve lines at most."""
        groups: dict[str, list[str]] = {}
        for failed in self.failed:
            groups.setdefault(failed.reason, []).append(failed.file)
        ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
        lines = [
            f"failed: {files[0]}" + (f" and {len(files) - 1:,} more" if len(files) > 1 else "") + f": {reason}"
            for reason, files in ordered[:_SHOWN]
        ]
        rest = ordered[_SHOWN:]
        if rest:
            count = sum(len(files) for _, files in rest)
            lines.append(f"failed: {count:,} more, for {counted(len(rest), 'other reason')}; --json lists them all")
        return text_of(lines)

    def text(self) -> str:
        """Returns the summary line, and one line per note, even if the note is about many files."""
        lines = [
            f"{len(self.done)} done, {len(self.skipped)} skipped, {len(self.failed)} failed"
            + (", stopped before all were done" if self.stopped is not None else "")
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
    """Converts one file; `convert_files` calls it for each."""

    out: Path
    suffixes: tuple[str, ...]
    """Suffixes of the files that are taken from folders."""

    def start(self, found: Sequence[FoundFile]) -> None:
        """Called once with all files, before the first is converted; `out` exists."""

    def convert(self, found: FoundFile) -> Iterator[Converted | LeftOut]:
        """Converts the clips of one file, in a thread; an exception becomes the file's reason."""
        ...


def convert_files(converter: Converter, paths: Sequence[Path], workers: int) -> Report:
    """Converts files, and the files in folders, into `converter.out`, `workers` at once.

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
            pool.shutdown(cancel_futures=True)  # waits for the clips that are being converted
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
    """Returns `--levels`; raises UserError if one of the tokenizers does not have that many."""
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
    """Syncs the new files to the disk; a file that cannot be synced counts as failed.

    This happens once, at the end: syncing after each of 1,000 small files takes fifty times as long. A file that a
    crash of the machine damages before that is converted again by the next call.
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
    """Returns all results of a file; never raises."""
    outcomes: list[Converted | LeftOut] = []
    try:
        for outcome in converter.convert(found):
            outcomes.append(outcome)
            if stopping.is_set():
                break
    except Exception as error:  # no problem with one file may stop the others
        outcomes.append(LeftOut(str(found.file), reason_of(error, found.file)))
    return outcomes


def reason_of(error: Exception, file: Path) -> str:
    """Returns one line for an error with `file`, without the file's name."""
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
    return f"{paths[0]}: no {wanted} file in it or its subfolders" + (" or in the other paths" if paths[1:] else "")


def _without_clashes(found: Sequence[FoundFile], out: Path) -> list[FoundFile]:
    """Returns each file once; raises UserError if two have the same output, or an output would replace an input."""
    by_target: dict[Path, FoundFile] = {}
    for entry in found:
        target = out / entry.relative.with_suffix(".npz")
        other = by_target.setdefault(target, entry)
        if os.path.realpath(other.file) != os.path.realpath(entry.file):
            raise UserError(f"{other.file} and {entry.file} would both be written to {target}; convert one at a time")
    inputs = {os.path.realpath(entry.file) for entry in by_target.values()}
    for target, entry in by_target.items():
        if os.path.realpath(target) in inputs:
            raise UserError(f"--out {out}: {entry.file} would overwrite the input {target}; name another folder")
    return list(by_target.values())
