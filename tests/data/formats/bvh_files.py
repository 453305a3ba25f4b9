"""Small BVH files for tests: joints with channels in several orders, a position on one that is no root."""

from pathlib import Path

import numpy as np

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
    """Angles of up to 60 degrees, and a root that walks; line ends of Windows."""
    rng = np.random.default_rng(seed)
    values = 40 * np.sin(rng.uniform(0, 6, CHANNELS) + np.arange(frames)[:, None] * rng.uniform(0.05, 0.3, CHANNELS))
    values[:, :3] = np.cumsum(rng.uniform(-1, 1, (frames, 3)), axis=0)
    values[:, 2] += 90
    rows = "\n".join(" ".join(f"{value:.5f}" for value in row) for row in values)
    text = f"{HIERARCHY}MOTION\nFrames: {frames}\nFrame Time: {1 / fps:.7f}\n{rows}\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.replace("\n", "\r\n").encode())
    return file
