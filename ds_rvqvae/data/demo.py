"""Demo motion: four styles of gesturing, made by band-limited oscillators and written as BEAT2 npz files.

It does not replace motion capture. It is smooth and hierarchical (sway, arms, hands, fingers, face), it has pauses, and
the same seed gives the same motion.
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.data.formats.npz import write_npz
from ds_rvqvae.data.formats.smpl.beat2 import CLIP_FOLDER, SPLIT_FILE
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import read_json, whole_folder
from ds_rvqvae.motion.layout import NUM_EXPRESSIONS, SMPLX_JOINTS

FPS = 30
_RECIPE = "demo.json"
_JOINT = {name: index for index, name in enumerate(SMPLX_JOINTS)}
_SIDES = (("left", 1.0), ("right", -1.0))


@dataclass(frozen=True, slots=True)
class _Style:
    """How one style moves; angles in radians, rates in Hz."""

    name: str
    rate: float
    """Of the gestures."""
    swing: float
    """Of the forearm."""
    lift: tuple[float, float]
    """How far the left and the right upper arm leave the body."""
    reach: float
    """How far the upper arms come forward."""
    bend: float
    """Of the elbow while gesturing."""
    wrist: float
    sway: float
    step: float
    """Metres that the figure moves about its place."""


_STYLES = (
    _Style("beat", 1.1, 0.25, (0.30, 0.30), 0.25, 1.15, 0.30, 0.06, 0.03),
    _Style("wave", 1.5, 0.45, (0.10, 1.10), 0.15, 1.30, 0.35, 0.05, 0.02),
    _Style("talk", 0.6, 0.35, (0.40, 0.35), 0.35, 1.00, 0.40, 0.09, 0.06),
    _Style("reach", 0.35, 0.20, (0.60, 0.70), 0.80, 0.55, 0.20, 0.12, 0.15),
)


def write_demo_motion(folder: Path, clips: int = 12, frames: int = 600, seed: int = 0) -> Path:
    """Writes demo motion as a BEAT2 folder: `smplxflame_30/*.npz` at 30 fps and `train_test_split.csv`.

    The folder appears complete or not at all. A folder that holds the same demo motion already is left as it is.

    Returns:
        `folder`.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    folder = Path(folder)
    recipe = {"clips": clips, "frames": frames, "seed": seed, "version": 1}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if _holds(folder, recipe):
            return folder
        try:
            with whole_folder(folder, replace=False) as unfinished:
                _write_all(unfinished, recipe)
        except OSError:
            if not _holds(folder, recipe):  # if it does, another process wrote it first
                raise
    except OSError as error:
        raise UserError(f"{folder}: demo motion cannot be written: {error.strerror or error}") from None
    return folder


def _holds(folder: Path, recipe: dict[str, int]) -> bool:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = read_json(folder / _RECIPE)
    except (OSError, ValueError):
        found = None
    if found != recipe:
        raise UserError(f"{folder}: holds something other than this demo motion; name a new folder")
    return True


def _write_all(folder: Path, recipe: dict[str, int]) -> None:
    (folder / CLIP_FOLDER).mkdir(parents=True)
    names = []
    for index in range(recipe["clips"]):
        style = index % len(_STYLES)
        names.append(f"{style + 1}_{_STYLES[style].name}_0_{index // len(_STYLES) + 1}_{index + 1}")
        motion = _clip(_STYLES[style], recipe["frames"], np.random.default_rng([recipe["seed"], index]))
        with (folder / CLIP_FOLDER / f"{names[-1]}.npz").open("wb") as file:
            write_npz(file, motion)
    with (folder / SPLIT_FILE).open("w", newline="", encoding="utf-8") as lines:
        rows = csv.writer(lines)
        rows.writerow(("id", "type"))
        rows.writerows(zip(names, _splits(len(names)), strict=True))
    (folder / _RECIPE).write_text(json.dumps(recipe) + "\n", encoding="utf-8")


def _splits(clips: int) -> list[str]:
    """Returns the split of each clip: the last sixth is test, the sixth before it val; the first is always train."""
    held = max(1, round(clips / 6))
    val, test = (held if clips > 1 else 0), (held if clips > 2 else 0)
    return ["train"] * (clips - val - test) + ["val"] * val + ["test"] * test


