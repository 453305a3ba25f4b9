"""Robots' csv files: published forms, units and quaternions told apart or refused, and writing."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.readers import open_reader
from ds_rvqvae.data.formats.robots.model import robot_from_file
from ds_rvqvae.data.formats.writing import WRITERS
from ds_rvqvae.data.store.prepare import prepare
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import ClipError, UnfitError
from ds_rvqvae.motion.rotations import rotation_6d_to_matrix
from ds_rvqvae.motion.skeleton import joint_places, skeleton_from_json
from tests.cli.commands import run
from tests.data.formats.robots.made import JOINTS, mjcf
from tests.data.formats.robots.published import (
    BONES_HEADER,
    G1_JOINTS,
    Motion,
    walk,
    write_bones,
    write_lafan1,
    write_named,
)
from tests.data.motion import write_lists

TURN = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
"""z up to y up."""


def write_set(folder, write, count=4, **settings):
    for seed in range(count):
        write(folder / f"walk1_subject{seed}.csv", walk(seed=seed, **settings))
    return folder


def check_take(take, motion, names, atol=2e-6):
    assert [part.name for part in take.layout] == [names[0], *names[1:], "translation"]
    assert [part.kind for part in take.layout] == ["rotation_6d", *["angle"] * (len(names) - 1), "translation"]
    joints = len(names) - 1
    turned = rotation_6d_to_matrix(take.motion[:, :6])
    np.testing.assert_allclose(turned, TURN @ motion.turns.as_matrix(), atol=atol)
    np.testing.assert_allclose(take.motion[:, 6 : 6 + joints], motion.angles, atol=atol)
    np.testing.assert_allclose(take.motion[:, 6 + joints :], motion.places @ TURN.T, atol=atol)


def test_lafan1s_robots_have_their_columns_rate_splits_and_mean(tmp_path, monkeypatch):
    monkeypatch.setenv("DS_RVQVAE_CACHE", str(tmp_path / "cache"))
    folder = write_set(tmp_path / "LAFAN1_Retargeting_Dataset" / "g1", write_lafan1)
    write_lists(folder, train="walk1_subject0 walk1_subject1", val="walk1_subject2", test="walk1_subject3")
    store = prepare(DataConfig(path=str(folder)), workers=1).store
    names = ["root", *(f"joint_{joint}" for joint in range(29))]
    assert store.fps == 30 and store.layout[-1].stop == 38 and store.settings["csv_units"] == "metres_radians"
    assert {segment.name: segment.split for segment in store.segments} == {
        f"walk1_subject{seed}": ("train", "train", "val", "test")[seed] for seed in range(4)
    }
    clip, motion = store.clip("walk1_subject2"), walk(seed=2)
    np.testing.assert_allclose(clip[:, 6:35], motion.angles, atol=2e-6)
    places = motion.places @ TURN.T
    np.testing.assert_allclose(clip[:, 36], places[:, 1], atol=2e-6)  # the height
    np.testing.assert_allclose(clip[1:, [35, 37]], np.diff(places[:, [0, 2]], axis=0), atol=3e-6)
    trained = np.concatenate([store.clip(f"walk1_subject{seed}") for seed in (0, 1)])
    np.testing.assert_allclose(store.mean, trained.mean(axis=0), atol=1e-6)
    report = store.report()
    assert report["readings"] == [
        "no header: the root (x, y, z, qx, qy, qz, qw), then 29 joints, as in walk1_subject0.csv",
        "no kinematics, as rvqvae.data.robot names no MJCF or URDF",
        "metres and radians, by the root's height and the size of the angles (4 files)",
    ]
    assert any(note.startswith("no csv file gives its frame rate: 30 fps, as LAFAN1") for note in report["notes"])
    check_take(open_reader(folder, DataConfig()).take("walk1_subject1"), walk(seed=1), names)


def test_bones_seeds_files_are_in_centimetres_and_degrees_at_120_fps(tmp_path):
    folder = tmp_path / "bones-seed" / "g1" / "csv" / "240101"
    for seed in range(3):
        write_bones(folder / f"walk_{seed}.csv", walk(120, seed, 120))
    reader = open_reader(folder.parent, DataConfig())
    assert reader.key == "robot_csv" and reader.config.csv_units == "centimetres_degrees"
    take = reader.take("240101/walk_1")
    assert take.fps == 120 and reader.read("240101/walk_1").motion.shape == (30, 38)
    assert "120 fps, as BONES-SEED has with this header, is assumed" in reader.notes[0]
    check_take(take, walk(120, 1, 120), ["root", *G1_JOINTS])


@pytest.mark.parametrize(
    ("root", "joint"),
    [
        (("root_x", "root_y", "root_z", "root_qx", "root_qy", "root_qz", "root_qw"), "{}"),
        (("root_pos_x(m)", "root_pos_y(m)", "root_pos_z(m)", *(f"root_rot_{at}" for at in "xyzw")), "dof_{}(rad)"),
    ],
)
def test_headers_name_the_joints(tmp_path, root, joint):
    header = [*root, *(joint.format(name) for name in G1_JOINTS)]
    write_named(tmp_path / "g1" / "a.csv", walk(), header)
    with pytest.raises(UserError, match=r"this header is that of no known data set; give --source_fps N"):
        open_reader(tmp_path / "g1", DataConfig()).check([])
    take = open_reader(tmp_path / "g1", DataConfig(source_fps=50)).take("a")
    assert take.fps == 50
    check_take(take, walk(), ["root", *G1_JOINTS])


def test_a_quaternion_with_w_first_is_read_by_its_header_and_refused_without_one(tmp_path):
    header = ["root_pos_x", "root_pos_y", "root_pos_z", *(f"root_rot_{at}" for at in "wxyz"), *G1_JOINTS]
    calm = Motion(walk().places, Rotation.from_euler("z", 0.1 * np.sin(np.arange(60) / 9)), walk().angles)
    w_first = Rotation.from_quat(calm.turns.as_quat())
    values = np.concatenate([calm.places, w_first.as_quat()[:, [3, 0, 1, 2]], calm.angles], axis=1)
    (tmp_path / "named").mkdir()
    np.savetxt(tmp_path / "named" / "a.csv", values, "%.8f", ",", header=",".join(header), comments="")
    check_take(open_reader(tmp_path / "named", DataConfig(source_fps=30)).take("a"), calm, ["root", *G1_JOINTS])
    (tmp_path / "bare").mkdir()
    for name in ("a", "b"):
        np.savetxt(tmp_path / "bare" / f"{name}.csv", values, "%.8f", ",")
    with pytest.raises(UserError, match=r"seem to have w first, as in a.csv and 2 of 2 files.*root_z,root_qw,root_qx"):
        open_reader(tmp_path / "bare", DataConfig()).check([])
    with pytest.raises(UserError, match="1 of 1 files"):
        open_reader(tmp_path / "bare" / "a.csv", DataConfig()).check([])


@pytest.mark.parametrize("yaw", [0, 70, -100, 115, 160])
def test_w_first_is_seen_for_headings_up_to_120_degrees(tmp_path, yaw):
    turns = Rotation.from_euler("z", yaw + 5 * np.sin(np.arange(60) / 9), degrees=True)
    calm = Motion(walk().places, turns, walk().angles)
    for name, order in (("right", [0, 1, 2, 3]), ("w_first", [3, 0, 1, 2])):
        (tmp_path / name).mkdir()
        values = np.concatenate([calm.places, turns.as_quat()[:, order], calm.angles], axis=1)
        np.savetxt(tmp_path / name / "a.csv", values, "%.8f", ",")
    open_reader(tmp_path / "right", DataConfig()).check([])
    if abs(yaw) < 120:
        with pytest.raises(UserError, match="seem to have w first"):
            open_reader(tmp_path / "w_first", DataConfig()).check([])


def test_units_of_a_header_hold_for_the_roots_angles_too(tmp_path):
    root = ["pos_x(m)", "pos_y(m)", "pos_z(m)", *(f"rot_{at}(deg)" for at in "xyz")]
    values = np.tile([0, 0, 0.8, 0, 0, 30, 0.1, 0.2], (40, 1))
    np.savetxt(tmp_path / "a.csv", values, "%.6f", ",", header=",".join([*root, "a(rad)", "b(rad)"]), comments="")
    reader = open_reader(tmp_path / "a.csv", DataConfig(format="robot_csv", source_fps=30))
    with pytest.raises(ClipError, match="its header gives the units deg, m, rad"):
        reader.take("a")


def test_units_that_numbers_do_not_tell_are_refused_with_the_flag(tmp_path, capsys):
    still = walk()._replace(angles=0.01 * walk().angles)
    write_bones(tmp_path / "data" / "a.csv", still)  # a height of 78 cm, and angles that may be radians
    status, _, errors = run(capsys, "prepare", tmp_path / "data", "--out", tmp_path / "store")
    assert status == 2 and len(errors) == 1
    assert "the units are not known: in a.csv the root is at the height 78" in errors[0]
    assert "--csv_units metres_radians" in errors[0] and "--csv_units centimetres_degrees" in errors[0]
    take = open_reader(tmp_path / "data", DataConfig(csv_units="centimetres_degrees")).take("a")
    check_take(take, still, ["root", *G1_JOINTS])
    wrong = open_reader(write_bones(tmp_path / "b.csv", walk()), DataConfig(csv_units="metres_radians")).take("b")
    assert wrong.notes == (
        "its numbers look like centimetres and degrees, but rvqvae.data.csv_units is metres_radians",
    )


def test_files_of_different_units_are_refused(tmp_path):
    write_bones(tmp_path / "a.csv", walk())
    write_lafan1(tmp_path / "b.csv", walk())
    match = r"centimetres and degrees as in a.csv, metres and radians as in b.csv; read each kind from its own folder"
    with pytest.raises(UserError, match=match):
        open_reader(tmp_path, DataConfig()).check([])


def test_degrees_without_a_header_need_the_flag(tmp_path):
    write_bones(tmp_path / "a.csv", walk(), ())
    for format in (None, "robot_csv"):
        with pytest.raises((UserError, ClipError), match=r"columns 4 to 7 are not .*--csv_units centimetres_degrees"):
            open_reader(tmp_path / "a.csv", DataConfig(format=format)).take("a")
    config = DataConfig(format="robot_csv", csv_units="centimetres_degrees", source_fps=120)
    check_take(open_reader(tmp_path / "a.csv", config).take("a"), walk(), ["root", *(f"joint_{i}" for i in range(29))])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("x;y;z;qx;qy;qz;qw;a", "separated by semicolons"),
        ("time,speed,label", "its header should begin with the root"),
        ("root_x,root_y,root_z,root_qx,root_qy,root_qz,root_qw,a,a", "two joints called a"),
        ("root_x,root_y,root_z,root_qx,root_qy,root_qz,root_qw,a,a_vel", "column a_vel is no joint's angle"),
        ("root_x(cm),root_y(cm),root_z(cm),root_qx,root_qy,root_qz,root_qw,a(rad)", "gives the units cm, rad"),
        ("1,2,3,4", "has 4 columns, fewer than the 7"),
        ("1,2,x,4,5,6,7,8", "x stands in its first line, between numbers"),
        (",".join("1" * 1025), "1,025 columns"),
    ],
)
def test_other_tables_are_refused(tmp_path, line, reason):
    (tmp_path / "a.csv").write_text(f"{line}\n" + ",".join(["0.5"] * (line.count(",") + 1)) + "\n")
    write_lafan1(tmp_path / "b.csv", walk())
    with pytest.raises(ClipError, match=reason):
        open_reader(tmp_path, DataConfig()).take("a")


@pytest.fixture
def robot(tmp_path):
    file = tmp_path / "robot.xml"
    file.write_text(mjcf().replace('<joint name="head_lift" type="slide" axis="0 0 1" range="0 0.1"/>', ""))
    return file


def test_a_robot_names_the_joints_and_places_them(tmp_path, robot):
    folder = write_set(tmp_path / "g1", write_lafan1)
    reader = open_reader(folder, DataConfig(robot=str(robot)))
    take = reader.take("walk1_subject0")
    names = [f"{name}_joint" for name in JOINTS]
    check_take(take, walk(), ["pelvis", *names])
    assert not take.notes
    skeleton = skeleton_from_json(take.skeleton, "robot")
    clip = reader.read("walk1_subject0")
    places = joint_places(clip.motion, take.layout, skeleton)
    upright = joint_places(
        np.concatenate([walk().turns.as_matrix()[:, :2].reshape(-1, 6), walk().angles], axis=1),
        take.layout[:-1],
        skeleton,
    )
    relative = upright - upright[:, :1]
    np.testing.assert_allclose(places - places[:, :1], relative @ TURN.T, atol=1e-5)
    write_lafan1(tmp_path / "h1.csv", walk(joints=19))
    with pytest.raises(ClipError, match=r"has 19 joints, but rvqvae.data.robot has 29 that turn or slide"):
        open_reader(tmp_path / "h1.csv", DataConfig(robot=str(robot))).take("h1")
    write_bones(tmp_path / "other.csv", walk(), [*BONES_HEADER[:-1], "tail_joint_dof"])
    with pytest.raises(ClipError, match=r"1 of its 29 joints are none of rvqvae.data.robot, as tail_joint"):
        open_reader(tmp_path / "other.csv", DataConfig(robot=str(robot))).take("other")


def test_angles_beyond_the_robots_limits_are_said(tmp_path, robot):
    angles = walk().angles.copy()
    angles[3:7, 3] = 2.5  # the limits are -90 and 120 degrees
    write_lafan1(tmp_path / "a.csv", walk()._replace(angles=angles))
    take = open_reader(tmp_path / "a.csv", DataConfig(robot=str(robot))).take("a")
    assert take.notes == ("beyond the robot's limits: left_knee_joint in 4 of 60 frames",)


@pytest.mark.parametrize("write", [write_lafan1, write_bones])
@pytest.mark.parametrize("fps", [30, 20])
def test_motion_is_written_back_in_the_sources_form(tmp_path, write, fps):
    source = write(tmp_path / "a.csv", walk(seed=3))
    source.write_bytes(source.read_bytes().replace(b"\n", b"\r\n"))
    config = DataConfig(fps=fps, source_fps=30)
    reader = open_reader(source, config)
    clip = reader.read("a")
    written = WRITERS["robot_csv"].write(tmp_path / "b.csv", clip.motion, clip.layout, fps, source, reader.config)
    assert written.source_fps == 30
    is_assumed = (write, fps) == (write_lafan1, 30)
    assert bool(written.notes) != is_assumed
    again = open_reader(tmp_path / "b.csv", reader.config.with_values({"source_fps": float(fps)})).read("b")
    np.testing.assert_allclose(again.motion, clip.motion, atol=5e-6)
    lines = (tmp_path / "b.csv").read_bytes().split(b"\r\n")
    sources = source.read_bytes().split(b"\r\n")
    if fps == 30:
        assert len(lines) == len(sources) and lines[0][:9] == sources[0][:9]
        old, new = ([list(map(float, line.split(b","))) for line in some[1:-1]] for some in (sources, lines))
        np.testing.assert_allclose(new, old, atol=5e-5)
    # Some columns only: the others are the source's, as they stand there.
    some, layout = (
        clip.motion[:, 11:14],
        tuple(replace(part, start=at, stop=at + 1) for at, part in enumerate(clip.layout[6:9])),
    )
    WRITERS["robot_csv"].write(tmp_path / "c.csv", some + 0.1, layout, fps, source, reader.config)
    part = open_reader(tmp_path / "c.csv", reader.config.with_values({"source_fps": float(fps)})).read("c").motion
    moved = np.zeros(38)
    moved[11:14] = 0.1
    np.testing.assert_allclose(part, clip.motion + moved, atol=5e-6)
    with pytest.raises(
        UnfitError, match="60 frames at 30 fps, but the motion has 7" if fps == 30 else "but the motion"
    ):
        WRITERS["robot_csv"].write(tmp_path / "d.csv", some[:7], layout, fps, source, reader.config)


@pytest.mark.parametrize("form", ["lafan1", "bones", "named", "robot"])
def test_motion_is_written_without_a_source(tmp_path, form, robot):
    header = ["root_x", "root_y", "root_z", *(f"root_q{at}" for at in "xyzw"), *G1_JOINTS]
    write = {"bones": write_bones, "named": lambda *some: write_named(*some, header)}.get(form, write_lafan1)
    config = DataConfig(
        source_fps=30, robot=json.loads(json.dumps(robot_from_file(robot))) if form == "robot" else None
    )
    motion = walk()
    reader = open_reader(write(tmp_path / "a.csv", motion), config)
    clip = reader.read("a")
    WRITERS["robot_csv"].write(tmp_path / "b.csv", clip.motion, clip.layout, 30, None, reader.config)
    again = open_reader(tmp_path / "b.csv", reader.config).read("b")
    assert again.layout == clip.layout
    np.testing.assert_allclose(again.motion, clip.motion, atol=5e-6)


def test_jumps_of_angles_are_cut(tmp_path, monkeypatch):
    monkeypatch.setenv("DS_RVQVAE_CACHE", str(tmp_path / "cache"))
    angles = walk().angles.copy()
    angles[30:] += np.radians(40)
    write_lafan1(tmp_path / "g1" / "a.csv", walk()._replace(angles=angles))
    write_lafan1(tmp_path / "g1" / "b.csv", walk(seed=1))
    store = prepare(DataConfig(path=str(tmp_path / "g1")), workers=1).store
    assert store.clip_names == ["a#0", "a#1", "b"] and store.clip("a#0").shape == (30, 38)
