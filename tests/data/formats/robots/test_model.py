"""Robots from MJCF and URDF: their kinematics are those of other libraries."""

import numpy as np
import pytest
import torch

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.described import described
from ds_rvqvae.data.formats.robots.model import robot_from_file
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import ClipError
from ds_rvqvae.motion.kinematics import Kinematics
from ds_rvqvae.motion.layout import Channels
from ds_rvqvae.motion.skeleton import joint_places, skeleton_from_json
from tests.data.formats.robots.made import JOINTS, mjcf, urdf

POSES = 100
HINGES = [f"{name}_joint" for name in JOINTS]
LAYOUT = tuple(Channels(name, "angle", index, index + 1) for index, name in enumerate([*HINGES, "head_lift"]))


@pytest.fixture(scope="module")
def angles():
    rng = np.random.default_rng(1)
    return np.column_stack([rng.uniform(-1.5, 2, (POSES, len(HINGES))), rng.uniform(0, 0.1, POSES)])


def write(folder, text, name="robot.xml"):
    (folder / name).write_text(text)
    return folder / name


def ours(file, angles):
    """Returns the skeleton, and places relative to the base by numpy and by torch."""
    skeleton = skeleton_from_json(robot_from_file(file), "made")
    places = joint_places(angles, LAYOUT, skeleton)
    found = Kinematics(LAYOUT, skeleton).places(torch.from_numpy(angles)).numpy()
    np.testing.assert_allclose(found, places - places[:, :1], atol=1e-12)
    return skeleton, found


@pytest.mark.parametrize("joint_pos", [(0, 0, 0), (0.01, -0.02, 0.03)])
def test_an_mjcf_moves_as_in_mujoco(tmp_path, angles, joint_pos):
    mujoco = pytest.importorskip("mujoco")
    text = mjcf(joint_pos)
    skeleton, found = ours(write(tmp_path, text), angles)
    # MuJoCo itself needs the mesh's file, which is not there.
    model = mujoco.MjModel.from_xml_string(
        text.replace('<geom type="mesh" mesh="hull"/>', '<geom size="0.01"/>').replace(
            '<asset><mesh name="hull" file="hull.STL"/></asset>', ""
        )
    )
    data = mujoco.MjData(model)
    data.qpos[3:7] = [1, 0, 0, 0]  # the root's rotation is in the world; the base's own at rest does not count
    places = {name: model.jnt_qposadr[model.joint(name).id] for name in [*HINGES, "head_lift"]}
    bodies = {name: name for name in ("pelvis", "mount")}
    # A joint that is not at its link's origin has a node for each of both.
    bodies |= {name.replace("_joint", "_link"): name for name in HINGES}
    if any(joint_pos):
        bodies |= {name.replace("_joint", "_link"): name.replace("_joint", "_link") for name in HINGES}
    bodies["head"] = "head_lift"
    for pose, own in zip(angles, found, strict=True):
        for name, value in zip(places, pose, strict=True):
            data.qpos[places[name]] = value
        mujoco.mj_kinematics(model, data)
        for body, node in bodies.items():
            expected = data.body(body).xpos - data.body("pelvis").xpos
            assert np.abs(own[skeleton.joint_names.index(node)] - expected).max() < 1e-5, body


def test_a_urdf_moves_as_in_yourdfpy(tmp_path, angles):
    yourdfpy = pytest.importorskip("yourdfpy")
    file = write(tmp_path, urdf(), "robot.urdf")
    skeleton, found = ours(file, angles)
    other = yourdfpy.URDF.load(str(file), load_meshes=False, build_scene_graph=True)
    links = {"mount": "mount", "head": "head_lift"} | {name.replace("_joint", "_link"): name for name in HINGES}
    for pose, own in zip(angles, found, strict=True):
        other.update_cfg(dict(zip([*HINGES, "head_lift"], pose, strict=True)))
        for link, node in links.items():
            expected = other.get_transform(link, "pelvis")[:3, 3]
            assert np.abs(own[skeleton.joint_names.index(node)] - expected).max() < 1e-5, link


