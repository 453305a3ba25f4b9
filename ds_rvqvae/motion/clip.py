"""A clip of motion: frames of numbers, what its columns mean, and what makes one unusable."""

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.motion.layout import Layout

MIN_FRAMES = 16
_PIECES = re.compile(r"(#\d+)+$")
_MIRROR_MARK = re.compile(r"^mirror(ed)?[_-](?=.)|(?<=.)[_-]mirror(ed)?(?=$|_poses$|_stageii$)", re.IGNORECASE)
_MIRRORED_CLIP = re.compile(r"^(M(?=\d+$)|m_(?=.))")
SPLITS = ("train", "val", "test", "additional")
"""`additional` is BEAT2's own word for clips that are neither trained on nor scored."""


@dataclass(frozen=True, slots=True)
class Clip:
    """One take: `motion` is float32 `[frames, features]`, its columns are told by `layout`."""

    name: str
    motion: NDArray[np.float32]
    fps: float
    layout: Layout
    split: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Take:
    """What a motion file holds, at its own frame rate."""

    name: str
    motion: NDArray[Any]
    """float `[frames, columns]`. Columns of kind `translation` hold positions, where `has_positions` says so; clips
    made of it hold velocities then."""
    fps: float
    layout: Layout
    split: str | None = None
    empty: NDArray[np.bool_] | None = None
    """bool `[frames]`: where every number of the file is zero; without it, rows of zeros in `motion` count."""
    has_positions: bool = False
    skeleton: dict[str, Any] | None = None
    """`joint_names`, `parents` (-1 for the root) and `offsets` (metres) of the figure that moves, where files say."""
    notes: tuple[str, ...] = ()
    """What the report should say of the file, such as a unit that was guessed."""


class LeftOut(NamedTuple):
    """A clip that is not used: its file (relative to the data), and why."""

    file: str
    reason: str


class Quarantined(NamedTuple):
    """A file, or a span of one, that the store does not hold."""

    file: str
    """Relative to the data."""
    rule: str
    """A key of `rvqvae.data.rules`, or `not_finite`, `too_short`, `unreadable`, `layout`, `name`, `split`."""
    frames: tuple[int, int] | None
    """First frame and the one after the last, counted in the file; None: all of it."""
    reason: str


class ClipError(Exception):
    """Why one clip cannot be used; the reader adds whose file it is."""


class UnfitError(ClipError):
    """Why motion cannot be written with what a source file holds; its words quote nothing of that file."""


def piece_name(clip: str, index: int) -> str:
    """The name of the piece, counted from 0, of a clip that is cut around what is left out."""
    return f"{clip}#{index}"


def whole_name(name: str) -> str:
    """The clip that a piece is of, by its name; other names as they are."""
    return re.sub(r"#\d+$", "", name)


def take_name(name: str) -> str:
    """The take that a clip is a piece of, by its name, however often it was cut: `gp_00171` of `gp_00171#0#276`."""
    return _PIECES.sub("", name)


def original_name(name: str) -> str:
    """The take that a clip's frames come from, by its name: without numbers of pieces and without the mark of a mirror.

    Marks are those of HumanML3D and KIT (`M000012`), SnapMoGen (`m_gp_00171`, pieces `gp_00171#0#276`) and
    MotionMillion (`Mirror_BABEL/12`), and words (`walk_mirror`, `mirrored/walk`).
    """
    *folders, clip = take_name(name).split("/")
    kept = [_MIRROR_MARK.sub("", part) for part in folders if part.lower() not in ("mirror", "mirrored")]
    return "/".join([*kept, _MIRRORED_CLIP.sub("", _MIRROR_MARK.sub("", clip))])


def check_clip(clip: Clip) -> None:
    """Raises ClipError where a clip is too short, not finite or of no known split."""
    if len(clip.motion) < MIN_FRAMES:
        raise ClipError(
            f"{len(clip.motion)} frames at {clip.fps:g} frames a second, fewer than the {MIN_FRAMES} a clip needs"
        )
    check_finite(clip.motion)
    if clip.split not in (None, *SPLITS):
        raise ClipError(f"its split is {clip.split!r}, none of {', '.join(SPLITS)}")


def check_finite(motion: NDArray[Any]) -> None:
    """Raises ClipError naming the frames of `[frames, columns]` that hold NaN or infinite values."""
    bad = np.flatnonzero(~np.isfinite(motion).all(axis=1))
    if bad.size:
        raise ClipError(f"NaN or infinite values in {bad.size} of {len(motion)} frames: {spans(bad)}")


def spans(frames: NDArray[np.intp], most: int = 4) -> str:
    """Sorted frame numbers in words: `3-5, 9`, and how many more spans there are."""
    runs = np.split(frames, np.flatnonzero(np.diff(frames) > 1) + 1)
    words = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs[:most]]
    return ", ".join(words) + (f" and {len(runs) - most} more spans" if len(runs) > most else "")
