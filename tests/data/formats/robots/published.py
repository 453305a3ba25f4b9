"""Made motion of Unitree's G1 in the published forms of csv files."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

LEG = ("hip_pitch", "hip_roll", "hip_yaw", "knee", "ankle_pitch", "ankle_roll")
ARM = ("shoulder_pitch", "shoulder_roll", "shoulder_yaw", "elbow", "wrist_roll", "wrist_pitch", "wrist_yaw")
G1_JOINTS = tuple(
    f"{name}_joint"
    for name in (
        *(f"{side}_{joint}" for side in ("left", "right") for joint in LEG),
        *("waist_yaw", "waist_roll", "waist_pitch"),
        *(f"{side}_{joint}" for side in ("left", "right") for joint in ARM),
    )
)
"""The 29 joints of G1 in the order of LAFAN1's README.md and of whole_body_tracking's `csv_to_npz.py`."""
BONES_HEADER = (
    *("Frame", "root_translateX", "root_translateY", "root_translateZ"),
    *("root_rotateX", "root_rotateY", "root_rotateZ"),
    *(f"{name}_dof" for name in G1_JOINTS),
)


class Motion(NamedTuple):
    places: np.ndarray
    """`[frames, 3]` metres, z up."""
    turns: Rotation
    angles: np.ndarray
    """`[frames, joints]` radians."""


def walk(frames: int = 60, seed: int = 0, fps: float = 30, joints: int = 29) -> Motion:
    rng = np.random.default_rng(seed)
    time = np.arange(frames) / fps
    angles = 0.4 * np.sin(2 * np.pi * (time[:, None] * rng.uniform(0.3, 1, joints) + rng.uniform(size=joints)))
    heading = 0.4 * time + rng.uniform(-2, 2)
    turns = Rotation.from_euler("xyz", np.stack([0.1 * np.sin(time), 0.05 * np.cos(time), heading], axis=1))
    places = np.stack([0.5 * time + seed, 0.1 * np.sin(time), 0.78 + 0.02 * np.sin(3 * time)], axis=1)
    return Motion(places, turns, angles)


def write_lafan1(file: Path, motion: Motion) -> Path:
    """Writes x, y, z, the quaternion x, y, z, w, and the angles, without a header."""
    return _write(file, np.concatenate([motion.places, motion.turns.as_quat(), motion.angles], axis=1))


def write_bones(file: Path, motion: Motion, header: Sequence[str] = BONES_HEADER) -> Path:
    """Writes BONES-SEED's header, the frame's number, centimetres, and degrees about the fixed axes x, y, z."""
    angles = np.degrees(motion.angles)
    turns = motion.turns.as_euler("xyz", degrees=True)
    return _write(file, np.column_stack([np.arange(len(angles)), 100 * motion.places, turns, angles]), header)


def write_named(file: Path, motion: Motion, header: Sequence[str]) -> Path:
    """Writes a header, and LAFAN1's columns."""
    return _write(file, np.concatenate([motion.places, motion.turns.as_quat(), motion.angles], axis=1), header)


def _write(file: Path, values: np.ndarray, header: Sequence[str] = ()) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [",".join(header)] if header else []
    is_counted = bool(header) and header[0] == "Frame"
    for row in values.tolist():
        cells = [f"{number:.6f}" for number in row]
        lines.append(",".join([str(int(row[0])), *cells[1:]] if is_counted else cells))
    file.write_text("\n".join(lines) + "\n")
    return file
