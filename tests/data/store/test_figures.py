"""The figure that a store's columns move, and the root's path, in metres."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.readers import open_reader
from ds_rvqvae.data.look import look_at
from ds_rvqvae.data.store.figures import Figure, Posture, check_upright, figure_of, lying_note, posture_of, root_of
from ds_rvqvae.data.store.prepare import prepare
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.layout import joint_layout, layout_to_json
from tests.data.store.looked_at import humanml3d, make_store


def test_humanml3d_features_are_figures(tmp_path):
    store = make_store(tmp_path, humanml3d(tmp_path / "motion"), fps=20.0)
    facts = look_at(store, 64).facts
    assert facts["warnings"] == [] and facts["figure"]["tall_m"] == pytest.approx(1.52, abs=0.1)
    assert facts["root"]["speed_m_per_s"]["median"] == pytest.approx(1.0, abs=0.01)
    path = root_of(store).path(store.clip(store.clip_names[0]))
    # A complete circle of 80 steps of 5 cm: back at the start, and 4 m / pi across.
    np.testing.assert_allclose(path[-1, [0, 2]], 0, atol=1e-3)
    assert np.ptp(path[:, 0]) == pytest.approx(4 / np.pi, abs=2e-2)
    assert figure_of(store).parents[21] == 19


def test_bones_stand_in_one_pose_a_clip(demo_store):
    figure = figure_of(demo_store)
    places = figure.places(demo_store.clip(demo_store.clip_names[0])[:3])
    front = figure.front(places)
    assert places.shape == (3, 55, 3) and (front[:, 1] > 0.9).all()
    assert sorted(np.unique(figure.sides).tolist()) == [-1, 0, 1] and figure.joint_names[figure.head] == "head"


STANDING = Figure(
    "six joints",
    ("pelvis", "left_hip", "right_hip", "left_ankle", "left_toe", "my_head"),
    (-1, 0, 0, 1, 3, 0),
    np.array([0, 1, -1, 1, 1, 0]),
    lambda motion: np.zeros((len(motion), 6, 3)),
)
PLACES = np.array([[0, 1, 0], [0.1, 1, 0], [-0.1, 1, 0], [0.1, 0.1, 0], [0.1, 0, 0.2], [0, 1.7, 0]])
"""The figure faces z, with its left at x."""


def test_joints_are_found_by_what_their_names_say():
    assert STANDING.head == 5 and STANDING.feet.tolist() == [3, 4]
    assert STANDING.joints("hip").tolist() == [1, 2] and STANDING.joints("tail").tolist() == []
    assert replace(STANDING, joint_names=("a", "b", "Forehead", "Head", "e", "f")).head == 3
    assert replace(STANDING, joint_names=tuple("abcdef")).head is None


@pytest.mark.parametrize("degrees", [0, 90, 180, 225])
def test_a_figure_faces_where_its_left_is_on_its_left(degrees):
    turn = Rotation.from_euler("y", degrees, degrees=True)
    places = turn.apply(PLACES)[None]
    ahead = [np.sin(np.radians(degrees)), np.cos(np.radians(degrees))]
    np.testing.assert_allclose(STANDING.front(places), [ahead], atol=1e-12)
    np.testing.assert_allclose(STANDING.toes_ahead(places), [0.2], atol=1e-12)
    # Seen in a mirror, the toes point backwards.
    np.testing.assert_allclose(STANDING.toes_ahead(places * [-1, 1, 1]), [-0.2], atol=1e-12)


def test_where_sides_are_not_known_a_figure_faces_z_and_without_toes_nothing_is_ahead():
    nobody = replace(STANDING, sides=np.zeros(6, np.int64), joint_names=tuple("abcdef"))
    assert nobody.front(PLACES[None, :, [2, 1, 0]]).tolist() == [[0, 1]] and nobody.toes_ahead(PLACES[None]) is None
    lying = PLACES[None, :, [1, 0, 2]]
    assert STANDING.front(lying).tolist() == [[0, 1]]


def test_kits_places_are_millimetres(tmp_path):
    motion = np.random.default_rng(0).normal(size=(60, 251)).astype(np.float32)
    motion[:, 0], motion[:, 1], motion[:, 2], motion[:, 3] = 0, 10, 20, 900
    (tmp_path / "motion").mkdir()
    np.save(tmp_path / "motion" / "a.npy", motion)
    store = make_store(tmp_path, tmp_path / "motion", fps=12.5)
    figure, path = figure_of(store), root_of(store).path(motion)
    places = figure.places(motion)
    np.testing.assert_allclose(places[:, 0], path)
    np.testing.assert_allclose(places[:, 20], motion[:, 61:64] / 1000 + path * [1, 0, 1], rtol=1e-6)
    np.testing.assert_allclose(path, np.stack([np.arange(60) * 0.01, np.full(60, 0.9), np.arange(60) * 0.02], axis=1))
    assert figure.parents[:5] == (-1, 0, 1, 2, 3) and figure.joint_names[figure.head] == "head"
    assert [figure.joint_names[joint] for joint in np.flatnonzero(figure.sides > 0)] == [
        name for name in figure.joint_names if name.startswith("left")
    ]


UP = {"y": None, "z": (90, 0, 0), "x": (0, 0, -90)}
"""Rotations that make a figure that stands along y stand along another axis."""
BODY = """HIERARCHY
ROOT Hips
{{
  OFFSET 0 0 0
  CHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation
  JOINT {head}
  {{
    OFFSET {top}
    CHANNELS 3 Zrotation Xrotation Yrotation
    End Site
    {{
      OFFSET {end}
    }}
  }}
  JOINT {foot}
  {{
    OFFSET {bottom}
    CHANNELS 3 Zrotation Xrotation Yrotation
    End Site
    {{
      OFFSET {end}
    }}
  }}
}}
MOTION
Frames: 40
Frame Time: 0.0333333
"""


def write_smpl(file, up="y", joints=52, degrees=0, **changes):
    """Writes forty frames, with AMASS's keys, of a figure that stands along an axis and leans by `degrees`."""
    rng = np.random.default_rng(0)
    poses = 0.02 * rng.normal(size=(40, 3 * joints))
    turn = Rotation.from_euler("xyz", UP[up] or (0, 0, 0), degrees=True)
    poses[:, :3] = (turn * Rotation.from_euler("x", degrees, degrees=True)).as_rotvec()
    trans = turn.apply([0.1, 0.9, 0.2] + 0.001 * rng.normal(size=(40, 3)))
    content = {"poses": poses, "trans": trans, "mocap_framerate": np.array(30.0), **changes}
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **content)
    return file


