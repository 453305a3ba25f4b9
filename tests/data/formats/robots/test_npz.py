"""Robots' npz files: whole_body_tracking's and retargeted motion, orders of joints, and writing."""

import mujoco
import numpy as np
import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.readers import open_reader
from ds_rvqvae.data.formats.robots.npz import breadth_first
from ds_rvqvae.data.formats.writing import WRITERS
from ds_rvqvae.motion.clip import ClipError, UnfitError
from ds_rvqvae.motion.skeleton import skeleton_from_json
from tests.data.formats.robots.made import JOINTS, mjcf
from tests.data.formats.robots.published import walk
from tests.data.formats.robots.test_csv import check_take

NAMES = [f"{name}_joint" for name in JOINTS]


@pytest.fixture
def robot(tmp_path):
    file = tmp_path / "robot.xml"
    file.write_text(mjcf().replace('<joint name="head_lift" type="slide" axis="0 0 1" range="0 0.1"/>', ""))
    return file


def tracking(robot, motion, fps=50):
    """Returns whole_body_tracking's arrays, with bodies that MuJoCo places; joints and bodies are in MuJoCo's order."""
    spec = mujoco.MjSpec.from_file(str(robot))
    for kind in ("actuators", "geoms", "meshes", "sensors"):
        for element in list(getattr(spec, kind)):
            spec.delete(element)
    spec.compiler.boundmass = spec.compiler.boundinertia = 1e-3
    model = spec.compile()
    data = mujoco.MjData(model)
    places, turns = [], []
    for place, quaternion, angles in zip(motion.places, motion.turns.as_quat(), motion.angles, strict=True):
        data.qpos[:] = [*place, *quaternion[[3, 0, 1, 2]], *angles]
        mujoco.mj_kinematics(model, data)
        places.append(data.xpos[1:].copy())
        turns.append(data.xquat[1:].copy())
    arrays = {"joint_pos": motion.angles, "joint_vel": np.gradient(motion.angles, 1 / fps, axis=0)}
    arrays |= {"body_pos_w": np.array(places), "body_quat_w": np.array(turns)}
    arrays |= {f"body_{kind}_vel_w": np.zeros((len(places), model.nbody - 1, 3)) for kind in ("lin", "ang")}
    arrays["body_lin_vel_w"] = np.gradient(arrays["body_pos_w"], 1 / fps, axis=0)
    return {"fps": np.array([fps])} | {key: values.astype(np.float32) for key, values in arrays.items()}


def save(file, arrays):
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **arrays)
    return file


def test_tracking_files_are_read_and_written_back(tmp_path, robot):
    motion = walk(seed=2)
    arrays = tracking(robot, motion)
    source = save(tmp_path / "data" / "a.npz", arrays)
    bare = open_reader(source.parent, DataConfig())
    assert bare.key == "robot_npz"
    check_take(bare.take("a"), motion, ["root", *(f"joint_{joint}" for joint in range(29))])
    config = DataConfig(fps=50, robot=str(robot))
    reader = open_reader(source, config)
    take, clip = reader.take("a"), reader.read("a")
    assert take.fps == 50 and not take.notes
    check_take(take, motion, ["pelvis", *NAMES])
    WRITERS["robot_npz"].write(tmp_path / "b.npz", clip.motion, clip.layout, 50, source, reader.config)
    with np.load(tmp_path / "b.npz") as written:
        assert list(written) == list(arrays)
        for key, values in arrays.items():
            assert written[key].dtype == values.dtype and written[key].shape == values.shape, key
        for key in ("joint_pos", "body_pos_w"):
            np.testing.assert_allclose(written[key], arrays[key], atol=2e-5, err_msg=key)
        for key in ("joint_vel", "body_lin_vel_w"):
            np.testing.assert_allclose(written[key], arrays[key], atol=2e-3, err_msg=key)
        same = np.abs((written["body_quat_w"] * arrays["body_quat_w"]).sum(axis=-1))
        np.testing.assert_allclose(same, 1, atol=1e-5)
        # The head is turned by the waist: its angular velocity turns its axes on to the next frame.
        turning = written["body_ang_vel_w"]
        assert np.isfinite(turning).all() and np.abs(turning).max() > 0.1
    np.testing.assert_allclose(open_reader(tmp_path / "b.npz", config).read("b").motion, clip.motion, atol=5e-5)
    with pytest.raises(UnfitError, match=r"body_pos_w and body_quat_w need the robot's kinematics.*--robot FILE"):
        WRITERS["robot_npz"].write(tmp_path / "c.npz", *_of(bare.read("a")), 30, source, bare.config)


def _of(clip):
    return clip.motion, clip.layout


def test_joints_counted_breadth_first_are_named_by_where_the_bodies_are(tmp_path, robot):
    motion = walk(seed=4)
    reader = open_reader(save(tmp_path / "a.npz", tracking(robot, motion)), DataConfig(robot=str(robot)))
    order = breadth_first(skeleton_from_json(reader.config.robot, "robot"))
    assert sorted(order) == sorted(NAMES) and list(order) != NAMES
    assert set(order[:3]) == {"left_hip_pitch_joint", "right_hip_pitch_joint", "waist_yaw_joint"}
    arrays = tracking(robot, motion)
    arrays["joint_pos"] = arrays["joint_pos"][:, [NAMES.index(name) for name in order]]
    take = open_reader(save(tmp_path / "b.npz", arrays), reader.config).take("b")
    assert [part.name for part in take.layout[1:-1]] == list(order)
    arrays["joint_pos"] = arrays["joint_pos"][:, ::-1]
    with pytest.raises(
        ClipError, match=r"rvqvae.data.robot does not fit its bodies: they are 0.*from the nearest links"
    ):
        open_reader(save(tmp_path / "c.npz", arrays), reader.config).take("c")


@pytest.mark.parametrize("keys", [("root_trans_offset", "root_rot", "dof"), ("root_pos", "root_rot", "dof_pos")])
def test_retargeted_motion_is_read_and_written_back(tmp_path, keys):
    motion = walk(seed=1, joints=23)
    dof = motion.angles[..., None] if keys[2] == "dof" else motion.angles
    arrays = dict(zip(keys, (motion.places, motion.turns.as_quat(), dof), strict=True)) | {"fps": np.array(30)}
    source = save(tmp_path / "a.npz", arrays | {"pose_aa": np.zeros((60, 24, 3))})
    reader = open_reader(source, DataConfig())
    clip = reader.read("a")
    check_take(reader.take("a"), motion, ["root", *(f"joint_{joint}" for joint in range(23))])
    written = WRITERS["robot_npz"].write(tmp_path / "b.npz", clip.motion, clip.layout, 30, source, reader.config)
    assert written.details == ("left out: pose_aa",)
    with np.load(tmp_path / "b.npz") as again:
        for key in keys[::2]:
            np.testing.assert_allclose(again[key], arrays[key], atol=2e-6)
        np.testing.assert_allclose(np.abs((again[keys[1]] * arrays[keys[1]]).sum(axis=1)), 1, atol=1e-6)
    save(tmp_path / "c.npz", {key: values for key, values in arrays.items() if key != "fps"})
    with pytest.raises(ClipError, match=r"no key fps; it has .*; give --source_fps N"):
        open_reader(tmp_path / "c.npz", DataConfig()).take("c")
    assert open_reader(tmp_path / "c.npz", DataConfig(source_fps=60)).take("c").fps == 60
