"""BVH files for tests: a small figure with channels in several orders and position channels on a joint below the root;
and bodies with the joints that exporters write above them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from ds_rvqvae.data.formats.bvh.file import read_bvh, read_joints

HIERARCHY = """HIERARCHY
ROOT Hips
{
  OFFSET 1.0 90.0 0.0
  CHANNELS 6 Zposition Xposition Yposition Zrotation Xrotation Yrotation
  JOINT LeftArm
  {
    OFFSET 10.0 50.0 0.0
    CHANNELS 3 Yrotation Xrotation Zrotation
    JOINT LeftHand
    {
      OFFSET 60.0 0.0 0.0
      CHANNELS 1 Xrotation
      End Site
      {
        OFFSET 10.0 0.0 0.0
      }
    }
  }
  JOINT LeftLeg
  {
    OFFSET 10.0 -5.0 0.0
    CHANNELS 6 Xposition Yposition Zposition Xrotation Yrotation Zrotation
    End Site
    {
      OFFSET 0.0 -85.0 0.0
    }
  }
}
"""
CHANNELS = 16
JOINTS = ("Hips", "LeftArm", "LeftHand", "LeftLeg")


def write_bvh_motion(file: Path, frames: int = 60, fps: float = 30.0, seed: int = 0) -> Path:
    """Writes angles of up to 60 degrees and a root that walks, with the line ends of Windows."""
    rng = np.random.default_rng(seed)
    values = 40 * np.sin(rng.uniform(0, 6, CHANNELS) + np.arange(frames)[:, None] * rng.uniform(0.05, 0.3, CHANNELS))
    values[:, :3] = np.cumsum(rng.uniform(-1, 1, (frames, 3)), axis=0)
    values[:, 2] += 90
    rows = "\n".join(" ".join(f"{value:.5f}" for value in row) for row in values)
    text = f"{HIERARCHY}MOTION\nFrames: {frames}\nFrame Time: {1 / fps:.7f}\n{rows}\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.replace("\n", "\r\n").encode())
    return file


class Part(NamedTuple):
    """A joint of a generated body; End Sites have no name."""

    name: str
    parent: str
    offset: tuple[float, float, float]
    channels: int = 3


def limb(names: Sequence[str], parent: str, *offsets: tuple[float, float, float]) -> list[Part]:
    """Returns a chain of joints, with an End Site if there is one more offset than names."""
    ends = [*names, ""][: len(offsets)]
    return [Part(name, above, own) for name, above, own in zip(ends, [parent, *names], offsets, strict=False)]


def body(hips: str = "Hips", parent: str = "", channels: int = 6) -> list[Part]:
    """Returns a person 169 units tall, arms stretched out sideways, hips 94 above the lowest point."""
    legs = [
        limb([f"{side}UpLeg", f"{side}Leg", f"{side}Foot"], hips, (x, -5, 0), (0, -42, 0), (0, -42, 0), (0, -5, 15))
        for side, x in (("Left", 9), ("Right", -9))
    ]
    arms = [
        limb([f"{side}Arm", f"{side}ForeArm"], "Chest", (18 * way, 15, 0), (28 * way, 0, 0), (26 * way, 0, 0))
        for side, way in (("Left", 1), ("Right", -1))
    ]
    spine = limb(["Spine", "Chest"], hips, (0, 12, 0), (0, 25, 0))
    head = limb(["Head"], "Chest", (0, 20, 0), (0, 18, 0))
    return [Part(hips, parent, (3, 95, -2), channels), *legs[0], *legs[1], *spine, *head, *arms[0], *arms[1]]


def snapmogen_body() -> list[Part]:
    """Returns the 24 joints of SnapMoGen's skeleton (`utils/T_Pose.bvh` of its repository), with about its offsets."""

    def limb(names, parent, *offsets):
        chain = [f"{name}_bind_JNT" for name in names.split()]
        parts = [Part(*own) for own in zip(chain, [parent, *chain], offsets, strict=False)]
        return [*parts, Part("", chain[-1], (0, 0, 0))]

    parts = [Part("ROOT", "", (0, 56.02, -5.66), 6)]
    spine = "C_spine0001 C_spine0002 C_spine0003 C_neck0001 C_neck0002 C_head"
    parts += limb(spine, "ROOT", (0, 1.62, 0), (0, 4.94, 0), (0, 4.86, 0), (0, 17.03, 0), (0, 3.25, 0), (0, 5.28, 0))
    for side, x in (("L", 1), ("R", -1)):
        arm = f"{side}_clavicle {side}_armUpper0001 {side}_armLower0001 {side}_hand0001"
        bones = (4.59 * x, 12.07, 0.83), (7.83 * x, 0, -3.45), (16.59 * x, 0, 0), (16.99 * x, 0, 0)
        parts += limb(arm, "C_spine0003_bind_JNT", *bones)
    parts.append(Part("C_pelvis0001_bind_JNT", "ROOT", (0, 0, 0)))
    for side, x in (("L", 1), ("R", -1)):
        leg = f"{side}_legUpper0001 {side}_legLower0001 {side}_foot0001 {side}_foot0002"
        bones = (6.6 * x, -6.03, 0.54), (-0.14 * x, -19.19, 0.04), (-0.13 * x, -18.03, -1.04), (0, -5.39, 9.6)
        parts += limb(leg, "C_pelvis0001_bind_JNT", *bones)
    return parts


