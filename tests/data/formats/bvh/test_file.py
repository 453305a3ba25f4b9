"""BVH files: exact rotations and positions, all spellings of the format, and damaged files."""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.bvh import file as bvh_file
from ds_rvqvae.data.formats.bvh.bodies import Tree, bones_of
from ds_rvqvae.data.formats.bvh.file import read_bvh
from ds_rvqvae.data.formats.bvh.reader import BvhReader
from ds_rvqvae.data.formats.writing import open_motion_file
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import ClipError, Take
from ds_rvqvae.motion.rotations import rotation_6d_to_matrix
from ds_rvqvae.motion.skeleton import joint_places, skeleton_from_json

FIGURE = """HIERARCHY
ROOT Hips
{
\tOFFSET 0.0 90.0 0.0
\tCHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation
\tJOINT Left Arm
\t{
\t\tOFFSET 10.0 60.0 0.0
\t\tCHANNELS 3 Yrotation Xrotation Zrotation
\t\tEnd Site
\t\t{
\t\t\tOFFSET 75.0 0.0 0.0
\t\t}
\t}
\tJOINT mixamorig:Leg
\t{
\t\tOFFSET 10.0 -85.0 0.0
\t\tCHANNELS 1 Xrotation
\t}
}
MOTION
Frames: 3
Frame Time: .0083333
1 92 3 10 20 30 40 50 60 70
1.5 93 2.5 11 21 31 41 51 61 71
2 94 2 12 22 32 42 52 62 72
"""
"""145 units tall; ten channels."""
MOTION = np.array([[1, 92, 3, *range(10, 71, 10)], [1.5, 93, 2.5, *range(11, 72, 10)], [2, 94, 2, *range(12, 73, 10)]])


def write(folder: Path, text: str | bytes, name: str = "figure.bvh") -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def take_of(file: Path, **config) -> Take:
    reader = BvhReader(file, DataConfig(**config))
    return reader.take(reader.clip_names()[0])


def matrices(take: Take, joint: str) -> np.ndarray:
    part = next(part for part in take.layout if part.name == joint)
    return rotation_6d_to_matrix(take.motion[:, part.start : part.stop])


def euler(axes: str, degrees) -> np.ndarray:
    """Returns the product of rotations from left to right, for column vectors."""
    return Rotation.from_euler(axes, degrees, degrees=True).as_matrix()


def test_a_file_gives_rotations_the_roots_place_and_its_skeleton(tmp_path):
    take = take_of(write(tmp_path, FIGURE))
    assert [(part.name, part.kind) for part in take.layout] == [
        ("Hips", "rotation_6d"),
        ("Left Arm", "rotation_6d"),
        ("mixamorig:Leg", "rotation_6d"),
        ("translation", "position"),
    ]
    np.testing.assert_allclose(matrices(take, "Hips"), euler("ZXY", MOTION[:, 3:6]), atol=1e-12)
    np.testing.assert_allclose(matrices(take, "Left Arm"), euler("YXZ", MOTION[:, 6:9]), atol=1e-12)
    np.testing.assert_allclose(matrices(take, "mixamorig:Leg"), euler("X", MOTION[:, 9]), atol=1e-12)
    np.testing.assert_allclose(take.motion[:, 18:], MOTION[:, :3] / 100, atol=1e-15)
    assert take.fps == pytest.approx(120, rel=1e-5) and take.split is None and not take.empty.any()
    assert take.notes == ()
    assert take.skeleton["joint_names"] == ["Hips", "Left Arm", "mixamorig:Leg"]
    assert take.skeleton["parents"] == [-1, 0, 0]
    np.testing.assert_allclose(take.skeleton["offsets"], [[0, 0.9, 0], [0.1, 0.6, 0], [0.1, -0.85, 0]])


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\r"),
        lambda text: text.replace("\n", "\n\n") + "\n \n",
        lambda text: "\ufeff" + text,
        lambda text: text.replace("ROOT", "root").replace("JOINT", "Joint").replace("rotation", "ROTATION"),
        lambda text: text.replace("End Site", "end site").replace("OFFSET", "offset").replace("CHANNELS", "channels"),
        lambda text: text.replace("MOTION", "motion").replace("Frames:", "FRAMES :").replace("Time:", "time:\t"),
        lambda text: text.replace("\n\t{", " {").replace("\n{", " {"),
        lambda text: text.replace(" 30 ", "\n30 ").replace(" 31 ", " \r\n\n31\t").replace(" 70\n", "   70  \n"),
        lambda text: text.replace(" 10 ", " 1.0e+1 ").replace("40", "+40."),
        lambda text: text.replace("mixamorig:Leg", "mixamorig:Leg  ").removesuffix("\n"),
        lambda text: text.replace("End Site\n", "End Site tip of the arm\n"),
    ],
    ids=[
        *("crlf", "cr", "blank lines", "bom", "keywords", "more keywords", "motion's keywords", "braces"),
        *("wrapped", "numbers", "ends", "named end"),
    ],
)
def test_every_way_of_writing_a_file_says_the_same(tmp_path, rewrite):
    text = rewrite(FIGURE)
    assert text != FIGURE
    wanted = read_bvh(write(tmp_path, FIGURE, "plain.bvh"))
    found = read_bvh(write(tmp_path, text))
    assert found.joints == wanted.joints and found.fps == wanted.fps
    np.testing.assert_array_equal(found.values, wanted.values)


