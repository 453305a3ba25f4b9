"""Writes made motion for the examples: BVH files of a small figure that walks almost on the spot.

    python examples/made_motion.py runs/example/bvh

A folder that holds BVH files is left as it is. Lengths are in centimetres and angles in degrees.
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FPS = 60
_SIDES = (("Left", 1), ("Right", -1))
JOINTS: list[tuple[str, str, tuple[float, float, float], tuple[float, float, float]]] = [
    ("Hips", "", (0, 0, 0), (2, 4, 2)),
    ("Spine", "Hips", (0, 12, 0), (3, 6, 3)),
    ("Chest", "Spine", (0, 22, 0), (3, 6, 3)),
    ("Neck", "Chest", (0, 22, 0), (4, 4, 2)),
    ("Head", "Neck", (0, 9, 0), (6, 9, 4)),
    *((f"{side}Arm", "Chest", (18 * sign, 18, 0), (30 * sign, 10, 8)) for side, sign in _SIDES),
    *((f"{side}ForeArm", f"{side}Arm", (28 * sign, 0, 0), (8, 30, 0)) for side, sign in _SIDES),
    *((f"{side}Hand", f"{side}ForeArm", (25 * sign, 0, 0), (10, 10, 10)) for side, sign in _SIDES),
    *((f"{side}UpLeg", "Hips", (9 * sign, -4, 0), (28 * sign, 3, 2)) for side, sign in _SIDES),
    *((f"{side}Leg", f"{side}UpLeg", (0, -42, 0), (24 * sign, 0, 0)) for side, sign in _SIDES),
    *((f"{side}Foot", f"{side}Leg", (0, -42, 0), (12 * sign, 0, 0)) for side, sign in _SIDES),
]
"""Each joint's name, its parent, its place relative to the parent, and how far it turns about x, y and z."""
_REST = {"LeftArm": (0, 0, -70), "RightArm": (0, 0, 70), "LeftLeg": (24, 0, 0), "RightLeg": (24, 0, 0)}
"""Rotations about x, y and z around which these joints swing: arms hang, knees are bent."""


def write_made_bvh(folder: Path, clips: int = 16, seconds: float = 10.0) -> Path:
    """Write BVH files of up to so many seconds into a folder that holds none; return the folder."""
    if not any(folder.glob("*.bvh")):
        folder.mkdir(parents=True, exist_ok=True)
        for clip in range(clips):
            rng = np.random.default_rng(clip)
            motion = _motion(rng, round(seconds * FPS * rng.uniform(0.6, 1)))
            rows = "\n".join(" ".join(f"{value:.4f}" for value in row) for row in motion)
            head = f"MOTION\nFrames: {len(motion)}\nFrame Time: {1 / FPS:.7f}\n"
            (folder / f"clip_{clip:02}.bvh").write_text(f"HIERARCHY\n{_hierarchy('Hips')}\n{head}{rows}\n")
    return folder


def _below(name: str) -> list[str]:
    return [joint for joint, parent, _, _ in JOINTS if parent == name]


def _hierarchy(name: str) -> str:
    """Return the text of a joint and of all joints below it."""
    offset = next(offset for joint, _, offset, _ in JOINTS if joint == name)
    kind, place = ("ROOT", "6 Xposition Yposition Zposition") if name == "Hips" else ("JOINT", "3")
    body = "\n".join(_hierarchy(joint) for joint in _below(name)) or "End Site\n{\nOFFSET 0 6 0\n}"
    channels = f"CHANNELS {place} Zrotation Xrotation Yrotation"
    return f"{kind} {name}\n{{\nOFFSET {' '.join(map(str, offset))}\n{channels}\n{body}\n}}"


def _motion(rng: np.random.Generator, frames: int) -> NDArray[np.float64]:
    """Return one clip `[frames, channels]`, whose step rate, strides and pauses are its own."""
    seconds = np.arange(frames)[:, None] / FPS
    phase = 2 * np.pi * (rng.uniform(0.7, 1.1) * seconds + 0.1 * np.sin(rng.uniform(0.3, 0.9) * seconds))
    strength = 0.7 + 0.3 * np.sin(rng.uniform(0.3, 0.8) * seconds + rng.uniform(0, 6))
    wander = [np.sin(rng.uniform(0.2, 0.6) * seconds + rng.uniform(0, 6)) for _ in range(3)]
    columns = [25 * wander[0], 95 + 2 * np.cos(2 * phase), 25 * wander[1]]
    heading = 40 * wander[2]
    stack = ["Hips"]
    while stack:  # the order of the file: each joint before those below it
        name = stack.pop()
        stack += reversed(_below(name))
        swing = next(swing for joint, _, _, swing in JOINTS if joint == name) * rng.uniform(0.7, 1.3, 3)
        lag = rng.uniform(-0.4, 0.4, 3)
        angles = np.array(_REST.get(name, (0, 0, 0))) + swing * strength * np.sin(phase + lag)
        if name == "Hips":
            angles[:, 1:2] += heading
        columns += [angles[:, 2:3], angles[:, 0:1], angles[:, 1:2]]
    return np.concatenate(columns, axis=1)


if __name__ == "__main__":
    print(write_made_bvh(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/example/bvh")))
