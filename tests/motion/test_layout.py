import json

import numpy as np
import pytest

from ds_rvqvae.config.names import BODY_PARTS
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.layout import (
    BODY_PART_CHANNELS,
    SMPLH_JOINTS,
    SMPLX_JOINTS,
    SMPLX_PARENTS,
    Channels,
    feature_layout,
    joint_layout,
    layout_from_json,
    layout_to_json,
    missing_channels,
    root_channels,
    rotation_columns,
    select_columns,
    smplx_layout,
)

WIDTHS = {"upper": 78, "hands": 180, "lower": 54, "lower_trans": 57, "whole": 312, "whole_trans": 315}
WIDTHS |= {"face": 100, "face_jaw": 106}


def test_the_profile_knows_the_same_body_parts():
    assert tuple(BODY_PART_CHANNELS) == BODY_PARTS


@pytest.mark.parametrize(("body_part", "width"), WIDTHS.items())
def test_body_parts_have_their_width_and_a_layout_of_their_own(body_part, width):
    columns, layout = select_columns(smplx_layout(), body_part)
    assert columns.dtype == np.int64 and len(columns) == len(set(columns.tolist())) == width
    assert layout[0].start == 0 and layout[-1].stop == width
    whole = {channels.name: channels for channels in smplx_layout()}
    for channels in layout:
        there = whole[channels.name]
        assert columns[channels.start : channels.stop].tolist() == list(range(there.start, there.stop))


def test_upper_takes_the_joints_above_the_hips():
    _, layout = select_columns(smplx_layout(), "upper")
    joints = [SMPLX_JOINTS.index(channels.name) for channels in layout]
    assert joints == [3, 6, 9, *range(12, 22)]


def test_smplx_has_its_joints_in_order():
    assert len(SMPLX_JOINTS) == len(set(SMPLX_JOINTS)) == len(SMPLX_PARENTS) == 55
    assert smplx_layout()[-1].stop == 433
    assert [SMPLX_JOINTS[joint] for joint in (15, 20, 21, 22, 25, 40, 54)] == [
        *("head", "left_wrist", "right_wrist", "jaw", "left_index1", "right_index1", "right_thumb3")
    ]
    assert all(parent < joint for joint, parent in enumerate(SMPLX_PARENTS))


def test_other_data_give_all_their_columns():
    columns, layout = select_columns(feature_layout(263), "upper")
    assert columns.tolist() == list(range(263)) and layout == feature_layout(263)


def test_a_body_part_that_is_not_there_is_named():
    with pytest.raises(UserError, match="hands needs left_index1"):
        select_columns(smplx_layout()[:22], "hands")


def test_own_parts_take_joints_by_name_pattern_and_number():
    layout = joint_layout(("Hips", "LeftArm", "LeftForeArm", "Arm[1]"), "position")
    columns, selected = select_columns(layout, "arms", {"arms": ["Left*Arm", 0, "LeftArm", "Arm[1]"]})
    assert [channels.name for channels in selected] == ["LeftArm", "LeftForeArm", "Hips", "Arm[1]"]
    assert columns.tolist() == [*range(6, 18), *range(6), *range(18, 24)]
    # The user's own definition replaces that of SMPL-X.
    assert select_columns(smplx_layout(), "upper", {"upper": ["neck"]})[1][0].name == "neck"
    for joint, words in (
        ("LeftArn", "did you mean LeftArm"),
        (5, "no joint 5"),
        (-1, "no joint -1"),
        ("*Leg", r"\*Leg"),
    ):
        with pytest.raises(UserError, match=rf"rvqvae\.data\.body_parts\.arms: .*{words}"):
            select_columns(layout, "arms", {"arms": [joint]})


def test_smplh_data_have_the_parts_without_a_face():
    layout = joint_layout(SMPLH_JOINTS, "translation")
    for part, width in WIDTHS.items():
        if part.startswith("face"):
            with pytest.raises(
                UserError, match=r"face(_jaw)? needs (expressions|jaw),.*; they have the parts upper, .*whole_trans$"
            ):
                select_columns(layout, part)
        else:
            columns, selected = select_columns(layout, part)
            assert len(columns) == width and missing_channels(smplx_layout(), selected) is None
    hands = select_columns(layout, "hands")[0]
    assert hands.tolist() == list(range(6 * 22, 6 * 52))


def test_channels_are_missing_by_name_kind_and_width():
    layout = joint_layout(("Hips",), "position")
    assert missing_channels(layout, layout) is None and root_channels(layout).name == "translation"
    for other in (
        Channels("Head", "rotation_6d", 0, 6),
        Channels("Hips", "feature", 0, 6),
        joint_layout((), "translation")[0],
    ):
        assert missing_channels(layout, [layout[0], other]) == other
    assert root_channels(feature_layout(3)) is None


def test_a_layout_survives_json():
    layout = (Channels("Hips", "rotation_6d", 0, 6), Channels("root", "translation", 6, 9))
    assert layout_from_json(layout_to_json(layout), 9) == layout
    assert rotation_columns(layout).tolist() == [[0, 1, 2, 3, 4, 5]]


def test_several_rotations_in_one_entry_become_one_each():
    layout = layout_from_json('[{"name": "arm", "kind": "rotation_6d", "columns": [0, 12]}]', 12)
    assert layout == (Channels("arm0", "rotation_6d", 0, 6), Channels("arm1", "rotation_6d", 6, 12))


@pytest.mark.parametrize(
    ("layout", "complaint"),
    [
        ("{}", "not a list"),
        ("[1]", "not an object"),
        ('[{"name": "a", "kind": "quaternion", "columns": [0, 4]}]', "kind is 'quaternion'"),
        ('[{"name": "a", "kind": "feature", "columns": [0, 3]}]', "ends at column 3 of 4"),
        ('[{"name": "a", "kind": "feature", "columns": [1, 4]}]', "do not follow column 0"),
        ('[{"name": "a", "kind": "feature", "columns": "all"}]', "from, to"),
        ('[{"name": "a", "kind": "rotation_6d", "columns": [0, 4]}]', "need a multiple of 6"),
        (json.dumps([{"name": "a", "kind": "feature", "columns": [i, i + 2]} for i in (0, 2)]), "occurs twice"),
    ],
)
def test_a_wrong_layout_is_refused(layout, complaint):
    with pytest.raises(ValueError, match=complaint):
        layout_from_json(layout, 4)