def test_a_header_without_line_ends_is_read(tmp_path):
    text = FIGURE.replace("Left Arm", "LeftArm")
    header, motion = text.split("MOTION\n")
    header = header.replace("\n", " ").replace("\t", " ")
    for name in ("Hips", "LeftArm", "mixamorig:Leg"):
        header = header.replace(f"{name} {{", f"{name}{{")
    found = read_bvh(write(tmp_path, f"{header}\nMOTION\n{motion}"))
    assert found.joints == read_bvh(write(tmp_path, text, "plain.bvh")).joints


AXES = st.lists(st.sampled_from("XYZ"), min_size=1, max_size=3)
ANGLES = st.floats(-720, 720, allow_subnormal=False)


@st.composite
def figures(draw) -> tuple[str, list[tuple[str, np.ndarray]], np.ndarray]:
    """Returns the text of a chain of joints, their axes and angles, and each position relative to the joint before."""
    chain = draw(st.lists(AXES, min_size=1, max_size=4))
    frames = draw(st.integers(1, 3))
    columns, joints, header = [], [], ["HIERARCHY"]
    places = []
    for index, axes in enumerate(chain):
        rotations = [f"{axis}rotation" for axis in axes]
        positions = draw(st.lists(st.sampled_from("XYZ"), unique=True, max_size=3))
        channels = draw(st.permutations([*rotations, *(f"{axis}position" for axis in positions)]))
        angles = {}
        places.append(np.tile([0.0, index, 0.0], (frames, 1)))
        for channel in channels:
            values = draw(st.lists(ANGLES, min_size=frames, max_size=frames))
            columns.append(values)
            if channel.endswith("rotation"):
                angles.setdefault(channel[0], []).append(values)
            else:
                places[-1][:, "XYZ".index(channel[0])] = values
        order = "".join(channel[0] for channel in channels if channel.endswith("rotation"))
        joints.append((order, np.array([angles[axis].pop(0) for axis in order]).T))
        header += [f"{'JOINT' if index else 'ROOT'} joint{index}", "{", f"OFFSET 0 {index} 0"]
        header.append(f"CHANNELS {len(channels)} {' '.join(channels)}")
    motion = [" ".join(map(repr, row)) for row in np.array(columns).T.tolist()]
    lines = [*header, "}" * len(chain), "MOTION", f"Frames: {frames}", "Frame Time: 0.05", *motion]
    return "\n".join(lines), joints, places


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(figures())
def test_any_order_of_channels_gives_the_product_from_left_to_right(tmp_path, figure):
    text, joints, places = figure
    file = write(tmp_path, text)
    take = take_of(file, metres_per_unit=0.5)
    carrier = Tree(read_bvh(file).joints, bones_of(read_bvh(file).joints)).carrier()
    turned, place = np.eye(3), np.zeros(3)
    for index, (order, angles) in enumerate(joints):
        wanted = np.eye(3)
        for axis, column in zip(order, angles.T, strict=True):
            wanted = wanted @ euler(axis, column)
        if index <= carrier:
            place = place + np.einsum("...ij,...j", turned, places[index])
            turned = turned @ wanted
        found = matrices(take, f"joint{index}")
        np.testing.assert_allclose(found, turned if index == carrier else wanted, atol=1e-11)
    np.testing.assert_allclose(take.motion[:, -3:], 0.5 * place, atol=1e-9)
    assert take.fps == 20