def _clip(style: _Style, frames: int, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Returns one clip with BEAT2's keys and dtypes."""
    seconds = np.arange(frames) / FPS
    poses = np.zeros((frames, len(SMPLX_JOINTS), 3))
    activity = _phrases(rng, seconds)
    _move_body(poses, style, seconds, rng)
    for index, (side, sign) in enumerate(_SIDES):
        _move_arm(poses, side, sign, style, style.lift[index], activity, seconds, rng)
    speech = _oscillate(rng, seconds, 2.5, 1)[:, 0] * activity
    poses[:, _JOINT["jaw"], 0] = 0.06 + 0.05 * speech
    moods = np.concatenate([_oscillate(rng, seconds, 0.5, 5), speech[:, None]], axis=1)
    # All clips show the same face; they differ in how they use its few muscles.
    muscles = (
        np.random.default_rng(55).normal(size=(6, NUM_EXPRESSIONS)) * 0.4 / np.sqrt(1 + np.arange(NUM_EXPRESSIONS))
    )
    walk = _oscillate(rng, seconds, 0.15, 2) * style.step
    bob = 0.01 * _oscillate(rng, seconds, style.rate, 1)[:, 0] * activity
    return {
        "betas": np.zeros(300, np.float32),
        "poses": poses.reshape(frames, -1).astype(np.float32),
        "expressions": moods @ muscles,
        "trans": np.stack([walk[:, 0], 0.95 + bob, walk[:, 1]], axis=1),
        "model": np.array("smplx2020"),
        "gender": np.array("neutral"),
        "mocap_frame_rate": np.array(FPS, np.int32),
    }


def _oscillate(
    rng: np.random.Generator, seconds: NDArray[np.float64], rate: float, channels: int
) -> NDArray[np.float64]:
    """Returns band-limited noise of about unit size, `[frames, channels]`: four sines per channel near `rate` Hz."""
    rates = rate * rng.uniform(0.6, 1.3, size=(4, 1, channels))
    phases = rng.uniform(0, 2 * np.pi, size=(4, 1, channels))
    sines = np.sin(2 * np.pi * rates * seconds[:, None] + phases)
    noise: NDArray[np.float64] = sines.sum(axis=0) / np.sqrt(2)
    return noise


def _phrases(rng: np.random.Generator, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns how strongly the figure gestures, 0 to 1, `[frames]`: phrases and pauses with soft edges."""
    gate = np.zeros(len(seconds))
    start = rng.uniform(0, 0.6)
    while start < len(seconds) / FPS:
        stop = start + rng.uniform(1.8, 4.0)
        gate[(seconds >= start) & (seconds < stop)] = rng.uniform(0.75, 1.0)
        start = stop + rng.uniform(0.5, 1.5)
    edge = np.hanning(int(0.6 * FPS) + 2)
    return np.convolve(np.pad(gate, len(edge), mode="edge"), edge / edge.sum(), mode="same")[len(edge) : -len(edge)]


def _move_body(
    poses: NDArray[np.float64], style: _Style, seconds: NDArray[np.float64], rng: np.random.Generator
) -> None:
    """Spreads sway over the spine, takes it back at the head, and shifts the weight from leg to leg."""
    sway = style.sway * _oscillate(rng, seconds, 0.25, 3)
    poses[:, _JOINT["pelvis"]] = 0.5 * sway
    for joint in ("spine1", "spine2", "spine3"):
        poses[:, _JOINT[joint]] = sway / 3
    nod = 0.06 * _oscillate(rng, seconds, style.rate, 3)
    poses[:, _JOINT["neck"]] = nod - 0.4 * sway
    poses[:, _JOINT["head"]] = 0.6 * nod - 0.4 * sway
    for side, sign in _SIDES:
        knee = 0.12 * (1 + np.tanh(sign * 2 * sway[:, 2] / style.sway))
        poses[:, _JOINT[f"{side}_hip"], 0] = -0.5 * knee
        poses[:, _JOINT[f"{side}_hip"], 2] = -0.5 * sway[:, 2]
        poses[:, _JOINT[f"{side}_knee"], 0] = knee
        poses[:, _JOINT[f"{side}_ankle"], 0] = -0.5 * knee


def _move_arm(
    poses: NDArray[np.float64],
    side: str,
    sign: float,
    style: _Style,
    lift: float,
    activity: NDArray[np.float64],
    seconds: NDArray[np.float64],
    rng: np.random.Generator,
) -> None:
    """Lets an arm hang in pauses and rise in phrases; each joint down the chain repeats the beat a little later."""
    seed = rng.integers(2**32)
    beats = [_oscillate(np.random.default_rng(seed), seconds - lag, style.rate, 2) for lag in (0, 0.07, 0.14)]
    slow = _oscillate(rng, seconds, 0.3, 3)
    up = activity * lift * (1 + 0.15 * slow[:, 0])
    shoulder = poses[:, _JOINT[f"{side}_shoulder"]]
    shoulder[:, 1] = -sign * activity * style.reach * (1 + 0.2 * slow[:, 1])
    shoulder[:, 2] = -sign * (1.3 - up + 0.12 * activity * beats[0][:, 0] * style.swing)
    poses[:, _JOINT[f"{side}_collar"], 2] = sign * 0.15 * up
    bend = 0.25 + activity * (style.bend + style.swing * beats[1][:, 0])
    poses[:, _JOINT[f"{side}_elbow"], 1] = -sign * bend
    poses[:, _JOINT[f"{side}_elbow"], 0] = 0.3 * activity * style.swing * beats[1][:, 1]
    wrist = poses[:, _JOINT[f"{side}_wrist"]]
    wrist[:, 2] = -sign * activity * style.wrist * beats[2][:, 0]
    wrist[:, 0] = 0.4 * activity * style.wrist * slow[:, 2]
    curl = 0.35 + 0.25 * np.tanh(slow[:, 2] - activity)
    for finger, share in (("index", 0.7), ("middle", 0.9), ("ring", 1.0), ("pinky", 1.1)):
        for bone in (1, 2, 3):
            poses[:, _JOINT[f"{side}_{finger}{bone}"], 2] = -sign * share * curl
    poses[:, _JOINT[f"{side}_thumb1"], 1] = sign * 0.4 * curl
