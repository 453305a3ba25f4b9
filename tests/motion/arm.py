"""An arm of three joints as in a skeleton file."""

import json

from ds_rvqvae.data.formats.bvh.skeletons import load_skeleton

ARM = {
    "joint_names": ["shoulder", "elbow", "wrist"],
    "parents": [-1, 0, 1],
    "offsets": [[0, 1, 0], [1, 0, 0], [2, 0, 0]],
}


def load_arm(folder):
    """Writes the arm to a folder and reads it."""
    (folder / "arm.json").write_text(json.dumps(ARM))
    return load_skeleton(folder / "arm.json")
