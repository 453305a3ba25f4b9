"""Which frames train and which are held out; speakers and sets of clips, and how much of each is trained on."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.data.formats.beat2 import CLIP_FOLDER
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import original_name, whole_name

TRAIN_SHARE, VAL_SHARE = 0.8, 0.1
_SHOWN = 12
"""Groups that messages name."""


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


def split_clips(
    clips: Sequence[ClipLength], mode: Literal["auto", "time", "hash"], reading_version: int = 2
) -> list[Segment]:
    """Splits a data set; the same clips always give the same answer.

    Args:
        mode: `auto` takes the data's own split, else a hash of the clips' names, else, for a single take, `time`;
            where only some clips have a split (data appended to others) these keep it, and the others go with the
            clips of their take that have one, or by the hash (by version 1 all go by the hash); `time` cuts every clip
            into its first 80 % (train), next 10 % (val) and last 10 % (test).
        reading_version: as for `by_hash`.
    """
    if mode == "auto" and all(clip.split is not None for clip in clips):
        return [Segment(clip.name, 0, clip.frames, clip.split) for clip in clips if clip.split is not None]
    if _is_mixed(clips, mode, reading_version):
        return _split_mixed(clips)
    if is_split_by_time(clips, mode, reading_version):
        return [segment for clip in clips for segment in _cut_by_time(clip)]
    splits = split_by_hash([clip.name for clip in clips], reading_version)
    return [Segment(clip.name, 0, clip.frames, splits[clip.name]) for clip in clips]


def is_split_by_time(clips: Sequence[ClipLength], mode: str, reading_version: int = 2) -> bool:
    """Whether `split_clips` cuts every clip, where the data have no split of their own."""
    if mode != "auto":
        return mode == "time"
    if _is_mixed(clips, mode, reading_version):
        return False
    return len(clips) == 1 or (reading_version > 1 and len({original_name(clip.name) for clip in clips}) == 1)


def mixed_note(clips: Sequence[ClipLength], mode: str, reading_version: int = 2) -> tuple[str, ...]:
    """Says that only some of the clips have a split of their own, and what becomes of the others."""
    if not _is_mixed(clips, mode, reading_version):
        return ()
    unsaid = [clip.name for clip in clips if clip.split is None]
    return (
        f"no list of splits is for {len(unsaid):,} of {len(clips):,} clips, such as {unsaid[0]}: they go with the "
        "clips of their take that lists name, else by a hash of their names",
    )


def _is_mixed(clips: Sequence[ClipLength], mode: str, reading_version: int) -> bool:
    return mode == "auto" and reading_version > 1 and len({clip.split is None for clip in clips}) == 2


def _split_mixed(clips: Sequence[ClipLength]) -> list[Segment]:
    of_take: dict[str, set[str]] = {}
    for clip in clips:
        if clip.split is not None:
            of_take.setdefault(original_name(clip.name), set()).add(clip.split)

    def split_of(clip: ClipLength) -> str:
        if clip.split is not None:
            return clip.split
        there = of_take.get(original_name(clip.name)) or {by_hash(clip.name)}
        return next(iter(there)) if len(there) == 1 else "additional"

    return [Segment(clip.name, 0, clip.frames, split_of(clip)) for clip in clips]


def split_added(
    clips: Sequence[ClipLength],
    there: Sequence[Segment],
    mode: Literal["auto", "time", "hash"],
    reading_version: int = 2,
) -> list[Segment]:
    """As `split_clips`, where clips are added to those of which a store says the splits: these keep theirs.

    The added ones go by their own split, else as the clips there of their take do, else as `split_clips` splits.
    """
    kept: dict[str, list[Segment]] = {}
    of_take: dict[str, list[Segment]] = {}
    for segment in there:
        kept.setdefault(segment.name, []).append(segment)
        of_take.setdefault(original_name(segment.name), []).append(segment)
    together: dict[str, list[Segment]] = {}
    for segment in split_clips(clips, mode, reading_version):
        together.setdefault(segment.name, []).append(segment)

    def split(clip: ClipLength) -> list[Segment]:
        before = of_take.get(original_name(clip.name), ())
        if mode == "time" or not before or (clip.split is not None and mode == "auto"):
            return together[clip.name]
        names, splits = {segment.name for segment in before}, {segment.split for segment in before}
        if len(before) > len(names):  # of clips that are cut by time
            return _cut_by_time(clip)
        return [Segment(clip.name, 0, clip.frames, splits.pop() if len(splits) == 1 else "additional")]

    return [segment for clip in clips for segment in kept.get(clip.name) or split(clip)]


def split_by_hash(names: Sequence[str], reading_version: int = 2) -> dict[str, str]:
    """80 % train, 10 % val, 10 % test by `by_hash`, so that a new clip moves no other one.

    Few clips may all fall on one side: then the take with the lowest hash trains, and of three clips or more the take
    with the highest is val, each with all its clips.
    """
    values = {name: _share_of(name, reading_version) for name in names}
    splits = {name: by_hash(name, reading_version) for name in names}

    def move(extreme: str, split: str) -> None:
        alike = [extreme] if reading_version == 1 else [name for name in names if values[name] == values[extreme]]
        splits.update(dict.fromkeys(alike, split))

    if "train" not in splits.values():
        move(min(values, key=values.__getitem__), "train")
    others = len(splits) >= 3 and (reading_version == 1 or len(set(values.values())) >= 2)
    if "val" not in splits.values() and others:
        move(max(values, key=values.__getitem__), "val")
    return splits


def by_hash(name: str, reading_version: int = 2) -> str:
    """The split of a clip by its name alone: that of its take, as are its pieces' and its mirror image's.

    Args:
        reading_version: 1 counts the mirror image as a take of its own, as versions up to 0.2 did.
    """
    value = _share_of(name, reading_version)
    if value < TRAIN_SHARE:
        return "train"
    return "val" if value < TRAIN_SHARE + VAL_SHARE else "test"


def _share_of(name: str, reading_version: int) -> float:
    """A hash of a name, from 0 to 1; the clips of one take share its own."""
    take = whole_name(name) if reading_version == 1 else original_name(name)
    return int.from_bytes(hashlib.sha256(take.encode(errors="surrogatepass")).digest()[:8], "big") / 2**64


def train_frames_by_time(frames: int) -> int:
    """How many of a clip's first frames train where time splits."""
    return int(frames * TRAIN_SHARE)


