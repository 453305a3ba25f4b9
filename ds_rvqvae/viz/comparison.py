"""A clip beside its reconstruction: the positions of a skeleton's joints in both, and their distances."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import Clip, ClipError
from ds_rvqvae.motion.kinematics import joints_of
from ds_rvqvae.motion.layout import MOVING, Layout, feature_layout
from ds_rvqvae.motion.skeleton import Skeleton, joint_places, slides_of
from ds_rvqvae.text import counted
from ds_rvqvae.tokenizer.folder import columns_for
from ds_rvqvae.tokenizer.tokenizer import MotionTokenizer
from ds_rvqvae.viz.curves import joint_errors


@dataclass(frozen=True, eq=False)
class CodeRows:
    """The codes of a complete clip by one tokenizer, as they are coloured.

    Attributes:
        part: the tokenizer's body part; empty where it has none.
        shades: `[levels, codes]` from 0 to 1: the order of the level's codes in this clip along the first principal
            axis of their vectors, so that near shades stand for near vectors.
        seconds: how long a code lasts.
    """

    part: str
    shades: NDArray[np.float64]
    seconds: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """T frames of a clip beside their reconstruction.

    Attributes:
        skeleton: its J joints are shown.
        truth, found: joint positions `[T, J, 3]` in metres, of the original and of the reconstruction. Columns that no
            tokenizer covers are the original's in both.
        angle_error: mean over the tokenizers' rotations, degrees `[T]`, computed as in `evaluate`; NaN without
            rotations.
        joint_error: distance between the joints once both roots are at the same position, metres `[T, J]`.
        measured: int64, the joints that the mean distance is taken over: those of the tokenizers that move.
        fps: frames per second.
        start: time of the first frame in the clip, seconds.
        title: the clip's name.
        levels: number of levels decoded.
        codes: of the complete clip, for each tokenizer.
    """

    skeleton: Skeleton
    truth: NDArray[np.float64]
    found: NDArray[np.float64]
    angle_error: NDArray[np.float32]
    joint_error: NDArray[np.float64]
    measured: NDArray[np.int64]
    fps: float
    start: float
    title: str
    levels: int
    codes: tuple[CodeRows, ...]

    @property
    def levels_text(self) -> str:
        """The number of levels decoded, as text."""
        return counted(self.levels, "level")

    @property
    def mean_angle(self) -> float | None:
        """Mean angle error in degrees; None without rotations."""
        return float(self.angle_error.mean()) if np.isfinite(self.angle_error).all() else None

    @property
    def mean_distance_mm(self) -> NDArray[np.float64]:
        """Mean distance of the measured joints, `[T]` millimetres."""
        mean: NDArray[np.float64] = self.joint_error[:, self.measured].mean(axis=1)
        return 1000.0 * mean


def compare(
    tokenizers: Sequence[MotionTokenizer],
    clip: Clip,
    skeleton: Skeleton,
    levels: int | None = None,
    start: float = 0.0,
    seconds: float | None = None,
) -> Comparison:
    """Encodes and decodes a complete clip and compares the frames asked for.

    Args:
        tokenizers: one, or those of several body parts without a common column.
        clip: at the tokenizers' frame rate, with all its columns, or with only those of the one tokenizer.
        levels: number of levels to decode; all by default.
        start, seconds: the span of time to show; by default, and at most, to the clip's end.

    Raises:
        UserError: a column, joint, level or time that does not exist.
    """
    # Columns of unknown meaning are taken as those of the one tokenizer, if the number is the same.
    is_bare = clip.layout == feature_layout(clip.motion.shape[1])
    layout = tokenizers[0].layout if is_bare else clip.layout
    columns = _columns(tokenizers, clip)
    names = {part.name for tokenizer in tokenizers for part in tokenizer.layout}
    covered = tuple(part for part in layout if part.name in names)
    joints = joints_of(covered, skeleton)
    if joints is None:
        raise UserError(_no_figure(covered, skeleton))
    measured = joints.measured.numpy()
    most = max(tokenizer.model.config.num_quantizers for tokenizer in tokenizers)
    if levels is not None and not 1 <= levels <= most:
        raise UserError(f"--levels {levels}: the tokenizer has 1 to {most}")
    first, last = _stretch(clip, start, seconds)
    found, rows = clip.motion.copy(), list[CodeRows]()
    for tokenizer, own in zip(tokenizers, columns, strict=True):
        codes = tokenizer.encode(np.ascontiguousarray(clip.motion[:, own]))
        found[:, own] = tokenizer.decode(codes[:, :levels], lengths=len(found))
        rows.append(_code_rows(tokenizer, codes[:, :levels]))
    truth_places, found_places = (_places(motion, layout, skeleton)[first:last] for motion in (clip.motion, found))
    angles = list(joint_errors(clip.motion[first:last], found[first:last], covered, slides_of(skeleton)).values())
    together = found_places + truth_places[:, :1] - found_places[:, :1]
    return Comparison(
        skeleton=skeleton,
        truth=truth_places,
        found=found_places,
        angle_error=np.mean(angles, axis=0) if angles else np.full(len(truth_places), np.nan, np.float32),
        joint_error=np.linalg.norm(together - truth_places, axis=-1),
        measured=measured,
        fps=clip.fps,
        start=first / clip.fps,
        title=clip.name,
        levels=levels or most,
        codes=tuple(rows),
    )


def _code_rows(tokenizer: MotionTokenizer, codes: NDArray[np.int64]) -> CodeRows:
    """Returns the rows of a clip's codes `[codes, levels]`, with the shade of each code."""
    shades = np.empty(codes.T.shape)
    for level, row in enumerate(codes.T):
        used, index = np.unique(row, return_inverse=True)
        alone = torch.full((len(used), level + 1), -1)
        alone[:, level] = torch.from_numpy(used)
        vectors = tokenizer.model.quantizer.decode(alone.to(tokenizer.mean.device)).double().cpu().numpy()
        vectors -= vectors.mean(axis=0)
        axis = np.linalg.svd(vectors, full_matrices=False)[2][0]
        axis *= np.sign(axis[np.abs(axis).argmax()])  # an axis has no direction of its own
        order = (vectors @ axis).argsort().argsort()
        shades[level] = order[index] / max(len(used) - 1, 1)
    return CodeRows(str(tokenizer.details.get("body_part") or ""), shades, tokenizer.code_stride / tokenizer.fps)


