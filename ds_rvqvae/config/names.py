"""Names that both profiles and command lines use."""

BODY_PARTS = ("upper", "hands", "lower", "lower_trans", "whole", "whole_trans", "face", "face_jaw")
"""Body parts of SMPL-X and SMPL-H data that need no definition."""
FOREIGN_FORMATS = ("momask", "gesturelsm", "t2mgpt")
"""Other systems whose tokenizers can be read and written; `tokenizer/foreign/` describes each."""
FORMATS = {
    "beat2": "smpl.beat2.Beat2Reader",
    "smpl": "smpl.poses.SmplReader",
    "bvh": "bvh.reader.BvhReader",
    "humanml3d": "features.HumanML3DReader",
    "humanml3d_272": "features.HumanML3D272Reader",
    "aist": "smpl.aist.AistReader",
    "motionx": "smpl.motionx.MotionXReader",
    "joints": "joints.reader.JointsReader",
    "robot_csv": "robots.csv.RobotCsvReader",
    "robot_npz": "robots.npz.RobotNpzReader",
    "features": "features.FeatureFolderReader",
    "packed": "packed.PackedReader",
}
"""Motion formats by name, each with its reader: a module of `data/formats/` and a class in it."""
