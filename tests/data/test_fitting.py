"""Settings that do not fit columns: left out of a run if they come from the profile, an error if asked for."""

import json

import numpy as np
import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.config.names import BODY_PARTS
from ds_rvqvae.config.profile import load_profile, shipped_profiles
from ds_rvqvae.config.request import read_training_flags
from ds_rvqvae.data.dataset import MotionData, open_training_data
from ds_rvqvae.data.fitting import check_part, unfitting
from ds_rvqvae.data.look import look_at
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.layout import feature_layout, joint_layout, layout_to_json, select_columns, smplx_layout
from tests.data.motion import write_packed

MIRROR, MIX, ROTATION = "rvqvae.data.augment.mirror", "rvqvae.data.augment.mix", "rvqvae.loss.loss_rotation"
WEIGHTS = "rvqvae.loss.joint_weights"


def keys(profile, layout, of_store=None, asked=()):
    return [one.key for one in unfitting(profile, layout, of_store or layout, None, asked)]


@pytest.mark.parametrize("name", shipped_profiles())
def test_every_part_can_be_trained_with_every_shipped_profile(name, demo_folder):
    for part in BODY_PARTS:
        flags = [f"--profile={name}", f"--data_path={demo_folder}", f"--body_part={part}", "--window_size=32"]
        request = read_training_flags([*flags, "--window_stride=16"]).request()
        data = open_training_data(request.profile, asked=request.asked)
        left_out = {"face": [MIRROR, MIX, ROTATION], "face_jaw": [MIRROR]}.get(part, []) if name == "best" else []
        assert [one.key for one in data.left_out] == left_out, part
        assert all(
            f"{key}, because " in line and line.startswith(f"{part}: ") for line in data.notes() for key in left_out
        )
        assert bool(data.notes()) == bool(left_out)
        augment, fitted = data.config.augment, data.fitted(request.profile)
        assert fitted.rvqvae.data.augment == augment and (augment.mirror > 0) == (name == "best" and not left_out)
        # The run stores the profile that it trains with: when opened again, nothing more is left out.
        assert keys(fitted, data.layout) == []


def test_matrices_have_neither_sides_nor_joints_nor_rotations():
    assert keys(load_profile("best"), feature_layout(263)) == [MIRROR, MIX, ROTATION]
    assert keys(load_profile("best"), joint_layout(("joint0", "joint1"), "position")) == [MIRROR]


@pytest.mark.parametrize("flag", ["--set=rvqvae.data.augment.mirror=0.5", '--augment={"mirror": 0.5}'])
def test_what_is_asked_for_is_refused(demo_folder, flag):
    line = [f"--data_path={demo_folder}", "--body_part=face", "--window_size=32"]
    request = read_training_flags([*line, flag]).request()
    with pytest.raises(UserError, match=f"^--body_part face: {MIRROR}: expressions .* cannot be mirrored"):
        open_training_data(request.profile, asked=request.asked)
    assert open_training_data(request.profile).config.augment.mirror == 0
    request = read_training_flags([*line, "--loss_rotation=1"]).request()
    with pytest.raises(UserError, match=f"^--body_part face: {ROTATION}: the data have no columns"):
        open_training_data(request.profile, asked=request.asked)


def test_weights_of_joints_of_other_parts_are_left_out_and_misspelt_ones_refused():
    hands, of_store = select_columns(smplx_layout(), "hands")[1], smplx_layout()
    profile = load_profile("baseline", ['rvqvae.loss.joint_weights={"left_*": 2, "head": 3}'])
    (left_out,) = unfitting(profile, hands, of_store, None, ())
    assert (left_out.key, left_out.value) == (WEIGHTS, {"left_*": 2}) and left_out.reason.endswith("head")
    (left_out,) = unfitting(load_profile("baseline", [f'{WEIGHTS}={{"head": 3}}']), hands, of_store, None, ())
    assert left_out.value is None
    assert keys(load_profile("baseline", [f'{WEIGHTS}={{"haed": 3}}']), hands, of_store) == []  # refused as before
    assert keys(profile, hands, of_store, asked=[WEIGHTS]) == []
    # In an object, entries that are asked for are refused, and entries from the profile are left out.
    assert keys(profile, hands, of_store, asked=[f"{WEIGHTS}.head"]) == []
    (left_out,) = unfitting(profile, hands, of_store, None, [f"{WEIGHTS}.left_*"])
    assert left_out.paths == (f"{WEIGHTS}.head",)


@pytest.mark.parametrize("flag", [f"--set={WEIGHTS}.head=3", '--joint_weights={"head": 3}'])
def test_a_weight_that_is_asked_for_is_refused_with_the_part(demo_folder, flag):
    line = [f"--data_path={demo_folder}", "--body_part=hands", "--window_size=32", flag]
    request = read_training_flags(line).request()
    with pytest.raises(UserError, match=rf"^--body_part hands: {WEIGHTS}: no joint is called head"):
        open_training_data(request.profile, asked=request.asked)


def _packed(folder, layout):
    write_packed(folder, (200, 200), width=layout[-1].stop, layout=np.array(json.dumps(layout_to_json(layout))))
    return str(folder)


def test_a_part_of_motion_without_parts_is_refused_where_it_is_asked_for(tmp_path):
    joints = _packed(tmp_path / "joints.npz", joint_layout(("Hips", "LeftArm"), "position")[:2])
    request = read_training_flags(["--window_size=16", f"--data_path={joints}", "--body_part=hands"]).request()
    with pytest.raises(UserError, match=r"^--body_part hands: .*joints\.npz has no body parts .*data\.body_parts$"):
        open_training_data(request.profile, asked=request.asked)
    data = open_training_data(request.profile)
    assert data.in_features == 12
    with pytest.raises(UserError, match=r"^--body_part hands: .* has no body parts"):
        look_at(data.store, 16, "hands")
    own = ["--body_part=arm", '--body_parts={"arm": ["*Arm"]}']
    request = read_training_flags(["--window_size=16", f"--data_path={joints}", *own]).request()
    assert open_training_data(request.profile, asked=request.asked).in_features == 6
    with pytest.raises(UserError, match=r"matrices has no body parts .*: remove the flag$"):
        check_part("upper", "matrices", feature_layout(9), False)
    # A file that holds exactly this part.
    _, hands = select_columns(smplx_layout(), "hands")
    line = ["--window_size=16", f"--data_path={_packed(tmp_path / 'b.npz', hands)}", "--body_part=hands"]
    request = read_training_flags(line).request()
    assert open_training_data(request.profile, asked=request.asked).in_features == 180


def test_motion_opened_by_itself_is_as_its_settings_say(demo_folder):
    data = MotionData.open(DataConfig(path=str(demo_folder), body_part="face", augment={"mirror": 0.5}))
    assert data.left_out == () and data.notes() == [] and data.config.augment.mirror == 0.5
