"""Motion files of SMPL's family in their published forms; `ds_rvqvae.data.formats.smpl` names the sources.

Rotations are written by scipy and plain numpy, not by the project's own code.
"""

from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

AIST_NAMES = tuple(f"gBR_sBM_cAll_d04_mBR0_ch0{index}" for index in range(1, 6))
MOTIONX_NAMES = (
    "humanml/000001",
    "humanml/M000002",
    "GRAB/s1/cup_lift",
    "idea400/subset_0003/Number_14_During_Sitting",
)


def turning(frames: int, joints: int, seed: int) -> np.ndarray:
    """Returns axis-angle rotations that change slowly, `[frames, joints, 3]`; the first joint stands upright."""
    rng = np.random.default_rng(seed)
    vectors = 0.3 * rng.normal(size=(1, joints, 3)) + np.cumsum(0.01 * rng.normal(size=(frames, joints, 3)), axis=0)
    vectors[:, 0] *= 0.1
    return vectors


def path(frames: int, seed: int, height: float = 0.95) -> np.ndarray:
    """Returns a root's positions in metres, y up, `[frames, 3]`."""
    steps = np.random.default_rng(seed + 100).normal(size=(frames, 3)) * 0.004
    return np.array([0.3, height, -0.2]) + np.cumsum(steps, axis=0)


def in_form(vectors: np.ndarray, form: str) -> np.ndarray:
    """Converts axis-angle `[frames, joints, 3]` to `[frames, joints, …]` of a form, as its usual libraries write it."""
    matrices = Rotation.from_rotvec(vectors.reshape(-1, 3)).as_matrix().reshape(*vectors.shape[:2], 3, 3)
    return {
        "axis_angle": vectors,
        "matrix": matrices,
        "rows_6d": matrices[:, :, :2].reshape(*vectors.shape[:2], 6),  # pytorch3d.transforms.matrix_to_rotation_6d
        "columns_6d": matrices[:, :, :, :2].reshape(*vectors.shape[:2], 6),  # SPIN's and VIBE's rot6d
    }[form]


def save(file: Path, **arrays: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **arrays)
    return file


def smpl_arrays(frames: int = 80, seed: int = 0, fps: float = 60.0) -> dict[str, np.ndarray]:
    """Returns a clip of SMPL's 24 joints with AMASS's keys."""
    return {
        "trans": path(frames, seed),
        "gender": np.array("male"),
        "mocap_framerate": np.array(fps),
        "betas": np.linspace(-1, 1, 10),
        "poses": turning(frames, 24, seed).reshape(frames, 72),
    }


def split_arrays(
    frames: int = 80, seed: int = 0, form: str = "axis_angle", flat: bool = True, names: str = "smplx"
) -> dict[str, np.ndarray]:
    """Returns a clip of SMPL-X with a key per group of joints.

    Args:
        names: `smplx` for the keys of that library's models, `amass` for those of AMASS and human_body_prior.
    """
    vectors = turning(frames, 55, seed)
    eyes, hands = slice(23, 25), slice(25, 55)
    groups = {
        "smplx": {
            "global_orient": slice(0, 1),
            "body_pose": slice(1, 22),
            "left_hand_pose": slice(25, 40),
            "right_hand_pose": slice(40, 55),
            "jaw_pose": slice(22, 23),
            "leye_pose": slice(23, 24),
            "reye_pose": slice(24, 25),
        },
        "amass": {
            "root_orient": slice(0, 1),
            "pose_body": slice(1, 22),
            "pose_hand": hands,
            "pose_jaw": slice(22, 23),
            "pose_eye": eyes,
        },
    }[names]
    arrays = {}
    for key, joints in groups.items():
        values = in_form(vectors[:, joints], form).astype(np.float32)
        arrays[key] = values.reshape(frames, -1) if flat else values
    arrays["transl" if names == "smplx" else "trans"] = path(frames, seed).astype(np.float32)
    return {"betas": np.tile(np.linspace(-1, 1, 10), (frames, 1)), **arrays, "fps": np.array(30)}


def aist_arrays(frames: int = 120, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns a clip of AIST++ with the keys, shapes and dtypes of its pickles."""
    return {
        "smpl_loss": np.array([0.012], np.float32),
        "smpl_poses": turning(frames, 24, seed).reshape(frames, 72).astype(np.float32),
        "smpl_scaling": np.array([93.75], np.float32),
        "smpl_trans": (93.75 * path(frames, seed)).astype(np.float32),
    }


def write_aist(folder: Path) -> Path:
    """Writes AIST++'s folder with `motions/` as npz; the fifth clip is in `ignore_list.txt`."""
    for seed, name in enumerate(AIST_NAMES):
        save(folder / "motions" / f"{name}.npz", **aist_arrays(seed=seed))
        save(folder / "keypoints3d" / f"{name}.npz", keypoints3d=np.zeros((120, 17, 3)))
    (folder / "ignore_list.txt").write_text(f"{AIST_NAMES[4]}\n")
    (folder / "splits").mkdir()
    lists = {"crossmodal": (0, 1, 2), "pose": (2, 0, 1)}
    for kind, clips in lists.items():
        for split, clip in zip(("train", "val", "test"), clips, strict=True):
            (folder / "splits" / f"{kind}_{split}.txt").write_text(f"{AIST_NAMES[clip]}\n")
    return folder


def motionx_matrix(frames: int = 80, seed: int = 0) -> np.ndarray:
    """Returns a clip of Motion-X, `[frames, 322]` float32."""
    rng = np.random.default_rng(seed)
    joints = turning(frames, 53, seed).reshape(frames, 159)
    parts = [
        joints,  # root_orient, pose_body, pose_hand, pose_jaw
        0.3 * rng.normal(size=(frames, 50)),  # face_expr
        np.tile(rng.normal(size=100), (frames, 1)),  # face_shape
        path(frames, seed),  # trans
        np.tile(rng.normal(size=10), (frames, 1)),  # betas
    ]
    return np.concatenate(parts, axis=1).astype(np.float32)


def write_motionx(folder: Path) -> Path:
    """Writes Motion-X's folder with its lists; the last clip is in none of them."""
    for seed, name in enumerate(MOTIONX_NAMES):
        file = folder / "motion_data" / "smplx_322" / f"{name}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, motionx_matrix(seed=seed))
    face = folder / "face_motion_data" / "smplx_322" / "humanml" / "000001.npy"
    face.parent.mkdir(parents=True)
    np.save(face, np.zeros((80, 153), np.float32))
    for split, name in zip(("train", "val", "test"), MOTIONX_NAMES, strict=False):
        (folder / f"{split}.txt").write_text(f"{name}\n")
    text = folder / "texts" / "semantic_labels" / "humanml" / "000001.txt"
    text.parent.mkdir(parents=True)
    text.write_text("a person walks\n")
    return folder
