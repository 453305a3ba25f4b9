"""The body in a hierarchy: the joint that carries it, below all that exporters write; its height and its unit."""

import numpy as np
import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.bvh.bodies import Tree, bones_of
from ds_rvqvae.data.formats.bvh.file import Joint, read_bvh
from ds_rvqvae.data.formats.bvh.reader import BvhReader
from ds_rvqvae.data.formats.bvh.writing import write_bvh
from ds_rvqvae.motion.clip import ClipError
from ds_rvqvae.motion.layout import rotation_columns
from ds_rvqvae.motion.rotations import rotation_6d_to_matrix
from ds_rvqvae.motion.skeleton import joint_places, skeleton_from_json
from tests.data.formats.bvh_files import Part, body, limb, world_of_file, write_body

_IK = [
    Part("ik_foot_root", "root", (0, 0, 0)),
    Part("ik_foot_l", "ik_foot_root", (10, 5, 0)),
    Part("ik_foot_r", "ik_foot_root", (-10, 5, 0)),
    Part("ik_hand_root", "root", (0, 0, 0)),
    *limb(["ik_hand_gun", "ik_hand_r"], "ik_hand_root", (70, 140, 0), (0, 0, 0)),
]
_CONTROLS = [
    *limb(["foot.L", "toe.L"], "rig", (10, 5, 0), (0, -3, 15), (0, 0, 8)),
    *limb(["foot.R", "toe.R"], "rig", (-10, 5, 0), (0, -3, 15), (0, 0, 8)),
]
_CAMERA = [Part("Camera", "Scene", (0, 300, 500), 6), Part("", "Camera", (0, 0, 9000))]


def _of_biped() -> list[Part]:
    """A skeleton like 3ds Max's: the thighs are attached to the spine."""
    parts = [Part("Bip01", "", (0, 95, 0), 6), *body("Bip01 Pelvis", "Bip01", 3)]
    return [part._replace(parent="Spine") if part.name.endswith("UpLeg") else part for part in parts]


def _unnamed() -> list[Part]:
    """A skeleton with meaningless names and six channels per joint, as Blender writes bones that are not connected."""
    parts = [Part("World", "", (0, 0, 0), 6), *body("Hips", "World")]
    new = {part.name: f"Bone.{index:03}" for index, part in enumerate(parts) if part.name}
    return [part._replace(name=new.get(part.name, ""), parent=new.get(part.parent, ""), channels=6) for part in parts]


ABOVE = {
    "nothing": (body(), "Hips", ()),
    "a still root": ([Part("joint_Root", "", (0, 0, 0), 6), *body("Hips", "joint_Root")], "Hips", ("joint_Root",)),
    "no channels": ([Part("Armature", "", (1, 2, 3), 0), *body("mixamorig:Hips", "Armature")], "mixamorig:Hips", ()),
    "turns and moves": ([Part("Reference", "", (0, 0, 0), 6), *body("Hips", "Reference")], "Hips", ()),
    "turns": ([Part("Armature", "", (5, 0, 0), 3), *body("pelvis", "Armature")], "pelvis", ()),
    "moves": ([Part("root", "", (0, 0, 0), -3), *body("Hips", "root")], "Hips", ()),
    "a chain": (
        [
            Part("Scene", "", (0, 1, 0), 0),
            Part("A", "Scene", (0, 2, 0), 6),
            Part("B", "A", (3, 0, 0)),
            *body("Hips", "B"),
        ],
        "Hips",
        (),
    ),
    "hips that only turn": ([Part("Root", "", (0, 0, 0), 6), *body("Hips", "Root", 3)], "Hips", ()),
    "controls beside": ([Part("rig", "", (0, 0, 0), 6), *_CONTROLS, *body("Hips", "rig")], "Hips", ("rig",)),
    "hips over hips": ([Part("Hips", "", (0, 0, 0), 6), *body("Pelvis", "Hips")], "Pelvis", ("Hips",)),
    "hips as a reference": ([Part("Hips", "", (0, 0, 0), 6), *body("Bassin", "Hips")], "Bassin", ("Hips",)),
    "targets beside": ([Part("root", "", (0, 0, 0), 6), *_IK, *body("pelvis", "root")], "pelvis", ()),
    "a camera beside": ([Part("Scene", "", (0, 0, 0), 6), *_CAMERA, *body("Hips", "Scene")], "Hips", ("Scene",)),
    "biped": (_of_biped(), "Bip01 Pelvis", ()),
    "no names": (_unnamed(), "Bone.001", ()),
}


