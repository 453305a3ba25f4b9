"""Repair a run's TensorBoard files after a crash of the machine: cut torn ends, and write lost points again.

Each start of a run writes one file. Its first record removes the points of earlier files from its own first sample on,
so a point belongs to the last file that begins at or before it.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.errors import DataLossError, OutOfRangeError
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New
from tensorboard.summary.writer.record_writer import RecordWriter

from ds_rvqvae.files import sync

_FILE_VERSION = "brain.Event:2"
_FRAME_BYTES = 16
"""Bytes of each record besides its content: its length and two checksums."""
_LARGEST_SCALARS = 4096
"""Bytes; larger records hold pictures and histograms."""


@dataclass
class EventFile:
    """The intact part of a TensorBoard file."""

    file: Path
    whole: int = 0
    """Bytes up to the end of its last complete record."""
    first: int | None = None
    """The first sample that it removes from earlier files; None if it has no such record."""
    last: int = -1
    """The last sample that it has a point for."""
    wall_time: float = 0.0

    @classmethod
    def read(cls, file: Path, tag: str, points: set[int]) -> "EventFile":
        """Reads a file as far as it is intact, and updates `points`, the samples that have a point for `tag`."""
        found = cls(file)
        for record in _records(file):
            found.whole += _FRAME_BYTES + len(record)
            if len(record) > _LARGEST_SCALARS:
                continue
            event = Event.FromString(record)
            found.wall_time = event.wall_time or found.wall_time
            if event.session_log.status == SessionLog.START:
                found.first = event.step if found.first is None else found.first
                points -= {point for point in points if point >= event.step}
            elif any(value.tag == tag for value in event.summary.value):
                points.add(event.step)
                found.last = max(found.last, event.step)
        return found

    def cut(self) -> int:
        """Cuts a torn end; returns the number of bytes cut."""
        left = self.file.stat().st_size - self.whole
        if left:
            with self.file.open("r+b") as content:
                content.truncate(self.whole)
        return left

    def append(self, scalars: Mapping[int, Mapping[str, float]]) -> None:
        """Appends the scalars of each sample, by tag."""
        wall_time = self.wall_time or self.file.stat().st_mtime
        with self.file.open("ab") as content:
            writer = RecordWriter(content)
            if not self.whole:
                writer.write(Event(wall_time=wall_time, file_version=_FILE_VERSION).SerializeToString())
            for sample, values in scalars.items():
                summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
                writer.write(Event(wall_time=wall_time, step=sample, summary=summary).SerializeToString())
        sync(self.file)


def mend_event_files(
    folder: Path, tag: str, scalars: Mapping[int, Mapping[str, float]], but: Collection[Path] = ()
) -> list[str]:
    """Cuts torn ends of TensorBoard files, and writes points again that are in no file.

    Args:
        tag: a tag that every point has.
        scalars: the scalars of every sample of the run, by tag.
        but: files that are being written; they are not touched.

    Returns:
        notes on the repairs.

    Raises:
        OSError: a file cannot be read or written.
    """
    points: set[int] = set()
    # File names begin with the second of their creation, so they sort by time.
    names = sorted(file for file in folder.glob("events.out.tfevents.*") if file not in but)
    files = [EventFile.read(file, tag, points) for file in names]
    notes = []
    for found in files:
        if cut := found.cut():
            notes.append(f"{found.file}: damaged at its end; {cut:,} bytes cut")
    lost: dict[int, dict[int, Mapping[str, float]]] = {}
    for sample in sorted(scalars.keys() - points):
        places = [index for index, found in enumerate(files) if found.first is not None and found.first <= sample]
        index = places[-1] if places else 0
        if files and sample > files[index].last:
            lost.setdefault(index, {})[sample] = scalars[sample]
    for index, again in lost.items():
        files[index].append(again)
        again_text = f"{len(again):,} points are written again from metrics.jsonl"
        notes.append(f"{files[index].file}: {again_text}; scores and pictures between them are lost")
    return notes


def _records(file: Path) -> Iterator[bytes]:
    """Yields the records of a file, up to the first incomplete one."""
    reader = PyRecordReader_New(str(file))
    try:
        while True:
            reader.GetNext()
            record: bytes = reader.record()
            yield record
    except (OutOfRangeError, DataLossError):
        return
    finally:
        reader.file_handle.close()