def test_position_channels_of_other_joints_are_read_past(tmp_path):
    more = "CHANNELS 6 Xposition Yposition Zposition Yrotation Xrotation Zrotation"
    text = FIGURE.replace("CHANNELS 3 Yrotation Xrotation Zrotation", more)
    still = text.replace(" 40 ", " 1 2 3 40 ").replace(" 41 ", " 1 2 3 41 ").replace(" 42 ", " 1 2 3 42 ")
    plain = take_of(write(tmp_path, FIGURE, "plain.bvh"))
    take = take_of(write(tmp_path, still))
    np.testing.assert_array_equal(take.motion, plain.motion)
    assert take.notes == plain.notes and take.layout == plain.layout
    moving = take_of(write(tmp_path, still.replace("1 2 3 41", "1 2 9 41")))
    np.testing.assert_array_equal(moving.motion, plain.motion)
    assert moving.notes == ("position channels of Left Arm change but are not read; only the root's count",)


def test_joints_that_do_not_move_are_no_columns_and_carry_what_hangs_on_them(tmp_path):
    text = FIGURE.replace(
        "\t\tCHANNELS 1 Xrotation\n", "\t\tCHANNELS 0\n\t\tJOINT foot { OFFSET 0 -2 5 CHANNELS 1 Yrotation }\n"
    )
    text = text.replace("ROOT Hips\n{", "ROOT world { OFFSET 5 0 0 JOINT Hips {").replace("\nMOTION", "}\nMOTION")
    take = take_of(write(tmp_path, text), metres_per_unit=1)
    assert [part.name for part in take.layout] == ["Hips", "Left Arm", "foot", "translation"]
    np.testing.assert_allclose(matrices(take, "foot"), euler("Y", MOTION[:, 9]), atol=1e-12)
    np.testing.assert_array_equal(take.motion[:, 18:], MOTION[:, :3] + [5, 0, 0])  # the root is the world, at rest
    assert take.skeleton["joint_names"] == ["Hips", "Left Arm", "foot"]
    assert take.skeleton["parents"] == [-1, 0, 0]
    assert take.skeleton["offsets"] == [[5, 90, 0], [10, 60, 0], [10, -87, 5]]


def test_names_that_stand_twice_are_made_unique(tmp_path):
    text = FIGURE.replace("Left Arm", "translation").replace("mixamorig:Leg", "Hips")
    take = take_of(write(tmp_path, text), metres_per_unit=0.01)
    assert [part.name for part in take.layout] == ["Hips", "translation.1", "Hips.1", "translation"]
    assert take.skeleton["joint_names"] == ["Hips", "translation.1", "Hips.1"]
    assert "a second translation is called translation.1 (and 1 more)" in take.notes[0]


@pytest.mark.parametrize(
    ("scale", "unit"),
    [(1, "1 cm"), (10, "0.1 cm"), (0.01, "1 m"), (0.4, "2.54 cm"), (0.033, "30.48 cm"), (0.17, "5.644 cm")],
)
def test_the_unit_is_recognised_by_the_figures_size(tmp_path, scale, unit):
    lines = FIGURE.splitlines()
    for index, line in enumerate(lines):
        if "OFFSET" in line:
            lines[index] = "OFFSET " + " ".join(str(scale * float(word)) for word in line.split()[1:])
    take = take_of(write(tmp_path, "\n".join(lines)))
    reader = BvhReader(tmp_path / "figure.bvh", DataConfig())
    reader.check(reader.clip_names())
    assert reader.readings[0].startswith(f"1 unit = {unit}, by the body's height, ")
    is_said = unit in ("1 m", "30.48 cm", "2.54 cm", "5.644 cm")
    assert [f"1 unit = {unit} is assumed" in note for note in take.notes] == [True] * is_said
    given = take_of(tmp_path / "figure.bvh", metres_per_unit=2)
    assert given.notes == ()
    np.testing.assert_allclose(given.motion[:, 18:], 2 * MOTION[:, :3])


