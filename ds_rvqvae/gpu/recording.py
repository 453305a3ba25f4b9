"""Files that the monitor writes: complete rows appended to CSV or lines of JSON, and TensorBoard's scalars."""

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from ds_rvqvae.errors import UserError
from ds_rvqvae.files import AppendedLines, parse_json
from ds_rvqvae.gpu.snapshot import CSV_COLUMNS, Snapshot, csv_rows, json_record, scalars

_MOST_PENDING = 1 << 20
"""Bytes of rows kept while the disk has no room."""
_FLUSH_SECONDS = 10


class Record(Protocol):
    """A file or folder that records refreshes."""

    problem: str | None
    """Reason why the last refresh was not written, or None."""

    def write(self, snapshot: Snapshot) -> None: ...

    def close(self) -> None: ...


class AppendedFile:
    """Appends lines to a file, all lines of a refresh or none; first removes a last line that a crash cut short.

    Rows for which the disk has no room are kept and written with later ones; until then `problem` says so.

    Args:
        flag: the flag that named the file, for messages.
        lines_of: returns complete lines for one refresh.
        is_ours: whether an existing file's first line is one of ours; other files are not changed.
        header: the first line of a new file.

    Raises:
        UserError: the file cannot be written, or is another program's. No file is created before the first line.
    """

    def __init__(
        self,
        flag: str,
        file: Path,
        lines_of: Callable[[Snapshot], str],
        is_ours: Callable[[str], bool],
        header: str = "",
    ) -> None:
        self.problem: str | None = None
        self._lines_of = lines_of
        self._name, self._path, self._header = f"{flag} {file}", file, header
        self._file: AppendedLines | None = None
        folder = file.absolute().parent
        if file.is_dir():
            raise UserError(f"{self._name}: is a folder; name a file in it")
        if not folder.is_dir():
            raise UserError(f"{self._name}: there is no folder {folder}; make it first")
        if not os.access(file if file.exists() else folder, os.W_OK):
            raise UserError(f"{self._name}: no permission to write; give another file")
        if file.is_file():
            self._check(is_ours)

    def _check(self, is_ours: Callable[[str], bool]) -> None:
        try:
            with self._path.open(encoding="utf-8", errors="replace") as opened:
                first = opened.readline(1 << 20)
        except OSError as error:
            raise UserError(f"{self._name}: {_reason(error).lower()}; give another file") from None
        torn = not first.endswith("\n") and self._header.startswith(first)
        if not torn and not is_ours(first):
            raise UserError(f"{self._name}: does not hold this monitor's records; give another file")

    def write(self, snapshot: Snapshot) -> None:
        """Adds the lines of one refresh; raises UserError if the file cannot be opened."""
        if self._file is None:
            try:
                self._file = AppendedLines(self._path, self._header.encode(), _MOST_PENDING)
            except OSError as error:
                raise UserError(f"{self._name}: {_reason(error)}") from None
        why = self._file.write(self._lines_of(snapshot).encode("utf-8", errors="replace"))
        self.problem = why and f"{self._name}: {why}; rows are kept and written later"

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def csv_file(file: Path) -> AppendedFile:
    """A CSV file with a header and one row per GPU and refresh; raises as `AppendedFile`."""
    header = _csv_lines([list(CSV_COLUMNS)])
    return AppendedFile(
        "--csv", file, lambda snapshot: _csv_lines(csv_rows(snapshot)), lambda line: line == header, header
    )


def json_file(file: Path) -> AppendedFile:
    """A file with one JSON object per refresh, each on its own line; raises as `AppendedFile`."""
    return AppendedFile("--json", file, json_line, _is_json_record)


class ScalarsFolder:
    """TensorBoard's scalars per GPU in the subfolder `gpus`, as a series separate from the run's.

    Their step is the time in seconds since 1970, so that several monitors, one after the other, do not overlap.

    Raises:
        UserError: the folder cannot be created or written.
    """

    def __init__(self, folder: Path) -> None:
        self.problem: str | None = None
        self._folder = folder / "gpus"
        self._name = f"--tensorboard {folder}"
        self._writer: Any = None
        existing = self._folder.absolute()
        while not existing.exists():
            existing = existing.parent
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise UserError(f"{self._name}: {existing} is not a writable folder; give another")

    def write(self, snapshot: Snapshot) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(snapshot).items()]
        seconds = snapshot.time.timestamp()
        try:
            if self._writer is None:
                self._writer = EventFileWriter(str(self._folder), flush_secs=_FLUSH_SECONDS)
            self._writer.add_event(Event(wall_time=seconds, step=int(seconds), summary=Summary(value=values)))
            self.problem = None
        except OSError as error:
            self.problem = f"{self._name}: {_reason(error)}"

    def close(self) -> None:
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as error:
                self.problem = f"{self._name}: {_reason(error)}"


def json_line(snapshot: Snapshot) -> str:
    return json.dumps(json_record(snapshot)) + "\n"


def _is_json_record(line: str) -> bool:
    if not line.strip():
        return not line
    try:
        return "gpu_0_idle" in parse_json(line)
    except (ValueError, TypeError):
        # The beginning shows whether a first line that a crash cut short is one of ours.
        return not line.endswith("\n") and line.startswith('{"time": ')


def _csv_lines(rows: list[list[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