def write_bvh(file, up="y", head="Head", foot="LeftFoot"):
    """Writes a body in metres whose bones stand along an axis."""
    axis = "xyz".index(up)
    places = {
        key: " ".join(str(value * (index == axis)) for index in range(3))
        for key, value in (("top", 0.7), ("bottom", -0.9), ("end", 0.05))
    }
    rng = np.random.default_rng(0)
    rows = "\n".join(
        " ".join(f"{value:.3f}" for value in row) for row in rng.normal(size=(40, 12)) * ([0.1] * 3 + [3] * 9)
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(BODY.format(head=head, foot=foot, **places) + rows + "\n")
    return file


def check(path, **settings):
    """Returns the notes on a file or folder."""
    reader = open_reader(path, DataConfig(**{"metres_per_unit": 1.0, **settings}))
    check_upright(reader, reader.clip_names())
    return reader.notes


@pytest.mark.parametrize(
    "write",
    [
        write_smpl,
        write_bvh,
        lambda file, up: write_smpl(file, up, 55),
        lambda file, up: write_smpl(file, up, 55, expressions=np.ones((40, 100))),
    ],
)
def test_figures_that_lie_are_refused_until_the_axis_is_said(tmp_path, write):
    suffix = ".bvh" if write is write_bvh else ".npz"
    file = write(tmp_path / f"a{suffix}", "z")
    for path in (file, tmp_path):
        with pytest.raises(UserError, match="figures lie: in 1 of 1 checked clips") as refusal:
            check(path)
        words = str(refusal.value)
        assert "m along z and 0.0" in words and "--up_axis z (rvqvae.data.up_axis) turns z up" in words
        assert "--up_axis y (rvqvae.data.up_axis) reads them as they are" in words and len(words.splitlines()) == 1
        assert check(path, up_axis="z") == check(path, up_axis="y") == ()
        assert len(check(path, reading_version=1)) == 1
    upright = write(tmp_path / "up" / f"a{suffix}", "y")
    assert check(upright) == check(upright, up_axis="y") == check(upright, reading_version=1) == ()
    assert "this is after turning them by rvqvae.data.up_axis z" in check(upright, up_axis="z")[0]


def test_what_no_setting_turns_is_said(tmp_path):
    write_smpl(tmp_path / "a.npz", "x")
    with pytest.raises(UserError, match=r"m along x and .*: no setting turns x up, --up_axis y"):
        check(tmp_path)


@pytest.mark.parametrize(("lying", "ends"), [(1, ""), (8, ""), (40, "noted"), (70, "refused"), (100, "refused")])
def test_a_few_clips_of_people_on_the_floor_are_no_other_axis(tmp_path, lying, ends):
    order = np.random.default_rng(3).permutation(100)
    for index in range(100):
        write_smpl(tmp_path / f"{index:03}.npz", "z" if order[index] < lying else "y")
    if ends == "refused":
        with pytest.raises(UserError, match="figures lie"):
            check(tmp_path)
    else:
        notes = check(tmp_path)
        assert bool(notes) == (ends == "noted"), notes
        assert all("does another axis point up in some files?" in note for note in notes)


@pytest.mark.parametrize(("degrees", "lies"), [(0, False), (45, False), (60, True), (90, True), (180, True)])
def test_leaning_is_not_lying(tmp_path, degrees, lies):
    write_smpl(tmp_path / "a.npz", degrees=degrees)
    assert posture_of(open_reader(tmp_path, DataConfig()).take("a")).lies is lies


def test_figures_that_stand_on_their_heads_are_refused(tmp_path):
    """An example is a figure in the axes of a camera, where y points down."""
    write_smpl(tmp_path / "a.npz", degrees=180)
    with pytest.raises(
        UserError,
        match=r"stand on their heads: in 1 of 1 checked clips, they extend .* m along -y from feet to head; y should",
    ):
        check(tmp_path)
    with pytest.raises(UserError, match="no setting turns -y up, --up_axis y"):
        check(tmp_path)
    assert check(tmp_path, up_axis="y") == ()


def test_prepare_and_append_stop_before_they_pack(tmp_path):
    write_smpl(tmp_path / "data" / "a.npz", "z")
    write_smpl(tmp_path / "more" / "b.npz", "y")
    with pytest.raises(UserError, match="--up_axis z"):
        prepare(DataConfig(path=str(tmp_path / "data")), tmp_path / "store")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "data", "more"]
    prepare(DataConfig(path=str(tmp_path / "more")), tmp_path / "store")
    with pytest.raises(UserError, match="--up_axis z"):
        prepare(DataConfig(path=str(tmp_path / "data")), tmp_path / "store", append=True)
    store = prepare(DataConfig(path=str(tmp_path / "data"), up_axis="z"), tmp_path / "z").store
    assert store.clip("a")[:, -2] == pytest.approx(0.9, abs=0.01) and store.report()["notes"] == {}