@pytest.mark.parametrize("root_turns", [True, False])
def test_a_figure_with_z_up_is_turned_upright(tmp_path, root_turns):
    text = FIGURE
    if not root_turns:
        text = text.replace(
            "CHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation",
            "CHANNELS 3 Xposition Yposition Zposition",
        )
        for row in ("10 20 30 ", "11 21 31 ", "12 22 32 "):
            text = text.replace(row, "")
    file = write(tmp_path, text)
    places = []
    for up_axis in "yz":
        take = take_of(file, up_axis=up_axis)
        places.append(joint_places(take.motion, take.layout, skeleton_from_json(take.skeleton, "figure")))
    turned = places[0] @ np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]).T  # z to y, y to -z
    np.testing.assert_allclose(places[1], turned, atol=1e-12)
    assert not np.allclose(places[0], places[1])
    take = take_of(file, up_axis="z")
    np.testing.assert_allclose(take.skeleton["offsets"][0], [0, 0, -0.9])


def test_frames_of_zeros_are_told(tmp_path):
    text = FIGURE.replace("1.5 93 2.5 11 21 31 41 51 61 71", " ".join("0" * 10))
    assert take_of(write(tmp_path, text)).empty.tolist() == [False, True, False]


def _nested(depth: int) -> str:
    opened = "".join(f"JOINT j{index} {{ OFFSET 0 1 0 CHANNELS 1 Xrotation\n" for index in range(depth))
    return f"HIERARCHY ROOT r {{ OFFSET 0 0 0 {opened} {'}' * (depth + 1)}\nMOTION\nFrames: 1\nFrame Time: 1\n"


