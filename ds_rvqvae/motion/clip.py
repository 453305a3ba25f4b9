"""Clips of motion: their frames, the meaning of their columns, and the checks that a clip must pass."""

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
"""`additional` is BEAT2's name for clips that are used neither for training nor for scores."""


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip: `motion` is float32 `[frames, features]`, and `layout` says what its columns mean."""

    name: str
    motion: NDArray[np.float32]
    fps: float
    layout: Layout
    split: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Take:
    """The content of a motion file, at the file's own frame rate."""

    name: str
    motion: NDArray[Any]
    """float `[frames, columns]`. If `has_positions` is true, columns of kind `translation` hold positions here; clips
    made from them hold velocities."""
    fps: float
    layout: Layout
    split: str | None = None
    empty: NDArray[np.bool_] | None = None
    """bool `[frames]`: true where every number of the file is zero. If None, rows of zeros in `motion` are counted."""
    has_positions: bool = False
    skeleton: dict[str, Any] | None = None
    """`joint_names`, `parents` (-1 for the root) and `offsets` (metres) of the moving figure, if the file has them."""
    notes: tuple[str, ...] = ()
    """Remarks on the file for the report, such as a unit that was guessed."""


class LeftOut(NamedTuple):
    """A clip that is not used: its file (relative to the data) and the reason."""

    file: str
    reason: str


class Quarantined(NamedTuple):
    """A file, or a span of its frames, that was left out of the store."""

    file: str
    """Relative to the data."""
    rule: str
    """A key of `rvqvae.data.rules`, or `not_finite`, `too_short`, `unreadable`, `layout`, `name`, `split`."""
    frames: tuple[int, int] | None
    """The first frame and the one after the last, counted in the file; None for the complete file."""
    reason: str


class ClipError(Exception):
    """One clip cannot be used, for the reason given; the reader adds the name of the file."""


class UnfitError(ClipError):
    """Motion cannot be written with the content of a source file; the message quotes nothing from that file."""


def piece_name(clip: str, index: int) -> str:
    """Returns the name of a piece (counted from 0) of a clip that was cut around frames left out."""
    return f"{clip}#{index}"


def whole_name(name: str) -> str:
    """Returns the name of the clip that a piece belongs to; other names are returned unchanged."""
    return re.sub(r"#\d+$", "", name)


def take_name(name: str) -> str:
    """Returns the name of the clip before all cuts: `gp_00171` for `gp_00171#0#276`."""
    return _PIECES.sub("", name)


def original_name(name: str) -> str:
    """Returns the name of the recording that a clip comes from: without piece numbers and without a mark of mirroring.

    The marks are those of HumanML3D and KIT (`M000012`), SnapMoGen (`m_gp_00171`, pieces `gp_00171#0#276`) and
    MotionMillion (`Mirror_BABEL/12`), and the words `mirror` and `mirrored` (`walk_mirror`, `mirrored/walk`).
    """
    *folders, clip = take_name(name).split("/")
    kept = [_MIRROR_MARK.sub("", part) for part in folders if part.lower() not in ("mirror", "mirrored")]
    return "/".join([*kept, _MIRRORED_CLIP.sub("", _MIRROR_MARK.sub("", clip))])


def check_clip(clip: Clip) -> None:
    """Raises ClipError if a clip is too short, has values that are not finite, or is of an unknown split."""
    if len(clip.motion) < MIN_FRAMES:
        raise ClipError(f"{len(clip.motion)} frames at {clip.fps:g} fps, fewer than the {MIN_FRAMES} a clip needs")
    check_finite(clip.motion)
    if clip.split not in (None, *SPLITS):
        raise ClipError(f"its split is {clip.split!r}, not one of {', '.join(SPLITS)}")


def check_finite(motion: NDArray[Any]) -> None:
    """Raises ClipError if frames of `[frames, columns]` hold NaN or infinite values; the message names them."""
    bad = np.flatnonzero(~np.isfinite(motion).all(axis=1))
    if bad.size:
        raise ClipError(f"NaN or infinite values in {bad.size} of {len(motion)} frames: {spans(bad)}")


def spans(frames: NDArray[np.intp], most: int = 4) -> str:
    """Returns sorted frame numbers as text: `3-5, 9`, and how many more spans there are."""
    runs = np.split(frames, np.flatnonzero(np.diff(frames) > 1) + 1)
    words = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs[:most]]
    return ", ".join(words) + (f" and {len(runs) - most} more spans" if len(runs) > most else "")