_CHANNELS = {
    0: "",
    3: "Zrotation Xrotation Yrotation",
    6: "Xposition Yposition Zposition Zrotation Xrotation Yrotation",
    -3: "Xposition Yposition Zposition",
}


def hierarchy(parts: Sequence[Part], scale: float = 1.0) -> str:
    """Returns the text before MOTION; the first of `parts` is the root."""

    def lines(part: Part, word: str) -> list[str]:
        offset = " ".join(f"{scale * value:.9g}" for value in part.offset)
        inside = [f"OFFSET {offset}"]
        if part.name:
            channels = _CHANNELS[part.channels]
            inside.append(f"CHANNELS {len(channels.split())} {channels}")
            for child in (own for own in parts[1:] if own.parent == part.name):
                inside += lines(child, "JOINT" if child.name else "End Site")
        return [f"{word} {part.name}".strip(), "{", *inside, "}"]

    return "\n".join(["HIERARCHY", *lines(parts[0], "ROOT")]) + "\n"


def write_body(
    file: Path, parts: Sequence[Part], frames: int = 40, seed: int = 0, scale: float = 1.0, still: Sequence[str] = ()
) -> Path:
    """Writes a moving body with smooth angles of up to 50 degrees and changing positions; `still` joints are all zero.

    A joint other than the root whose position channels hold its bone keeps it if that is its OFFSET.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    header = hierarchy(parts, scale)
    file.write_text(f"{header}MOTION\nFrames: 1\nFrame Time: 1\n")
    rng = np.random.default_rng(seed)
    columns = []
    for joint in read_joints(file):
        for channel in joint.channels:
            wave = np.sin(rng.uniform(0, 6) + np.arange(frames) * rng.uniform(0.05, 0.2))
            axis = "XYZ".index(channel[0])
            if joint.name in still:
                wave = 0 * wave
            elif channel.endswith("rotation"):
                wave = 50 * wave
            else:
                wave = scale * 10 * wave + joint.offset[axis]
            columns.append(wave)
    rows = "\n".join(" ".join(f"{value:.7f}" for value in row) for row in np.array(columns).T)
    file.write_text(f"{header}MOTION\nFrames: {frames}\nFrame Time: {1 / 30:.7f}\n{rows}\n")
    return file


def world_of_file(file: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns each named joint's positions `[frames, 3]` and rotations `[frames, 3, 3]` in the world, by the format."""
    bvh = read_bvh(file)
    places: list[np.ndarray] = []
    turns: list[np.ndarray] = []
    column = 0
    for joint in bvh.joints:
        local, own = np.tile(joint.offset, (len(bvh.values), 1)), np.tile(np.eye(3), (len(bvh.values), 1, 1))
        for channel in joint.channels:
            values = bvh.values[:, column]
            if channel.endswith("position"):
                local[:, "XYZ".index(channel[0])] = values
            else:
                own = own @ Rotation.from_euler(channel[0], values, degrees=True).as_matrix()
            column += 1
        if joint.parent < 0:
            places.append(local)
            turns.append(own)
        else:
            places.append(places[joint.parent] + np.einsum("fij,fj->fi", turns[joint.parent], local))
            turns.append(turns[joint.parent] @ own)
    named = [(joint.name, index) for index, joint in enumerate(bvh.joints) if joint.name]
    return {name: places[index] for name, index in named}, {name: turns[index] for name, index in named}