@pytest.fixture(params=ABOVE)
def above(request, tmp_path):
    parts, carrier, still = ABOVE[request.param]
    return write_body(tmp_path / "source.bvh", parts, still=still), carrier


def take_of(file, **config):
    reader = BvhReader(file, DataConfig(**config))
    return reader.take(file.stem)


def test_the_place_is_that_of_the_joint_that_carries_the_body_in_the_world(above):
    file, carrier = above
    take = take_of(file)
    places, turns = world_of_file(file)
    np.testing.assert_allclose(take.motion[:, -3:], places[carrier] / 100, atol=1e-9)
    row = [part.name for part in take.layout].index(carrier)
    rotations = rotation_6d_to_matrix(take.motion[:, rotation_columns(take.layout)[row]])
    np.testing.assert_allclose(rotations, turns[carrier], atol=1e-9)
    assert (np.ptp(take.motion[:, -3:], axis=0) > 1e-3).all()


def test_the_stores_figure_stands_where_the_files_does(above):
    file, carrier = above
    take = take_of(file)
    skeleton = skeleton_from_json(take.skeleton, "figure")
    found = joint_places(take.motion, take.layout, skeleton)
    places, _ = world_of_file(file)
    names = skeleton.joint_names
    assert names[0] == carrier and "Camera" not in names and not {"ik_foot_l", "foot.L"} & set(names)
    if carrier == "Bone.001":  # in this one, position channels below the carrier change, which bones cannot do
        assert "change but are not read" in take.notes[0]
        return
    wanted = np.stack([places[name] for name in names], axis=1) / 100
    np.testing.assert_allclose(found, wanted, atol=1e-9)


@pytest.mark.parametrize(
    "settings", [{}, {"up_axis": "z", "fps": 15.0}, {"fps": 25.0}], ids=["plain", "z up", "resampled"]
)
def test_what_is_written_back_stands_at_the_same_places_in_the_files_own_hierarchy(above, tmp_path, settings):
    file, _ = above
    config = DataConfig(**settings)
    clip = BvhReader(file, config).read("source")
    write_bvh(tmp_path / "again.bvh", clip.motion, clip.layout, file, config)
    again = BvhReader(tmp_path / "again.bvh", config).read("again")
    np.testing.assert_allclose(again.motion, clip.motion, atol=2e-6)
    assert read_bvh(tmp_path / "again.bvh").joints == read_bvh(file).joints
    if not settings:
        for found, wanted in zip(world_of_file(tmp_path / "again.bvh"), world_of_file(file), strict=True):
            for name in wanted:
                np.testing.assert_allclose(found[name], wanted[name], atol=2e-4, err_msg=name)


def test_another_way_is_written_so_that_the_carrier_goes_it(above, tmp_path):
    file, carrier = above
    clip = BvhReader(file, DataConfig()).read("source")
    clip.motion[:, -3:] += [1.0, 0.5, -2.0]
    first = 6 * [part.name for part in clip.layout].index(carrier)
    clip.motion[:, first : first + 6] = np.roll(clip.motion[:, first : first + 6], 5, axis=0)
    write_bvh(tmp_path / "again.bvh", clip.motion, clip.layout, file, DataConfig())
    again = BvhReader(tmp_path / "again.bvh", DataConfig()).read("again")
    np.testing.assert_allclose(again.motion, clip.motion, atol=2e-6)
    places, _ = world_of_file(tmp_path / "again.bvh")
    np.testing.assert_allclose(places[carrier], 100 * clip.motion[:, -3:], atol=1e-3)


def test_a_still_root_gives_the_same_columns_in_a_file_in_which_it_moves(tmp_path):
    parts = [Part("root", "", (0, 0, 0), 6), *body("Hips", "root")]
    for still in ((), ("root",), ("root", "Hips")):
        file = write_body(tmp_path / "one.bvh", parts, still=still)
        assert Tree(read_bvh(file).joints, bones_of(read_bvh(file).joints)).carrier() == 1