def _cut_by_time(clip: ClipLength) -> list[Segment]:
    first, second = train_frames_by_time(clip.frames), int(clip.frames * (TRAIN_SHARE + VAL_SHARE))
    cuts = (("train", 0, first), ("val", first, second), ("test", second, clip.frames))
    return [Segment(clip.name, start, stop, split) for split, start, stop in cuts if stop > start]


@dataclass(frozen=True, eq=False)
class Groups:
    """Windows by group, and the share of samples that each group is to have."""

    names: list[str]
    """All groups, sorted; a group's index is its place here, whatever windows there are."""
    of_window: NDArray[np.int64]
    """int64 `[windows]`: the group of each window."""
    shares: NDArray[np.float64]
    """float64 `[groups]`, 1 together; 0 for a group that has no window or no weight."""

    @cached_property
    def reach(self) -> NDArray[np.float64]:
        """Up to where, between 0 and 1, a number drawn evenly means each window or one before it: float64 `[windows]`,
        in steps of a window's part in its group's share."""
        windows = np.bincount(self.of_window, minlength=len(self.names))
        return np.cumsum((self.shares / np.maximum(windows, 1))[self.of_window])

    def samples(self, count: int) -> NDArray[np.int64]:
        """How many of `count` samples are each group's, int64 `[groups]`: by largest remainder."""
        exact = self.shares * count
        samples = np.floor(exact).astype(np.int64)
        order = np.argsort(samples - exact, kind="stable")
        samples[order[: count - samples.sum()]] += 1
        return samples


def group_of(clip_name: str, by: Literal["speaker", "set"], reading_version: int = 2) -> str:
    """The speaker or the set of a clip, by its name.

    A speaker is the folder that the clip lies in ("CMU/01/01_01" is of "01"), or in flat data and in BEAT2's folders of
    clips what the name begins with ("2_scott_0_1_1" and "beat_english_v2.0.0/smplxflame_30/2_scott_0_1_1" are of "2";
    the second not by version 1, `rvqvae.data.reading_version`). A set is the first folder ("CMU"), or "" in flat data.
    A clip's pieces are of its own.
    """
    *folders, name = whole_name(clip_name).split("/")
    if by == "set":
        return folders[0] if folders else ""
    if folders and (folders[-1] != CLIP_FOLDER or reading_version == 1):
        return folders[-1]
    return name.partition("_")[0]


def balanced(
    of_clip: Sequence[str], clip_of_window: NDArray[np.int64], weights: Mapping[str, float], what: str = "group"
) -> Groups:
    """Shares by weight, 1 for a group that `weights` does not name, of the groups that have windows.

    Args:
        of_clip: each training clip's group.
        clip_of_window: int64 `[windows]`, the place in `of_clip` of each window's clip.
        what: a group's name in messages: speaker or set.

    Raises:
        UserError: a weight for a group that is not there, or none for those that are.
    """
    names, of_each = np.unique(np.asarray(of_clip, dtype=str), return_inverse=True)
    names = names.tolist()
    unknown = sorted(set(weights) - set(names))
    if unknown:
        there = ", ".join(map(repr, names[:_SHOWN])) + (f" and {len(names) - _SHOWN} more" * (len(names) > _SHOWN))
        raise UserError(f"rvqvae.data.weights: no {what} {unknown[0]!r} in train; there: {there}")
    of_window = of_each[clip_of_window]
    weight = np.array([weights.get(name, 1.0) for name in names], np.float64)
    weight *= np.bincount(of_window, minlength=len(names)) > 0
    if not weight.any():
        raise UserError(f"rvqvae.data.weights: every {what} that has windows has weight 0")
    return Groups(names, of_window, weight / weight.sum())


def shares_text(groups: Groups) -> str:
    """`2 50.0% (12.5%), …`: a group's share of the samples, and beside it that of the windows."""
    own = np.bincount(groups.of_window, minlength=len(groups.names)) / len(groups.of_window)
    texts = [
        f"{name or 'no folder'} {share:.1%} ({part:.1%})"
        for name, share, part in zip(groups.names, groups.shares.tolist(), own.tolist(), strict=True)
    ]
    return ", ".join(texts[:_SHOWN]) + (f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else "")