@pytest.mark.parametrize(("text", "name"), [(mjcf(), "robot.xml"), (urdf(), "robot.urdf")])
def test_names_limits_and_order(tmp_path, text, name):
    robot = robot_from_file(write(tmp_path, text, name))
    assert robot["joint_names"][0] == "pelvis" and robot["parents"][0] == -1
    moving = [own for own, axis in zip(robot["joint_names"], robot["axes"], strict=True) if any(axis)]
    assert sorted(moving) == sorted([*HINGES, "head_lift"]) and moving[:12] == HINGES[:12]
    limits = dict(zip(robot["joint_names"], robot["limits"], strict=True))
    np.testing.assert_allclose(limits["left_knee_joint"], [-np.pi / 2, 2 * np.pi / 3], atol=1e-6)
    assert limits["pelvis"] is None
    assert [own for own, slides in zip(robot["joint_names"], robot["slides"], strict=True) if slides] == ["head_lift"]
    config = described(DataConfig(robot=str(tmp_path / name)))
    assert config.robot == robot and described(config) == config


def test_gradients_reach_the_angles(tmp_path, angles):
    skeleton = skeleton_from_json(robot_from_file(write(tmp_path, mjcf())), "made")
    columns = torch.from_numpy(angles[:2]).requires_grad_()
    places = Kinematics(LAYOUT, skeleton).places(columns)
    places[:, skeleton.joint_names.index("left_ankle_roll_joint")].sum().backward()
    above = [LAYOUT[index].name for index in np.flatnonzero(columns.grad.abs().sum(dim=0).numpy())]
    assert above == HINGES[:5]  # every joint of the leg above it, and no other


BALL = '<mujoco><worldbody><body name="a"><joint name="j" type="ball"/><geom size="1"/></body></worldbody></mujoco>'
TWO = "<mujoco><worldbody>{}</worldbody></mujoco>".format(
    "".join(f'<body name="{name}"><joint name="{name}_j"/><geom size="1"/></body>' for name in "ab")
)
STILL = '<mujoco><worldbody><body name="a"><geom size="1"/></body></worldbody></mujoco>'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not MJCF or URDF"),
        ("no XML", "not MJCF or URDF"),
        ("<html/>", "not MJCF or URDF"),
        (mjcf()[:-200], "not MJCF or URDF"),
        (BALL, "joint j of a is free or a ball"),
        (TWO, r"it has 2 robots \(a, b\)"),
        (STILL, "no joint that turns or slides"),
        ('<robot name="r"><link name="a"/></robot>', "no joint that turns or slides"),
        ('<mujoco><include file="nowhere.xml"/></mujoco>', "not MJCF or URDF"),
    ],
)
def test_what_is_no_robot_is_refused_in_one_line(tmp_path, text, words):
    file = write(tmp_path, text)
    with pytest.raises(ClipError, match=words):
        robot_from_file(file)
    with pytest.raises(UserError, match=r"^rvqvae\.data\.robot: .*robot\.xml: "):
        described(DataConfig(robot=str(file)))
    assert [entry.name for entry in tmp_path.iterdir()] == ["robot.xml"]


def test_a_robot_that_stands_on_a_fixed_joint(tmp_path):
    body = '<body name="a" pos="0 0 1"><joint name="j" axis="0 0 1"/><geom size="1"/></body>'
    robot = robot_from_file(write(tmp_path, f"<mujoco><worldbody>{body}</worldbody></mujoco>"))
    assert robot["joint_names"] == ["world", "j"] and robot["axes"] == [[0, 0, 0], [0, 0, 1]]


def test_a_file_that_is_missing_or_a_folder(tmp_path):
    for file in (tmp_path / "nowhere.xml", tmp_path):
        with pytest.raises(UserError, match=r"rvqvae\.data\.robot: "):
            described(DataConfig(robot=str(file)))
