"""Made joint positions in the form of HumanML3D's `new_joints`."""

import numpy as np
from scipy.spatial.transform import Rotation

from ds_rvqvae.motion.layout import SMPLX_PARENTS
from ds_rvqvae.motion.skeleton import builtin_skeleton, forward_kinematics


def turns(frames: int, joints: int, seed: int) -> np.ndarray:
    """Returns small rotations about changing axes, `[frames, joints, 3, 3]`."""
    rng = np.random.default_rng(seed)
    phases, speeds = rng.uniform(0, 6, (2, joints, 3))
    angles = 0.3 * np.sin(phases + 0.05 * speeds * np.arange(frames)[:, None, None])
    return Rotation.from_rotvec(angles.reshape(-1, 3)).as_matrix().reshape(frames, joints, 3, 3)


def positions(frames: int = 40, joints: int = 22, seed: int = 0) -> np.ndarray:
    """Returns positions of a body that walks, float32 `[frames, joints, 3]`, as in `new_joints`: metres, y up."""
    skeleton = builtin_skeleton()
    path = np.stack([0.02 * np.arange(frames) + seed, 0.9 + 0 * np.arange(frames), 0.5 * np.ones(frames)], axis=1)
    found = forward_kinematics(turns(frames, joints, seed), skeleton.offsets[:joints], SMPLX_PARENTS[:joints], path)
    return found.astype(np.float32)
