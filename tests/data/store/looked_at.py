"""Stores for tests of `look`: demo motion, as it is and changed, and features in the form of HumanML3D."""

import numpy as np

from ds_rvqvae.config.data import DataConfig, RulesConfig
from ds_rvqvae.data.store.prepare import prepare_store
from ds_rvqvae.motion.skeleton import builtin_skeleton, forward_kinematics

ALL_KEPT = RulesConfig(reference_pose=False, dropouts=False, max_joint_step=None, max_root_step=None)


def make_store(tmp_path, path, name="store", **settings):
    """Makes a store of motion from which nothing is cut."""
    return prepare_store(DataConfig(path=str(path), **{"rules": ALL_KEPT, **settings}), tmp_path / name)


def demo_with(tmp_path, demo_folder, change, files=6, **settings):
    """Makes a store of demo motion whose arrays were changed."""
    folder = tmp_path / "changed"
    folder.mkdir()
    for file in sorted((demo_folder / "smplxflame_30").glob("*.npz"))[:files]:
        with np.load(file) as arrays:
            np.savez(folder / file.name, **change(dict(arrays)))
    return make_store(tmp_path, folder, **settings)


def humanml3d(folder, mirrored=False, scale=1.0):
    """Writes standing figures that walk in a circle, as HumanML3D's 263 columns."""
    skeleton = builtin_skeleton()
    still = np.broadcast_to(np.eye(3), (1, 55, 3, 3))
    places = forward_kinematics(still, skeleton.offsets)[0, :22] * scale
    if mirrored:
        places[:, 0] *= -1
    rng = np.random.default_rng(0)
    folder.mkdir()
    for index in range(6):
        motion = np.zeros((81, 263), np.float32)
        motion[:, 0], motion[:, 2], motion[:, 3] = np.pi / 80, 0.05 * scale, places[0, 1]
        motion[:, 4:67] = places[1:].reshape(-1)
        motion[:, 67:] = 0.1 * rng.normal(size=(81, 196))
        np.save(folder / f"{index:06d}.npy", motion)
    return folder
