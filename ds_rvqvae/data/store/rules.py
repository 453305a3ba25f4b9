"""Rules that find frames without valid motion in a file, and the clips that remain when these are cut out."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import RulesConfig
from ds_rvqvae.data.formats.base import Reader
from ds_rvqvae.motion.clip import SPLITS, Clip, Quarantined, Take, check_finite, piece_name, spans
from ds_rvqvae.motion.layout import Layout, rotation_columns
from ds_rvqvae.motion.rotations import rotation_6d_to_matrix

_UNTURNED = 2 * np.radians(0.5) ** 2
"""Largest squared distance of two 6D rotations that differ by half a degree (about z; about x it is half of it)."""
_IDENTITY = np.array([1, 0, 0, 0, 1, 0.0])
_SAMPLED = 256
"""Frames, spread over the recording, from which the moving joints are found."""
_BLOCK = 256
"""Frames examined at a time, so that intermediate results stay in the processor's cache."""


class Cut(NamedTuple):
    """The clips of a `Take` after cutting, and what was cut."""

    clips: list[Clip]
    quarantined: list[Quarantined]


class _Fault(NamedTuple):
    rule: str
    start: int
    stop: int
    reason: str


def cut_take(reader: Reader, take: Take, rules: RulesConfig) -> Cut:
    """Cuts frames without valid motion out of a take; returns the clips that remain, and what was cut.

    Rules examine the file's own frames, before resampling. If only the ends are cut, the clip keeps the take's name. If
    several spans remain, those that are long enough are called name#0, name#1, … Frames beside a jump are all kept.

    Raises:
        ClipError: motion that cannot be resampled.
    """
    file = reader.file_of(take.name)
    if take.split not in (None, *SPLITS):
        reason = f"its split is {take.split!r}, none of {', '.join(SPLITS)}"
        return Cut([], [Quarantined(file, "split", None, reason)])
    pieces, faults = find_pieces(take, rules)
    clips: list[Clip] = []
    longest = 0
    for start, stop in pieces:
        name = take.name if len(pieces) == 1 else piece_name(take.name, len(clips))
        clip = reader.clip(take, name, start, stop)
        if len(clip.motion) < rules.min_frames:
            longest = max(longest, len(clip.motion))
            faults.append(_Fault("too_short", start, stop, _too_short(len(clip.motion), reader, rules)))
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            certain = np.isfinite(clip.motion.sum())  # a sum is cheap; each value is checked only if it overflows
        if not certain:
            check_finite(clip.motion)
        clips.append(clip)
    if not clips:
        rule, reason = _nothing_left(faults, len(take.motion), _too_short(longest, reader, rules))
        return Cut([], [Quarantined(file, rule, None, reason)])
    faults.sort(key=lambda fault: (fault.start, fault.stop))
    return Cut(clips, [Quarantined(file, fault.rule, (fault.start, fault.stop), fault.reason) for fault in faults])


def find_pieces(take: Take, rules: RulesConfig) -> tuple[list[tuple[int, int]], list[_Fault]]:
    """Returns the spans of valid motion in a take, as first frame and the one after the last, and all faults."""
    facts = _measure(take.motion, rotation_columns(take.layout))
    faults: list[_Fault] = []
    bad = ~facts.finite
    faults += [_Fault("not_finite", *run, "NaN or infinite values") for run in _runs(bad)]
    if rules.dropouts:
        empty = (facts.zero if take.empty is None else take.empty) & ~bad
        faults += [_Fault("dropouts", *run, "every value is zero") for run in _runs(empty)]
        bad |= empty
    if rules.reference_pose:
        pose = _reference_pose(take, bad)
        reason = "a reference pose (most of the moving joints are not rotated)"
        faults += [_Fault("reference_pose", *run, reason) for run in _runs(pose)]
        bad |= pose
    comparable = ~(bad[1:] | bad[:-1])
    jumps = np.zeros(len(comparable), bool)
    for rule, steps, words in _steps(take, rules, facts, comparable):
        limit = getattr(rules, rule)
        over = comparable & (steps > limit)
        faults += [_jump(rule, *run, words(steps[run[0] : run[1]])) for run in _runs(over)]
        jumps |= over
    bad[1:-1] |= jumps[1:] & jumps[:-1]  # a single frame between two jumps belongs to no piece
    starts = ~bad & np.concatenate([[True], bad[:-1] | jumps])[: len(bad)]
    stops = ~bad & np.concatenate([bad[1:] | jumps, [True]])[-len(bad) :]
    return list(zip(np.flatnonzero(starts).tolist(), (np.flatnonzero(stops) + 1).tolist(), strict=True)), faults