DAMAGED = {
    "empty": ("", "starts with the end, not with HIERARCHY"),
    "junk": (bytes(range(256)) * 40, "not a BVH file"),
    "zeros": (bytes(5_000_000), "not a BVH file"),
    "no motion": (FIGURE.partition("MOTION")[0], "no MOTION section"),
    "cut header": (FIGURE[:200], "cut short"),
    "open brace": (FIGURE.replace("}\nMOTION", "MOTION"), "closing brace is missing: Hips is open"),
    "more braces": (FIGURE.replace("}\nMOTION", "}\n}\nMOTION"), "outside of a joint"),
    "no root": ("HIERARCHY\nMOTION\nFrames: 1\nFrame Time: 1\n", "no ROOT"),
    "two roots": (FIGURE.replace("JOINT Left", "ROOT Left"), "line 6: a second ROOT"),
    "no offset": (FIGURE.replace("\t\tOFFSET 10.0 60.0 0.0\n", ""), "a joint without OFFSET"),
    "short offset": (FIGURE.replace("10.0 60.0 0.0", "10.0 60.0"), "OFFSET is not 3 numbers"),
    "nan offset": (FIGURE.replace("60.0", "nan"), "OFFSET is not 3 numbers"),
    "no name": (FIGURE.replace("Left Arm", ""), "JOINT has no name"),
    "channel": (FIGURE.replace("1 Xrotation", "1 Xscale"), "channel 'Xscale' is not a position or rotation"),
    "few channels": (FIGURE.replace("1 Xrotation", "3 Xrotation"), "'}' is not a position"),
    "many channels": (FIGURE.replace("1 Xrotation", "999999999 Xrotation"), "a number from 0 to 6"),
    "four rotations": (FIGURE.replace("1 Xrotation", "4" + 4 * " Xrotation"), "over 3 rotations"),
    "position twice": (FIGURE.replace("1 Xrotation", "2 Xposition Xposition"), "a position occurs twice"),
    "late channels": (
        FIGURE.replace("\tCHANNELS 6 Xposition", "JOINT a { OFFSET 0 0 0 }\n\tCHANNELS 6 Xposition"),
        "must come before its child joints",
    ),
    "no channels": ("HIERARCHY ROOT a {OFFSET 0 0 0}\nMOTION\nFrames: 1\nFrame Time: 1\n", "no channels"),
    "no frames line": (FIGURE.replace("Frames: 3\n", ""), "where Frames: and its value were expected"),
    "frames": (FIGURE.replace("Frames: 3", "Frames: three"), "Frames: is 'three'"),
    "no frames": (FIGURE.replace("Frames: 3", "Frames: 0"), "Frames: is '0'"),
    "absurd frames": (FIGURE.replace("Frames: 3", "Frames: 999999999999"), "do not fit into a file of this size"),
    "endless frames": (FIGURE.replace("Frames: 3", f"Frames: {'9' * 6000}"), "not a number of frames"),
    "time": (FIGURE.replace(".0083333", "0"), "Frame Time: is '0'"),
    "nan time": (FIGURE.replace(".0083333", "nan"), "Frame Time: is 'nan'"),
    "ends at time": (FIGURE.partition("Frame Time")[0], "Frame Time: is missing"),
    "fewer frames": (FIGURE.replace("Frames: 3", "Frames: 4"), "Frames: gives 4, there are 3"),
    "cut frame": (FIGURE[:-9], "there are 2, and 7 of the 10 values of the next"),
    "more frames": (FIGURE.replace("Frames: 3", "Frames: 2"), "more motion than the 2 frames"),
    "more words": (FIGURE + "7\n", "more motion than the 3 frames"),
    "short line": (FIGURE.replace(" 61 71", " 61"), "frame 1 starts with a line of 9 values; a frame has 10"),
    "moved value": (FIGURE.replace(" 70\n1.5", "\n70 1.5"), "frame 1 starts|frame 0 starts with a line of 9"),
    "two a line": (FIGURE.replace(" 71\n2", " 71 2"), "frame 1 starts with a line of 20"),
    "long line": (FIGURE.replace(" 71\n", " 71" * 2000 + "\n"), "longer than 10 numbers"),
    "comma": (FIGURE.replace("2.5 ", "2,5 "), "frame 1: Hips Zposition is '2,5'"),
    "underscore": (FIGURE.replace(" 61 ", " 6_1 "), "frame 1: Left Arm Zrotation is '6_1'"),
    "script": (FIGURE.replace(" 61 ", " ٦١ "), "frame 1: Left Arm Zrotation is"),
    "deep": (_nested(9000), "more than 4096 joints"),
    "only positions": (
        "HIERARCHY ROOT a {OFFSET 0 0 0 CHANNELS 1 Xposition}\nMOTION\nFrames: 1\nFrame Time: 1\n5\n",
        "no joint has rotation channels",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_refused_with_its_place(tmp_path, case):
    text, complaint = DAMAGED[case]
    with pytest.raises(ClipError, match=complaint) as error:
        take_of(write(tmp_path, text))
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "value",
    [
        *("NaN", "-nan", "inf", "1e999", "-1.#IND", "1.#QNAN", "-1.#INF", "1.#INF00", "-1.#IND00", "1.#SNAN0", "1.#J"),
        *("nan(ind)", "-nan(snan)", "NaNQ", "nan(0x8000)", "Infinity"),
    ],
)
def test_a_frame_with_a_value_that_is_not_finite_is_left_to_the_rules(tmp_path, value):
    bad = ~np.isfinite(take_of(write(tmp_path, FIGURE.replace(" 51 ", f" {value} "))).motion).all(axis=1)
    assert bad.tolist() == [False, True, False]


def test_words_for_infinity_keep_their_sign(tmp_path):
    text = FIGURE.replace(" 51 ", " -1.#INF ").replace("1.5 93", "1.#INF nan")
    values = read_bvh(write(tmp_path, text)).values[1]
    assert values[0] == np.inf and np.isnan(values[1]) and values[7] == -np.inf


@pytest.mark.parametrize("end", ["\x1a", "\r\n\x1a\r\n", "\0" * 200_000, "\n\x1a" + "\0" * 511, "\x1a\n\x1a\n"])
@pytest.mark.parametrize("line_end", ["\n", ""])
def test_what_follows_the_motion_at_the_end_of_a_file_is_read_past(tmp_path, end, line_end):
    wanted = read_bvh(write(tmp_path, FIGURE, "plain.bvh")).values
    found = read_bvh(write(tmp_path, FIGURE.rstrip("\n") + line_end + end))
    np.testing.assert_array_equal(found.values, wanted)


@pytest.mark.parametrize("mark", ["\x1a", "\0"])
def test_the_end_of_a_file_within_its_motion_is_refused(tmp_path, mark):
    for text in (FIGURE.replace("1.5 93", f"{mark}\n1.5 93"), FIGURE.replace(" 51 ", f" 5{mark}1 ")):
        with pytest.raises(ClipError, match="is inside its motion"):
            read_bvh(write(tmp_path, text))
    with pytest.raises(ClipError, match="cut short: Frames: gives 3, there are 2"):
        read_bvh(write(tmp_path, FIGURE[: FIGURE.rindex("2 94")] + mark))


def test_source_fps_takes_the_place_of_frame_time(tmp_path):
    file = write(tmp_path, FIGURE)
    assert take_of(file).fps == pytest.approx(120, rel=1e-5)
    assert take_of(file, source_fps=60).fps == 60
    assert take_of(file, source_fps=60).notes[-1].endswith("but rvqvae.data.source_fps 60 is used")


def test_versions_up_to_0_2_are_read_as_they_read_and_what_differs_is_said(tmp_path):
    text = FIGURE.replace("ROOT Hips\n{", "ROOT world { OFFSET 5 0 0 JOINT Hips {").replace("\nMOTION", "}\nMOTION")
    file = write(tmp_path, text)
    take = take_of(file, reading_version=1)
    np.testing.assert_allclose(take.motion[:, 18:], [[0.05, 0, 0]] * 3)
    assert take.skeleton["joint_names"][0] == "world"
    assert take.notes[:2] == (
        "1 unit = 1 cm, guessed from the size of the skeleton",
        "read as versions up to 0.2 did: position and rotation are those of world, not of Hips by today's rules; "
        "prepare again with rvqvae.data.reading_version 2 to use them",
    )
    plain = write(tmp_path, FIGURE, "plain.bvh")
    for new, old in zip(*([take_of(plain, reading_version=version).motion] for version in (2, 1)), strict=True):
        np.testing.assert_array_equal(new, old)
    small = write(tmp_path, FIGURE.replace("60.0", "35.0").replace("-85.0", "-65.0"), "other.bvh")
    assert "the unit is not known" in take_of(small, reading_version=1).notes[1]


def test_data_whose_unit_is_not_known_are_refused_before_packing_but_single_files_are_left_out(tmp_path):
    def folder(name: str, good: int, bad: int, text: str) -> BvhReader:
        for index in range(good + bad):
            write(tmp_path / name, FIGURE if index < good else text, f"{index:02}.bvh")
        return BvhReader(tmp_path / name, DataConfig())

    hand = FIGURE.replace("Hips", "Wrist").replace("mixamorig:Leg", "Thumb")
    child = FIGURE.replace("60.0", "35.0").replace("75.0", "35.0").replace("-85.0", "-65.0")
    two = folder("both", 9, 2, hand)
    with pytest.raises(UserError, match=r"2 skeletons: 9 files with 3 joints .*, 2 with 3"):
        two.check(two.clip_names())
    for reader in (folder("hands", 0, 3, hand), folder("half", 2, 2, child)):
        with pytest.raises(UserError, match=r"bvh: its unit of length is not known.*--metres_per_unit N") as error:
            reader.check(reader.clip_names())
        assert "\n" not in str(error.value)
    reader = folder("few", 9, 1, hand)
    reader.check(reader.clip_names())
    assert reader.readings == ("1 unit = 1 cm, by the body's height, 1.45 m (9 files)",)
    with pytest.raises(ClipError, match=r"no body with two arms and two legs \(it is .* 0\.14 m in millimetres tall\)"):
        reader.take("09")
    given = BvhReader(tmp_path / "hands", DataConfig(metres_per_unit=0.01))
    given.check(given.clip_names())
    assert given.readings == ("1 unit = 1 cm, as it was given (3 files)",)


def test_joints_in_a_long_chain_are_read(tmp_path):
    file = write(tmp_path, _nested(3000) + " ".join(["5"] * 3000))
    assert take_of(file, metres_per_unit=1).motion.shape == (1, 6 * 3000 + 3)


def test_a_huge_file_is_refused_unread(tmp_path):
    file = write(tmp_path, FIGURE)
    with file.open("r+b") as content:
        content.truncate(bvh_file.LARGEST_FILE + 1)  # a sparse file, which takes no space
    with pytest.raises(ClipError, match=r"1\.0 GiB, more than"):
        take_of(file)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_is_a_take_or_a_clip_error(tmp_path, data):
    content = bytearray(FIGURE.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        until = data.draw(st.integers(at, min(len(content), at + 30)))
        content[at:until] = data.draw(st.binary(max_size=8) | st.sampled_from([b"\n", b"9" * 30, b"{", b"}", b" "]))
    file = write(tmp_path, bytes(content))
    try:
        take = take_of(file)
    except ClipError:
        return
    assert np.isfinite(take.motion).all() and len(take.motion) == len(take.empty)
    assert take.motion.shape[1] == take.layout[-1].stop
    skeleton_from_json(take.skeleton | {"offsets": np.zeros((len(take.skeleton["parents"]), 3))}, "damaged")


def test_a_folder_is_searched_to_any_depth_but_not_round_links(tmp_path):
    data = tmp_path / "data"
    for name in ("b.bvh", "a/B.BVH", "a/deep/er/c.Bvh", ".hidden/d.bvh", "a/.e.bvh", "a/text.txt", "a/x.bvh.bak"):
        write(data, FIGURE, name)
    write(tmp_path / "elsewhere", FIGURE, "f.bvh")
    (data / "a" / "loop").symlink_to(data)
    (data / "link").symlink_to(tmp_path / "elsewhere")
    (data / "second").symlink_to(tmp_path / "elsewhere")
    (data / "dangling.bvh").symlink_to(tmp_path / "nowhere.bvh")
    reader = BvhReader(data, DataConfig())
    assert BvhReader.matches(data) and not BvhReader.matches(data / "a" / "text.txt")
    assert reader.clip_names() == ["a/B", "a/deep/er/c", "b", "dangling", "link/f"]
    assert reader.file_of("a/B") == "a/B.BVH" and reader.weight("b") == len(FIGURE)
    assert len(reader.sources()) == 5
    with pytest.raises(ClipError, match="cannot be read"):
        reader.take("dangling")
    (tmp_path / "none").mkdir()
    assert not BvhReader.matches(tmp_path / "none")


def test_names_that_differ_only_by_suffix_both_count(tmp_path):
    write(tmp_path, FIGURE, "a.BVH")
    write(tmp_path, FIGURE, "a.bvh")
    reader = BvhReader(tmp_path, DataConfig())
    assert reader.clip_names() == ["a", "a.bvh"]
    assert [reader.file_of(name) for name in reader.clip_names()] == ["a.BVH", "a.bvh"]


@pytest.mark.parametrize("beside", [False, True])
def test_lists_of_splits_lie_in_the_folder_or_beside_it(tmp_path, beside):
    data = tmp_path / "bvh"
    for name in ("01/01_01.bvh", "02/02_01.bvh", "02/02_02.bvh"):
        write(data, FIGURE, name)
    folder = tmp_path if beside else data
    (folder / "train.txt").write_text("bvh/01/01_01.bvh\nbvh/09/09_01.bvh\n")
    (folder / "test.txt").write_text("bvh/02/02_01.bvh\n")
    reader = BvhReader(data, DataConfig())
    splits = {}
    for name in reader.clip_names():
        try:
            splits[reader.file_of(name)] = reader.take(name).split
        except ClipError as error:
            splits[reader.file_of(name)] = str(error)
    missing = [split for split in splits.values() if split not in ("train", "test", "additional")]
    assert missing == ["train.txt lists it, but there is no such file"]
    assert [splits[f"{name}.bvh"] for name in ("01/01_01", "02/02_01", "02/02_02")] == ["train", "test", "additional"]
    assert folder / "train.txt" in reader.sources()


def test_lists_of_other_data_beside_the_folder_do_not_count(tmp_path):
    write(tmp_path / "bvh", FIGURE)
    (tmp_path / "train.txt").write_text("000001\n000002\n")
    reader = BvhReader(tmp_path / "bvh", DataConfig())
    assert reader.clip_names() == ["figure"] and reader.take("figure").split is None
    assert len(reader.sources()) == 1


def test_one_file_is_read_by_itself_and_resampled(tmp_path):
    header, motion = FIGURE.replace("Frames: 3", "Frames: 12").split(".0083333\n")
    file = write(tmp_path, f"{header}.0083333\n{motion * 4}", "One.BVH")
    reader = open_motion_file(file, DataConfig(fps=30))
    assert isinstance(reader, BvhReader) and reader.clip_names() == ["One"] and reader.file_of("One") == "One.BVH"
    clip = reader.read("One")
    assert clip.fps == 30 and clip.motion.dtype == np.float32
    np.testing.assert_allclose(clip.motion, reader.take("One").motion[::4], atol=1e-6)
    with pytest.raises(UserError, match="speakers"):
        open_motion_file(file, DataConfig(speakers=[1]))


@pytest.mark.real_data
def test_cmus_clips_equal_their_conversion(tmp_path, real_data):
    wanted = np.load(real_data / "cmu" / "motion_6d.npz")
    names = ["01/01_01", "02/02_03", "05/05_16", "06/06_03", "07/07_12", "09/09_10"]
    with tarfile.open(real_data / "cmu" / "bvh.tar.xz", "r|xz") as archive:
        for member in archive:
            if member.name.removesuffix(".bvh").removeprefix("bvh/") in names:
                target = tmp_path / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as content:
                    shutil.copyfileobj(archive.extractfile(member), content)
    for split in ("train", "val", "test"):
        listed = (real_data / "cmu" / f"{split}.txt").read_text().splitlines()
        there = [name for name in listed if name.removesuffix(".bvh").removeprefix("bvh/") in names]
        (tmp_path / f"{split}.txt").write_text("\n".join(there))
    reader = BvhReader(tmp_path / "bvh", DataConfig())
    assert reader.clip_names() == names
    motion, starts = wanted["motion"], wanted["clip_start"]
    for name in names:
        take = reader.take(name)
        row = wanted["clip_name"].tolist().index(f"bvh/{name}.bvh")
        assert len(take.motion) == wanted["src_frames"][row] and take.split == wanted["split"][row]
        assert take.notes == ()
        found = take.motion[wanted["src_start"][row] :: wanted["src_step"][row]]
        truth = motion[starts[row] : starts[row + 1]]
        np.testing.assert_allclose(found[:, :-3], truth[:, :-3], rtol=0, atol=1e-5)
        np.testing.assert_allclose(found[:, -3:], truth[:, -3:], rtol=0, atol=1e-4)
        assert take.skeleton["joint_names"] == wanted["joint_names"].tolist()
        assert take.skeleton["parents"] == wanted["parents"].tolist()
        np.testing.assert_allclose(take.skeleton["offsets"], wanted["offsets_m"][row], atol=1e-7)
        dropouts = {"07/07_12": [1], "09/09_10": [1, 2, 3, 4]}
        assert np.flatnonzero(take.empty).tolist() == dropouts.get(name, [])