def test_formats_that_are_not_turned_are_noted(tmp_path):
    take = open_reader(write_smpl(tmp_path / "a.npz", "z"), DataConfig()).take("a")
    clip = {"motion": take.motion.astype(np.float32), "clip_start": np.array([0, 40]), "clip_name": np.array(["a"])}
    packed = tmp_path / "packed.npz"
    np.savez(packed, **clip, fps=np.array(30.0), layout=json.dumps(layout_to_json(take.layout)))
    (note,) = check(packed)
    assert note.startswith("figures lie") and note.endswith("rvqvae.data.up_axis has no effect on packed npz")
    assert check(packed, up_axis="y") == () and len(check(packed, up_axis="z")) == 2
    np.savez(packed, **clip, fps=np.array(30.0))
    assert check(packed) == () and check(packed, up_axis="z") == ("rvqvae.data.up_axis z has no effect on packed npz",)


def test_a_single_file_is_noted(tmp_path):
    for axis, words in ((None, "does another axis point up?"), ("z", None), ("y", None)):
        reader = open_reader(write_smpl(tmp_path / "a.npz", "z"), DataConfig(up_axis=axis))
        note = lying_note(reader, reader.take("a"))
        assert note is None if words is None else words in note and "lies along z" in note
    upright = open_reader(write_smpl(tmp_path / "a.npz"), DataConfig())
    assert lying_note(upright, upright.take("a")) is None


def test_a_body_of_unknown_names_is_judged_by_its_spread_and_a_hand_is_not(tmp_path):
    take = open_reader(write_bvh(tmp_path / "a.bvh", "z"), DataConfig(metres_per_unit=1.0)).take("a")
    assert posture_of(take) == Posture(pytest.approx(1.6, abs=0.01), take_shares := posture_of(take).shares, "a")
    assert take_shares[2] > 0.99
    names = [f"bone{index}" for index in range(12)]
    offsets = np.zeros((12, 3))
    offsets[1:, 2] = 0.15
    motion = np.tile([1, 0, 0, 0, 1, 0.0], (20, 12))

    def made(scale):
        skeleton = {"joint_names": names, "parents": list(range(-1, 11)), "offsets": (offsets * scale).tolist()}
        return replace(take, motion=motion, layout=joint_layout(names, "position")[:-1], skeleton=skeleton)

    assert posture_of(made(1)).lies and posture_of(made(0.1)) is None
    assert posture_of(replace(made(1), motion=motion * np.nan)) is None
    assert posture_of(made(1000)) is None  # no figure in metres
