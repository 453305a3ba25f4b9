"""Measures how many hours of motion each reader reads per second, on one core, from files that it makes.

    python benchmarks/formats.py [--minutes 10] [--rounds 3] [--json [FILE]]

Each format gets clips of one minute at its usual frame rate, in a temporary folder that is removed at the end. A round
opens the reader as `ds-rvqvae prepare` does, reads every clip, applies the rules and resamples to 30 frames per second
(matrices keep their rate); nothing is written. The files were read before, so they come from the system's cache. The
median of the rounds counts; formats take turns, so that all see the same disturbances.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ds_rvqvae.process.command import begin_program, run_program

if __name__ == "__main__":
    begin_program()  # before the slow imports

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.cli.common import add_json_flag, print_result
from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.readers import open_reader
from ds_rvqvae.data.store.rules import cut_take
from ds_rvqvae.motion.skeleton import builtin_skeleton

SECONDS = 60
Content = Callable[[Path, int, np.random.Generator], None]
"""Writes one clip: its file without suffix, its frames, and a source of random numbers."""


def smooth(rng: np.random.Generator, frames: int, columns: int, size: float) -> NDArray[np.float32]:
    """Returns slow random motion `[frames, columns]`."""
    times = np.linspace(0, 2 * np.pi * SECONDS / 4, frames)[:, None]
    return (size * np.sin(times * rng.uniform(0.5, 2, columns) + rng.uniform(0, 6, columns))).astype(np.float32)


def path_of(rng: np.random.Generator, frames: int, height: float) -> NDArray[np.float32]:
    return smooth(rng, frames, 3, 0.3) + np.array([0, height, 0], np.float32)


def smpl(joints: int, rate: float) -> Content:
    def write(file: Path, frames: int, rng: np.random.Generator) -> None:
        poses = smooth(rng, frames, 3 * joints, 0.4)
        arrays = {"poses": poses, "trans": path_of(rng, frames, 1.0), "mocap_frame_rate": np.array(rate)}
        np.savez(file.with_suffix(".npz"), **arrays)

    return write


def split_keys(file: Path, frames: int, rng: np.random.Generator) -> None:
    arrays = {"global_orient": smooth(rng, frames, 3, 0.4), "body_pose": smooth(rng, frames, 69, 0.4)}
    np.savez(file.with_suffix(".npz"), **arrays, transl=path_of(rng, frames, 1.0), fps=np.array(30.0))


def aist(file: Path, frames: int, rng: np.random.Generator) -> None:
    arrays = {"smpl_poses": smooth(rng, frames, 72, 0.4), "smpl_trans": 100 * path_of(rng, frames, 1.0)}
    np.savez(file.with_suffix(".npz"), **arrays, smpl_scaling=np.array([100.0]))


def beat2(file: Path, frames: int, rng: np.random.Generator) -> None:
    arrays = {"poses": smooth(rng, frames, 165, 0.4), "expressions": smooth(rng, frames, 100, 1.0)}
    np.savez(file.with_suffix(".npz"), **arrays, trans=path_of(rng, frames, 1.0), mocap_frame_rate=np.array(30))


def matrices(columns: int) -> Content:
    return lambda file, frames, rng: np.save(file.with_suffix(".npy"), smooth(rng, frames, columns, 0.4))


def positions(file: Path, frames: int, rng: np.random.Generator) -> None:
    skeleton = builtin_skeleton()
    rest = np.zeros((22, 3))
    for joint in range(22):
        rest[joint] = skeleton.offsets[joint] + (rest[skeleton.parents[joint]] if joint else 0)
    moved = rest + smooth(rng, frames, 66, 0.002).reshape(frames, 22, 3) + path_of(rng, frames, 0)[:, None]
    np.save(file.with_suffix(".npy"), moved.astype(np.float32))


def bvh(file: Path, frames: int, rng: np.random.Generator) -> None:
    """Writes 31 joints: a spine of five, two legs and two arms of four, and ten more on the arms."""
    lines = ["HIERARCHY"]

    def joint(name: str, offset: tuple[float, float, float], *below: Callable[[], None]) -> Callable[[], None]:
        def write() -> None:
            is_root = len(lines) == 1
            lines.append(f"{'ROOT' if is_root else 'JOINT'} {name}\n{{\nOFFSET {offset[0]} {offset[1]} {offset[2]}")
            channels = "6 Xposition Yposition Zposition" if is_root else "3"
            lines.append(f"CHANNELS {channels} Zrotation Xrotation Yrotation")
            for other in below:
                other()
            if not below:
                lines.append("End Site\n{\nOFFSET 0 5 0\n}")
            lines.append("}")

        return write

    def limb(side: str, sign: float) -> tuple[Callable[[], None], Callable[[], None]]:
        foot = joint(f"{side}Foot", (0, -40, 0), joint(f"{side}Toe", (0, -5, 12)))
        leg = joint(f"{side}UpLeg", (9 * sign, -5, 0), joint(f"{side}Leg", (0, -40, 0), foot))
        fingers = [joint(f"{side}Finger{index}", (8 * sign, 0, index)) for index in range(5)]
        fore = joint(f"{side}ForeArm", (28 * sign, 0, 0), joint(f"{side}Hand", (25 * sign, 0, 0), *fingers))
        return leg, joint(f"{side}Shoulder", (5 * sign, 15, 0), joint(f"{side}Arm", (12 * sign, 0, 0), fore))

    (left_leg, left_arm), (right_leg, right_arm) = limb("Left", 1), limb("Right", -1)
    head = joint("Neck", (0, 20, 0), joint("Head", (0, 10, 0)))
    spine = joint("Spine", (0, 12, 0), joint("Chest", (0, 15, 0), left_arm, right_arm, head))
    joint("Hips", (0, 95, 0), left_leg, right_leg, spine)()
    joints = sum(line.startswith(("ROOT", "JOINT")) for line in lines)
    values = smooth(rng, frames, 3 + 3 * joints, 20.0)
    values[:, :3] = 100 * path_of(rng, frames, 0.95)
    with file.with_suffix(".bvh").open("w", encoding="utf-8") as content:
        content.write("\n".join(lines) + f"\nMOTION\nFrames: {frames}\nFrame Time: {SECONDS / frames:.8f}\n")
        np.savetxt(content, values, fmt="%.4f")


def robot_csv(file: Path, frames: int, rng: np.random.Generator) -> None:
    root = np.column_stack([smooth(rng, frames, 2, 0.5), smooth(rng, frames, 1, 0.02) + 0.78])
    values = np.column_stack([root, np.tile([0, 0, 0, 1.0], (frames, 1)), smooth(rng, frames, 29, 0.5)])
    np.savetxt(file.with_suffix(".csv"), values, fmt="%.6f", delimiter=",")


FORMATS: dict[str, tuple[str, float, Content]] = {
    "BEAT2, 55 joints and 100 expressions": ("beat2", 30, beat2),
    "SMPL, 24 joints": ("smpl", 30, smpl(24, 30)),
    "SMPL-H of AMASS, 52 joints, 120 fps": ("smpl", 120, smpl(52, 120)),
    "SMPL in split keys": ("smpl", 30, split_keys),
    "AIST++, 60 fps": ("aist", 60, aist),
    "Motion-X, 322 columns": ("motionx", 30, matrices(322)),
    "BVH, 27 joints, 120 fps": ("bvh", 120, bvh),
    "joint positions, 22 joints, 20 fps": ("joints", 20, positions),
    "robots' csv, 36 columns, 30 fps": ("robot_csv", 30, robot_csv),
    "matrices, 263 columns, 20 fps": ("features", 20, matrices(263)),
}
"""By name: the key of the format, its frame rate, and how a clip is written."""
SETTINGS: dict[str, dict[str, Any]] = {"robot_csv": {"csv_units": "metres_radians"}, "joints": {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=int, default=10, help="minutes of motion per format (default: 10)")
    parser.add_argument("--rounds", type=int, default=3)
    add_json_flag(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folders = {name: made(Path(place), index, name, args.minutes) for index, name in enumerate(FORMATS)}
        times: dict[str, list[float]] = {name: [] for name in FORMATS}
        for _ in range(args.rounds + 1):  # the first round warms up
            for name, folder in folders.items():
                times[name].append(read(FORMATS[name][0], folder))
    hours = args.minutes / 60
    result = {name: hours / statistics.median(seconds[1:]) for name, seconds in times.items()}
    width = max(map(len, result))
    print_result(args, result, [f"{name:{width}}  {rate:6.2f} hours per second" for name, rate in result.items()])


def made(place: Path, index: int, name: str, minutes: int) -> Path:
    """Writes a format's clips and returns their folder."""
    key, fps, write = FORMATS[name]
    folder = place / f"{index}" / {"joints": "new_joints", "aist": "motions"}.get(key, "motion")
    folder.mkdir(parents=True)
    for clip in range(minutes):
        write(folder / f"{clip:06}", round(SECONDS * fps), np.random.default_rng(clip))
    return folder


def read(key: str, folder: Path) -> float:
    """Reads all clips of a folder as `prepare` does, and returns the seconds that it took."""
    began = time.perf_counter()
    reader = open_reader(folder, DataConfig(path=str(folder), format=key, **SETTINGS.get(key, {})))
    names = reader.clip_names()
    reader.check(names)
    for name in names:
        cut = cut_take(reader, reader.take(name), reader.config.rules)
        assert cut.clips, (key, cut.quarantined[:1])
    return time.perf_counter() - began


if __name__ == "__main__":
    run_program(main)
