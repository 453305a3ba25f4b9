"""Names that profiles and command lines share."""

BODY_PARTS = ("upper", "hands", "lower", "lower_trans", "whole", "whole_trans", "face", "face_jaw")
"""Parts of SMPL-X and SMPL-H data that need no definition."""
FOREIGN_FORMATS = ("momask", "gesturelsm", "t2mgpt")
"""Other systems whose tokenizers are read and written, by name; `tokenizer/foreign/` has what is known of each."""
FORMATS = {
    "beat2": "beat2.Beat2Reader",
    "smpl": "smpl.SmplReader",
    "bvh": "bvh_motion.BvhReader",
    "humanml3d": "features.HumanML3DReader",
    "humanml3d_272": "features.HumanML3D272Reader",
    "features": "features.FeatureFolderReader",
    "packed": "packed.PackedReader",
}
"""Motion formats by name, and where the reader of each is: a module of `data/formats/`, and a class in it."""