def _columns(tokenizers: Sequence[MotionTokenizer], clip: Clip) -> list[NDArray[np.int64]]:
    """Returns the columns of the clip that each tokenizer takes; raises UserError if some are missing."""
    try:
        return [columns_for(tokenizer.layout, clip.layout) for tokenizer in tokenizers]
    except ClipError as error:
        raise UserError(f"{clip.name}: {error}") from None


def _stretch(clip: Clip, start: float, seconds: float | None) -> tuple[int, int]:
    """Returns the first frame shown and the one after the last, which may lie past the clip's end.

    Raises:
        UserError: the start is past the clip's end.
    """
    length = len(clip.motion) / clip.fps
    if start >= length:
        raise UserError(f"--start {start:g}: {clip.name} ends after {length:.1f} s")
    first = min(round(start * clip.fps), len(clip.motion) - 1)
    return first, first + max(round(min(seconds or length, length) * clip.fps), 1)


def _no_figure(covered: Layout, skeleton: Skeleton) -> str:
    names = [part.name for part in covered if part.kind in MOVING]
    if not names:
        return "the tokenizer has no columns of joints, so there is no figure to show"
    return (
        f"none of the tokenizer's joints ({', '.join(names[:3])}, …) is one of the {skeleton.name} skeleton; "
        "name one that fits by --skeleton FILE: JSON or npz with joint_names, parents and offsets in metres"
    )


def _places(motion: NDArray[np.float32], layout: Layout, skeleton: Skeleton) -> NDArray[np.float64]:
    places = joint_places(motion, layout, skeleton)
    assert places is not None  # the tokenizer's own rotations are among the layout's
    return places