def _runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Returns where a mask is true: for each run, its first index and the one after its last."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _jump(rule: str, first: int, after: int, words: str) -> _Fault:
    """Returns the fault of one jump from frame `first` to the next, or of several consecutive ones."""
    if after == first + 1:
        return _Fault(rule, first, after + 1, f"jump between frames {first} and {after}: {words}")
    return _Fault(rule, first, after + 1, f"jumps between all frames from {first} to {after}: {words}")


def _too_short(frames: int, reader: Reader, rules: RulesConfig) -> str:
    some = f"{frames} frame{'' if frames == 1 else 's'}"
    return f"{some} at {reader.fps:g} fps, fewer than the {rules.min_frames} a clip needs"


def _nothing_left(faults: list[_Fault], frames: int, too_short: str) -> tuple[str, str]:
    """Returns, for a take without any usable clip, the rule that cuts most frames, and the reasons of all rules."""
    cuts = [fault for fault in faults if fault.rule != "too_short"]
    if not cuts:
        return "too_short", too_short
    taken: dict[str, int] = {}
    for fault in faults:
        taken[fault.rule] = taken.get(fault.rule, 0) + fault.stop - fault.start
    words = [f"the longest piece left has {too_short}"] if "too_short" in taken else []
    for rule in dict.fromkeys(fault.rule for fault in cuts):
        mine = [fault for fault in cuts if fault.rule == rule]
        if rule.startswith("max_"):
            words.append(mine[0].reason + (f" (and {len(mine) - 1} more)" if len(mine) > 1 else ""))
        else:
            where = np.concatenate([np.arange(fault.start, fault.stop) for fault in mine])
            words.append(f"{mine[0].reason} in {len(where)} of {frames} frames: {spans(where)}")
    return max(taken, key=taken.__getitem__), "; ".join(words)


class _Facts(NamedTuple):
    """Facts from one pass over all numbers of a take."""

    finite: NDArray[np.bool_]
    """bool `[frames]`: every column is finite as float32."""
    zero: NDArray[np.bool_]
    """bool `[frames]`: every column is zero."""
    step: NDArray[np.float32]
    """float32 `[frames - 1]`: squared distance of the 6D rotations of neighbouring frames, mean over rotations."""
    uneven: NDArray[np.bool_]
    """bool `[frames]`: the vectors of its 6D rotations are not of unit length, so that `step` bounds no angle."""


def _measure(motion: NDArray[Any], rotations: NDArray[np.int64]) -> _Facts:
    """Returns facts of motion `[frames, columns]`, reading each number once; `rotations`: columns `[rotations, 6]`."""
    frames, count = len(motion), len(rotations)
    finite, zero, uneven = np.ones(frames, bool), np.zeros(frames, bool), np.zeros(frames, bool)
    step = np.zeros(max(frames - 1, 0), np.float32)
    columns = _as_slice(rotations.reshape(-1))
    for start in range(0, frames, _BLOCK):
        stop = min(start + _BLOCK, frames)
        with np.errstate(over="ignore", invalid="ignore"):
            block = motion[start : stop + 1].astype(np.float32, copy=False)  # one more, for the step to the next block
            squares = np.einsum("ij,ij->i", block, block)[: stop - start]
            for row in np.flatnonzero(~np.isfinite(squares)):
                finite[start + row] = np.isfinite(block[row]).all()
            for row in np.flatnonzero(squares == 0):
                zero[start + row] = not motion[start + row].any()
            if count:
                turned = block[:, columns]
                change = turned[1:] - turned[:-1]
                step[start : start + len(change)] = np.einsum("ij,ij->i", change, change) / count
                lengths = np.einsum("ij,ij->i", turned, turned)[: stop - start]
                uneven[start:stop] = ~(np.abs(lengths - 2 * count) < 2e-3 * count)
    return _Facts(finite, zero, step, uneven)


def _as_slice(columns: NDArray[np.int64]) -> NDArray[np.int64] | slice:
    """Returns columns as a slice if they are consecutive, because a slice of the motion is not copied."""
    if len(columns) and (np.diff(columns) == 1).all():
        return slice(int(columns[0]), int(columns[-1]) + 1)
    return columns


