import numpy as np
import pytest

from ds_rvqvae.motion.layout import SMPLX_JOINTS
from ds_rvqvae.motion.sides import partners, sides_at_rest, sides_by_name, sides_of
from ds_rvqvae.motion.skeleton import Skeleton, builtin_skeleton

VERTEBRAE = ["jL5S1", "jL4L3", "jL1T12", "jT9T8", "jT1C7", "jC1Head"]
"""Xsens's names of the joints between vertebrae, which lie on no side."""


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("jLeftHip", "jRightHip"),
        ("FootL1", "FootR1"),
        ("thumb01L", "thumb01R"),
        ("left_hip", "right_hip"),
        ("LeftUpLeg", "RightUpLeg"),
        ("LHipJoint", "RHipJoint"),
        ("LThumb", "RThumb"),
        ("lThigh", "rThigh"),
        ("upper_arm.L", "upper_arm.R"),
        ("thumb.L.001", "thumb.R.001"),
        ("hip_l", "hip_r"),
        ("L_Hip", "R_Hip"),
        ("Bip01 L Finger02", "Bip01 R Finger02"),
        ("mixamorig:LeftArm", "mixamorig:RightArm"),
        ("mixamorigLeftHandIndex1", "mixamorigRightHandIndex1"),
        ("HandL", "HandR"),
        ("lfemur", "rfemur"),
        ("LEFT_WRIST", "RIGHT_WRIST"),
        ("l_arm", "r_arm"),
        ("arm_l", "arm_r"),
        ("L_Arm", "R_Arm"),
        ("lShldr", "rShldr"),
        ("Bip01 L UpperArm", "Bip01 R UpperArm"),
        ("ValveBiped.Bip01_L_UpperArm", "ValveBiped.Bip01_R_UpperArm"),
        ("LThumb1", "RThumb1"),
        ("left_thumb", "right_thumb"),
        ("thumb01.L", "thumb01.R"),
        ("J_Bip_L_UpperArm", "J_Bip_R_UpperArm"),
        ("CC_Base_L_Upperarm", "CC_Base_R_Upperarm"),
        ("upperarm_l_twist", "upperarm_r_twist"),
        ("Arm_Left", "Arm_Right"),
        ("LeftFoot_end", "RightFoot_end"),
        ("UpperLeg_L", "UpperLeg_R"),
        ("LARM", "RARM"),
        ("armleft", "armright"),
        ("左腕", "右腕"),
    ],
)
def test_joints_are_paired_by_name(left, right):
    names = ["Hips", left, "LowerBack", "L5", "lowerneck", right, "root", "upright", "Lower", "Leg", "Reye", *VERTEBRAE]
    found = partners(names, lambda name: pytest.fail(name))
    assert {name: other for name, other in found.items() if name != other} == {left: right, right: left}
    assert dict(zip(names, sides_by_name(names).tolist(), strict=True)) == {
        **dict.fromkeys(names, 0),
        left: 1,
        right: -1,
    }


def test_every_sided_joint_of_smplx_has_its_partner():
    found = partners(SMPLX_JOINTS, lambda name: pytest.fail(name))
    assert all((name != other) == ("left" in name or "right" in name) for name, other in found.items())


def test_a_name_that_surely_tells_a_side_needs_no_partner():
    missed = []
    names = ("Hips", "LeftArm", "Head", "hand_r", "lowerback")
    assert set(partners(names, missed.append)) == set(names) and missed == ["LeftArm", "hand_r"]
    assert sides_by_name(names).tolist() == [0, 1, 0, -1, 0]


def test_names_and_the_figure_at_rest_agree_on_the_built_in_skeleton():
    skeleton = builtin_skeleton()
    expected = [name.startswith("left_") - name.startswith("right_") for name in SMPLX_JOINTS]
    assert sides_at_rest(skeleton).tolist() == sides_by_name(SMPLX_JOINTS).tolist() == expected


def test_a_figure_at_rest_tells_sides_from_its_root():
    offsets = np.array([[5.0, 1, 0], [0.01, 0.1, 0], [0.02, 0, 0], [-0.1, 0, 0]])
    skeleton = Skeleton(("root", "a", "b", "c"), (-1, 0, 1, 0), offsets, "a figure that stands far to the left")
    assert sides_at_rest(skeleton).tolist() == [0, 0, 1, -1]


def test_names_tell_sides_before_places_at_rest_do_and_joints_without_a_side_follow_their_parents():
    # The root stands still on the floor, and the hips are where the body was in the first frame.
    names = ("joint_Root", "Hips", "Shoulder_L", "Hand_L", "Index1", "Shoulder_R", "Index2", "Neck")
    offsets = np.array(
        [[0, 0, 0], [-3.0, 1, 0], [0.2, 0, 0], [0.2, 0, 0], [0.1, 0, 0], [-0.2, 0, 0], [0, 0, 0.1], [0, 0.1, 0]]
    )
    skeleton = Skeleton(names, (-1, 0, 1, 2, 3, 1, 5, 1), offsets, "a body beside its root")
    assert sides_of(skeleton).tolist() == [0, 0, 1, 1, 1, -1, -1, 0]
    nameless = Skeleton(tuple("abcdefgh"), skeleton.parents, offsets, "the same without names")
    assert sides_of(nameless).tolist()[1:] == [0, 1, 1, 1, -1, -1, 0]