def test_bones_come_from_position_channels_where_every_joint_has_them(tmp_path):
    parts = [part._replace(channels=6) for part in body()]
    file = write_body(tmp_path / "one.bvh", parts)
    bvh = read_bvh(file)
    first = bvh.values[0]
    starts = np.cumsum([0, *(len(joint.channels) for joint in bvh.joints)])
    for index, joint in enumerate(bvh.joints):
        wanted = first[starts[index] : starts[index] + 3] if joint.parent >= 0 and joint.name else joint.offset
        if joint.parent >= 0:
            np.testing.assert_array_equal(bones_of(bvh.joints, first)[index], wanted)
            np.testing.assert_array_equal(bones_of(bvh.joints)[index], joint.offset)


@pytest.mark.parametrize("settings", [{}, {"metres_per_unit": 0.01}], ids=["no unit", "unit"])
def test_position_channels_that_leave_no_bones_are_refused(tmp_path, settings):
    parts = [part._replace(channels=6) for part in body()]
    file = write_body(tmp_path / "one.bvh", parts)
    head, motion = file.read_text().split("Frame Time: 0.0333333\n")
    rows = [line.split() for line in motion.splitlines()]
    for row in rows:
        for first in range(6, len(row), 6):
            row[first : first + 3] = "000"
    file.write_text(f"{head}Frame Time: 0.0333333\n" + "\n".join(map(" ".join, rows)))
    with pytest.raises(ClipError, match="are 0 on all joints and so put them in one place"):
        take_of(file, **settings)


@pytest.mark.parametrize(
    ("positions", "carrier"), [((), 0), ((0,), 0), ((0, 1), 1), ((1,), 1), ((0, 1, 2, 3), 0)], ids=str
)
def test_joints_in_a_row_are_carried_by_the_last_that_has_a_place_of_its_own(positions, carrier):
    turns, places = ("Zrotation", "Xrotation"), ("Xposition", "Yposition", "Zposition")
    joints = [
        Joint(f"j{index}", index - 1, (0, 1, 0), (*places, *turns) if index in positions else turns)
        for index in range(4)
    ]
    assert Tree(joints, bones_of(joints)).carrier() == carrier


def test_two_figures_under_one_root_are_refused(tmp_path):
    second = [part._replace(name=f"B:{part.name}" if part.name else "", parent=f"B:{part.parent}") for part in body()]
    second[0] = second[0]._replace(parent="Scene")
    file = write_body(tmp_path / "two.bvh", [Part("Scene", "", (0, 0, 0), 6), *body("Hips", "Scene"), *second])
    with pytest.raises(ClipError, match=r"holds two figures, Hips and B:Hips; export each"):
        take_of(file)
    parts = [Part("rig", "", (0, 0, 0), 6), *_CONTROLS, *body("Hips", "rig"), second[0]._replace(parent="rig")]
    with pytest.raises(ClipError, match=r"holds two figures, Hips and B:Hips; export each"):
        take_of(write_body(tmp_path / "three.bvh", [*parts, *second[1:]]))
    text = file.read_text()
    file.write_text(text.replace("B:Hips", "second").replace("Hips", "first"))  # of the same build, with any names
    with pytest.raises(ClipError, match=r"holds two figures, first and second"):
        take_of(file)


def test_controls_above_controls_are_looked_through_in_no_time():
    """A file of 4,000 joints may hold anything."""
    turns = ("Zrotation",)
    joints, last = [Joint("rig", -1, (0, 0, 0), turns)], 0
    for level in range(570):
        for side, x in (("L", 1), ("R", -1)):
            joints.append(Joint(f"{side}_{level}", last, (x, 0, 0), turns))
            joints.append(Joint(f"{side}_{level}_end", len(joints) - 1, (x, 0, 0), turns))
        joints.append(Joint(f"middle_{level}", last, (0, 1, 0), turns))
        last = len(joints) - 1
    rows = {"": last}
    for part in body():
        rows[part.name or "end"] = len(joints)
        joints.append(Joint(part.name, rows[part.parent], part.offset, turns if part.name else ()))
    tree = Tree(joints, bones_of(joints))
    assert joints[tree.carrier()].name == "Hips"
    assert tree.size() == (pytest.approx(169), True)