def _reference_pose(take: Take, bad: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns bool `[frames]`: leading frames of one pose in which over half of the moving joints are not rotated.

    A joint moves if it is rotated in most frames, and not always by the same rotation. Bad frames before or between are
    skipped. All the frames must show the same pose, because in some clips lost joints are at rest during motion, too.
    """
    found = np.zeros(len(bad), bool)
    columns = rotation_columns(take.layout)
    good = np.flatnonzero(~bad)
    if not len(columns) or len(good) < 2:
        return found
    sampled = good[np.unique(np.linspace(0, len(good) - 1, _SAMPLED).astype(np.int64))]
    poses = take.motion[sampled[:, None], columns.reshape(-1)].reshape(len(sampled), -1, 6).astype(np.float64)
    moving = (_near(poses, _IDENTITY).mean(axis=0) < 0.5) & ~_near(poses, poses[len(poses) // 2]).all(axis=0)
    if moving.sum() < 2:  # a jaw alone is often closed at first
        return found
    first = None
    for frame in good:
        pose = take.motion[frame][columns].astype(np.float64)
        held = first is None or _near(pose, first).all()
        if not held or _near(pose[moving], _IDENTITY).mean() <= 0.5:
            break
        first = pose if first is None else first
        found[frame] = True
    return found


def _near(rotation_6d: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Returns whether 6D rotations `[..., 6]` are within about half a degree of others: bool `[...]`."""
    near: NDArray[np.bool_] = np.square(rotation_6d - other).sum(axis=-1) <= _UNTURNED
    return near


Words = Callable[[NDArray[np.float64]], str]


def _steps(
    take: Take, rules: RulesConfig, facts: _Facts, comparable: NDArray[np.bool_]
) -> list[tuple[str, NDArray[np.float64], Words]]:
    """Returns, for each rule about jumps, its name, each step's size `[frames - 1]`, and words for the largest step."""
    steps: list[tuple[str, NDArray[np.float64], Words]] = []
    columns = rotation_columns(take.layout)
    hinges = [part.start for part in take.layout if part.kind == "angle"]
    if rules.max_joint_step is not None and (len(columns) or hinges):
        # If a joint turns by x, its 6D rotations are at least 2 sin(x / 2) apart, and x <= pi sin(x / 2). So the mean
        # angle is at most pi / 2 times the root of the mean squared distance. Few steps need the angles themselves.
        bound = np.degrees(np.pi / 2 * np.sqrt(facts.step))
        uneven = facts.uneven[1:] | facts.uneven[:-1]
        near = comparable if hinges else comparable & (uneven | ~(bound < 0.999 * rules.max_joint_step))
        asked = np.flatnonzero(near)
        angles = np.zeros(len(comparable))
        if len(columns):
            angles[asked] = _mean_angles(take.motion, columns, asked)
        if hinges:
            with np.errstate(over="ignore", invalid="ignore"):
                turned = np.degrees(np.abs(np.diff(take.motion[:, hinges].astype(np.float64), axis=0)))
            angles = (len(columns) * angles + turned.sum(axis=1)) / (len(columns) + len(hinges))
        steps.append(("max_joint_step", angles, lambda some: f"joints turn {some.max():.0f} degrees on average"))
    if rules.max_root_step is not None:
        distances = _root_steps(take)
        steps.append(("max_root_step", distances, lambda some: f"the root moves {some.max():.3g} metres"))
    return steps


def _mean_angles(motion: NDArray[Any], columns: NDArray[np.int64], frames: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns by how many degrees joints turn from each of `frames` to the next, mean over rotations valid in both."""
    means = np.zeros(len(frames))
    for start in range(0, len(frames), _BLOCK):
        some = frames[start : start + _BLOCK]
        with np.errstate(over="ignore", invalid="ignore"):
            matrices = [rotation_6d_to_matrix(motion[rows][:, columns].astype(np.float64)) for rows in (some, some + 1)]
            traces = np.einsum("fjab,fjab->fj", *matrices)
            lengths = [np.einsum("fjab,fjab->fj", one, one) for one in matrices]
        real = (np.abs(lengths[0] - 3) < 1e-3) & (np.abs(lengths[1] - 3) < 1e-3)
        angles = np.degrees(np.arccos(np.clip((np.where(real, traces, 3) - 1) / 2, -1, 1)))
        means[start : start + _BLOCK] = angles.sum(axis=1) / np.maximum(real.sum(axis=1), 1)
    return means


def _root_steps(take: Take) -> NDArray[np.float64]:
    """Returns how far the root moves from each frame to the next, metres, float64 `[frames - 1]`; 0 if unknown.

    If several joints have positions, the largest step counts.
    """
    steps = np.zeros(max(len(take.motion) - 1, 0))
    for vectors in _root_vectors(take.motion, take.layout, take.has_positions):
        with np.errstate(over="ignore", invalid="ignore"):
            steps = np.fmax(steps, np.sqrt(np.einsum("ij,ij->i", vectors, vectors)))
    return steps


def _root_vectors(motion: NDArray[Any], layout: Layout, has_positions: bool) -> list[NDArray[np.float64]]:
    """Returns the movement from each frame to the next, float64 `[frames - 1, 3]`, per joint with positions."""
    vectors = []
    for part in layout:
        if part.kind != "position" and (part.kind != "translation" or part.width != 3):
            continue
        values = motion[:, part.start : part.stop].astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            way = np.diff(values, axis=0)
        if part.kind == "translation" and not has_positions:
            way[:, [0, 2]] = values[1:, [0, 2]]  # velocities: metres per frame
        vectors.append(way)
    return vectors
