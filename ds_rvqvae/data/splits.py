"""Which frames train, which are held out."""

import hashlib
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

TRAIN_SHARE, VAL_SHARE = 0.8, 0.1


class Segment(NamedTuple):
    """Frames `start` up to but not including `stop`, counted in the clip `name` itself, and their split."""

    name: str
    start: int
    stop: int
    split: str


class ClipLength(NamedTuple):
    name: str
    frames: int
    split: str | None
    """The data's own split."""


def split_clips(clips: Sequence[ClipLength], mode: Literal["auto", "time", "hash"]) -> list[Segment]:
    """Splits a data set; the same clips always give the same answer.

    Args:
        mode: `auto` takes the data's own split, else a hash of the clips' names, else, for a single clip, `time`;
            `time` cuts every clip into its first 80 % (train), next 10 % (val) and last 10 % (test).
    """
    if mode == "auto" and all(clip.split is not None for clip in clips):
        return [Segment(clip.name, 0, clip.frames, clip.split) for clip in clips if clip.split is not None]
    if mode == "time" or (mode == "auto" and len(clips) == 1):
        return [segment for clip in clips for segment in _cut_by_time(clip)]
    splits = split_by_hash([clip.name for clip in clips])
    return [Segment(clip.name, 0, clip.frames, splits[clip.name]) for clip in clips]


def split_by_hash(names: Sequence[str]) -> dict[str, str]:
    """80 % train, 10 % val, 10 % test by a hash of each name, so that a new clip moves no other one.

    Few clips may all fall on one side: then the clip with the lowest hash trains, and of three or more the one with
    the highest is val.
    """
    values = {name: _share_of(name) for name in names}
    splits = {name: by_hash(name) for name in names}
    if "train" not in splits.values():
        splits[min(values, key=values.__getitem__)] = "train"
    if "val" not in splits.values() and len(splits) >= 3:
        splits[max(values, key=values.__getitem__)] = "val"
    return splits


def by_hash(name: str) -> str:
    """The split of a clip by its name alone."""
    value = _share_of(name)
    if value < TRAIN_SHARE:
        return "train"
    return "val" if value < TRAIN_SHARE + VAL_SHARE else "test"


def _share_of(name: str) -> float:
    """A hash of a name, from 0 to 1; the pieces of a clip share its own."""
    clip = re.sub(r"#\d+$", "", name)
    return int.from_bytes(hashlib.sha256(clip.encode(errors="surrogatepass")).digest()[:8], "big") / 2**64


def train_frames_by_time(frames: int) -> int:
    """How many of a clip's first frames train where time splits."""
    return int(frames * TRAIN_SHARE)


def _cut_by_time(clip: ClipLength) -> list[Segment]:
    first, second = train_frames_by_time(clip.frames), int(clip.frames * (TRAIN_SHARE + VAL_SHARE))
    cuts = (("train", 0, first), ("val", first, second), ("test", second, clip.frames))
    return [Segment(clip.name, start, stop, split) for split, start, stop in cuts if stop > start]
