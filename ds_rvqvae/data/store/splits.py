"""The splits of clips into train, val and test; speakers and sets of clips, and how often each is trained on."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.data.formats.smpl.beat2 import CLIP_FOLDER
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import original_name, whole_name

TRAIN_SHARE, VAL_SHARE = 0.8, 0.1
_SHOWN = 12
"""The largest number of groups that a message names."""


class Segment(NamedTuple):
    """A piece of a clip: frames `start` up to but not including `stop` of the clip `name`, and their split."""

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
    """Splits a data set; the same clips always give the same result.

    Args:
        mode: `auto` uses the data's own split, else a hash of the clips' names, else, for a single recording, `time`.
            If only some clips have a split (data appended to others), these keep it; the others get the split of the
            clips of the same recording that have one, or else use the hash (in version 1 all clips use the hash).
            `time` cuts every clip into its first 80 % (train), next 10 % (val) and last 10 % (test).
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
    """Returns whether `split_clips` cuts every clip, if the data have no split of their own."""
    if mode != "auto":
        return mode == "time"
    if _is_mixed(clips, mode, reading_version):
        return False
    return len(clips) == 1 or (reading_version > 1 and len({original_name(clip.name) for clip in clips}) == 1)


def mixed_note(clips: Sequence[ClipLength], mode: str, reading_version: int = 2) -> tuple[str, ...]:
    """Returns a note if only some clips have a split of their own; it says which split the others get."""
    if not _is_mixed(clips, mode, reading_version):
        return ()
    unsaid = [clip.name for clip in clips if clip.split is None]
    return (
        f"no list of splits names {len(unsaid):,} of {len(clips):,} clips, such as {unsaid[0]}: they get the split of "
        "the listed clips of the same recording, else one by a hash of their names",
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
    """Splits clips of which some are already in a store: these keep their splits.

    An added clip gets its own split, else that of the store's clips of the same recording, else that of `split_clips`.
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
        if len(before) > len(names):  # these clips are cut by time
            return _cut_by_time(clip)
        return [Segment(clip.name, 0, clip.frames, splits.pop() if len(splits) == 1 else "additional")]

    return [segment for clip in clips for segment in kept.get(clip.name) or split(clip)]


def split_by_hash(names: Sequence[str], reading_version: int = 2) -> dict[str, str]:
    """Returns splits by `by_hash`: 80 % train, 10 % val, 10 % test, so that a new clip does not change another's.

    A few clips may all get the same split. Then all clips of the recording with the lowest hash become train and, if
    there are three clips or more, those of the recording with the highest hash val.
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
    """Returns the split of a clip by its name alone; all pieces and mirror images of a recording get the same split.

    Args:
        reading_version: 1 counts a mirror image as a recording of its own, as versions up to 0.2 did.
    """
    value = _share_of(name, reading_version)
    if value < TRAIN_SHARE:
        return "train"
    return "val" if value < TRAIN_SHARE + VAL_SHARE else "test"


def _share_of(name: str, reading_version: int) -> float:
    """Returns a hash of a name, from 0 to 1, which is the same for all clips of a recording."""
    take = whole_name(name) if reading_version == 1 else original_name(name)
    return int.from_bytes(hashlib.sha256(take.encode(errors="surrogatepass")).digest()[:8], "big") / 2**64


def train_frames_by_time(frames: int) -> int:
    """Returns how many of a clip's first frames are training frames in a split by time."""
    return int(frames * TRAIN_SHARE)


def _cut_by_time(clip: ClipLength) -> list[Segment]:
    first, second = train_frames_by_time(clip.frames), int(clip.frames * (TRAIN_SHARE + VAL_SHARE))
    cuts = (("train", 0, first), ("val", first, second), ("test", second, clip.frames))
    return [Segment(clip.name, start, stop, split) for split, start, stop in cuts if stop > start]


@dataclass(frozen=True, eq=False)
class Groups:
    """Windows by group, and the fraction of the samples that each group gets."""

    names: list[str]
    """All groups, sorted, also those without windows; a group's index is its place in this list."""
    of_window: NDArray[np.int64]
    """int64 `[windows]`: the group of each window."""
    shares: NDArray[np.float64]
    """float64 `[groups]`, with sum 1: a group's fraction of the samples; 0 for a group without windows or weight."""

    @cached_property
    def reach(self) -> NDArray[np.float64]:
        """Cumulative probability of the windows, float64 `[windows]`: each window has an equal fraction of its group's
        share, and a uniform number below an entry selects that window or an earlier one."""
        windows = np.bincount(self.of_window, minlength=len(self.names))
        return np.cumsum((self.shares / np.maximum(windows, 1))[self.of_window])

    def samples(self, count: int) -> NDArray[np.int64]:
        """Returns how many of `count` samples each group gets, int64 `[groups]`, by the largest remainder."""
        exact = self.shares * count
        samples = np.floor(exact).astype(np.int64)
        order = np.argsort(samples - exact, kind="stable")
        samples[order[: count - samples.sum()]] += 1
        return samples


def group_of(clip_name: str, by: Literal["speaker", "set"], reading_version: int = 2) -> str:
    """Returns the speaker or the set of a clip, from its name.

    The speaker is the folder of the clip ("01" for "CMU/01/01_01"). In flat data and in BEAT2's folders of clips it is
    the first part of the name ("2" for "2_scott_0_1_1" and for "beat_english_v2.0.0/smplxflame_30/2_scott_0_1_1"; the
    second is different with `rvqvae.data.reading_version` 1). The set is the first folder ("CMU"), or "" in flat data.
    All pieces of a clip belong to its speaker and set.
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
    """Returns groups of windows with shares in proportion to their weights.

    Args:
        of_clip: each training clip's group.
        clip_of_window: int64 `[windows]`, the index in `of_clip` of each window's clip.
        weights: by group; 1 for a group that is not named.
        what: the word for a group in messages: speaker or set.

    Raises:
        UserError: a weight for a group that does not exist, or a weight of 0 for every group that has windows.
    """
    names, of_each = np.unique(np.asarray(of_clip, dtype=str), return_inverse=True)
    names = names.tolist()
    unknown = sorted(set(weights) - set(names))
    if unknown:
        there = ", ".join(map(repr, names[:_SHOWN])) + (f" and {len(names) - _SHOWN} more" * (len(names) > _SHOWN))
        raise UserError(f"rvqvae.data.weights: no {what} {unknown[0]!r} in train; it has {there}")
    of_window = of_each[clip_of_window]
    weight = np.array([weights.get(name, 1.0) for name in names], np.float64)
    weight *= np.bincount(of_window, minlength=len(names)) > 0
    if not weight.any():
        raise UserError(f"rvqvae.data.weights: every {what} that has windows has weight 0")
    return Groups(names, of_window, weight / weight.sum())


def shares_text(groups: Groups) -> str:
    """Returns `2 50.0% (12.5%), …`: each group's share of the samples, and in brackets that of the windows."""
    own = np.bincount(groups.of_window, minlength=len(groups.names)) / len(groups.of_window)
    texts = [
        f"{name or 'no folder'} {share:.1%} ({part:.1%})"
        for name, share, part in zip(groups.names, groups.shares.tolist(), own.tolist(), strict=True)
    ]
    return ", ".join(texts[:_SHOWN]) + (f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else "")
