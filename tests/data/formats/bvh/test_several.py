"""BVH folders with several skeletons: the words of the refusal, one skeleton, the common joints, and files of them."""

import json
import warnings

import numpy as np
import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.bvh.file import read_bvh
from ds_rvqvae.data.formats.bvh.writing import write_bvh, write_bvh_file
from ds_rvqvae.data.formats.readers import open_reader
from ds_rvqvae.data.store.prepare import prepare
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.layout import take_channels
from ds_rvqvae.motion.skeleton import joint_places, skeleton_from_json
from ds_rvqvae.tokenizer.folder import reading_of
from tests.cli.commands import make_tokenizer, run
from tests.data.formats.bvh_files import Part, body, world_of_file, write_body
from tests.data.formats.damaged import broken_bytes, cut

THEIRS = {
    **{f"{side}Thigh": f"{side}UpLeg" for side in ("Left", "Right")},
    **{f"{side}Shin": f"{side}Leg" for side in ("Left", "Right")},
    "Pelvis": "Hips",
    "Torso": "Chest",
}
"""The other studio's names of joints, and ours."""
COMMON = ["Hips", "LeftUpLeg", "LeftLeg", "LeftFoot", "RightUpLeg", "RightLeg", "RightFoot", "Chest", "LeftArm"]
COMMON += ["LeftForeArm", "RightArm", "RightForeArm"]


def other_body() -> list[Part]:
    """Returns a person of another studio: a joint above the hips, a longer spine, a joint more in each leg."""
    ours = {"Head": "Skull"} | {name: theirs for theirs, name in THEIRS.items()}
    parts = [Part("World", "", (0, 0, 0), 6)]
    for part in body("Hips", "World"):
        name, parent = ours.get(part.name, part.name), ours.get(part.parent, part.parent)
        if part.name == "Spine":
            continue
        if part.name == "Chest":
            parts.append(Part("Loin", "Pelvis", (0, 10, 0)))
            parts.append(Part("Waist", "Loin", (0, 2, 0)))
            parent = "Waist"
        if part.name.endswith("UpLeg"):
            parts.append(Part(f"{part.name[:-5]}Hip", parent, part.offset))
            part, parent = part._replace(offset=(0, -0.5, 0)), f"{part.name[:-5]}Hip"
        if part.name.endswith("ForeArm"):
            part = part._replace(offset=(part.offset[0], 10, 0))
        parts.append(part._replace(name=name, parent=parent))
    return parts


@pytest.fixture
def two(tmp_path, monkeypatch):
    """A folder with five files of one studio and three of another."""
    monkeypatch.setenv("DS_RVQVAE_CACHE", str(tmp_path / "cache"))
    for seed in range(5):
        write_body(tmp_path / "data" / "ours" / f"{seed}.bvh", body(), seed=seed)
    for seed in range(5, 8):
        write_body(tmp_path / "data" / "theirs" / f"{seed}.bvh", other_body(), seed=seed)
    (tmp_path / "names.json").write_text(json.dumps(THEIRS))
    return tmp_path / "data"


def common(folder, **settings):
    settings = {"up_axis": "y", "joints": "common", "joint_names": str(folder.parent / "names.json"), **settings}
    return open_reader(folder, DataConfig(path=str(folder), **settings))


def test_two_skeletons_are_refused_with_what_can_be_done(two, capsys):
    status, _, errors = run(capsys, "prepare", two, "--out", two.parent / "store")
    assert status == 2 and errors == [
        f"error: {two}: 2 skeletons: 5 files with 14 joints (such as ours), 3 with 18 (such as theirs); a store has "
        f"one: --skeleton_of {two / 'ours' / '0.bvh'} (rvqvae.data.skeleton_of) takes the files with the skeleton of "
        "that file, --joints common (rvqvae.data.joints) trains on the joints that both have (6 have the same name "
        "now, --joint_names FILE.json (rvqvae.data.joint_names) gives others one: theirs to ours), or prepare a store "
        "of each folder"
    ]
    assert not (two.parent / "store").exists()


def test_a_few_odd_files_are_left_out(two):
    for index in (6, 7):
        (two / "theirs" / f"{index}.bvh").unlink()
    store = prepare(DataConfig(path=str(two), up_axis="y"), workers=1).store
    assert len(store.clip_names) == 5 and [left.file for left in store.left_out] == ["theirs/5.bvh"]


def test_the_same_joints_in_another_hierarchy_are_said_or_refused(two):
    moved = [part._replace(parent="Chest") if part.name == "RightForeArm" else part for part in body()]
    write_body(two / "ours" / "odd.bvh", moved)
    reader = open_reader(two / "ours", DataConfig())
    reader.check(reader.clip_names())
    (note,) = reader.notes
    assert note.startswith(
        "odd.bvh: the joints of the other files in another hierarchy: RightForeArm is below RightArm"
    )
    write_body(two / "ours" / "odder.bvh", moved)
    reader = open_reader(two / "ours", DataConfig())
    words = r"5 files with 14 joints .*, 2 with 14 .*, RightForeArm is below RightArm in one and below Chest"
    with pytest.raises(UserError, match=words):
        reader.check(reader.clip_names())


def test_one_skeleton_is_taken_and_the_others_are_passed_over(two, capsys):
    store = two.parent / "store"
    (two / "train.txt").write_text("ours/0\ntheirs/5\n")  # a list may name files of both
    flags = ("--skeleton_of", two / "theirs" / "6.bvh", "--up_axis", "y")
    status, result, _ = run(capsys, "prepare", two, "--out", store, *flags)
    assert status == 0 and result["clips"] == 3
    (count,) = result["file_counts"]
    passed = {group["reason"]: group["files"] for group in count["passed_over"]}
    assert passed["another skeleton than rvqvae.data.skeleton_of"] == 5 and count["read"] == 3
    with pytest.raises(UserError, match=r"no file has the skeleton of rvqvae\.data\.skeleton_of; 0 has another one"):
        open_reader(two / "ours", DataConfig(skeleton_of=str(two / "theirs" / "6.bvh")))


def test_a_common_joint_turns_as_seen_from_the_next_common_joint_above(two):
    reader = common(two)
    assert reader.config.joints == COMMON and reader.config.joint_names == THEIRS
    for name, wanted in (("ours/1", {"Chest": "Hips"}), ("theirs/6", {"Torso": "Pelvis", "LeftThigh": "Pelvis"})):
        take = reader.take(name)
        assert [part.name for part in take.layout] == [*COMMON, "translation"]
        places, turns = world_of_file(two / f"{name}.bvh")
        for joint, above in wanted.items():
            columns = take_channels(take.layout, [THEIRS.get(joint, joint)])[0]
            relative = np.swapaxes(turns[above], 1, 2) @ turns[joint]
            np.testing.assert_allclose(take.motion[:, columns].reshape(-1, 2, 3), relative[:, :2], atol=1e-9)
        hips = "Hips" if "Hips" in places else "Pelvis"
        np.testing.assert_allclose(take.motion[:, :6].reshape(-1, 2, 3), turns[hips][:, :2], atol=1e-9)
        np.testing.assert_allclose(take.motion[:, -3:], places[hips] / 100, atol=1e-9)
        figure = skeleton_from_json(take.skeleton, name)
        assert figure.joint_names == tuple(COMMON)
        # The bones below common joints only are those of the file.
        found = joint_places(take.motion, take.layout, figure)
        foot = COMMON.index("LeftFoot")
        bone = np.linalg.norm(found[:, foot] - found[:, figure.parents[foot]], axis=1)
        np.testing.assert_allclose(bone, 0.42, atol=1e-9)


def test_rest_poses_that_differ_and_dropped_joints_are_said(two):
    dropped, figure, bent = common(two).notes
    assert "the 12 joints that 2 skeletons have" in dropped
    assert "Spine, Head of 0.bvh and LeftHip, RightHip, Loin, Waist, Skull of 5.bvh" in dropped
    assert "its first file" in figure
    assert bent.endswith("lead to LeftForeArm 20, RightForeArm 20")  # atan(10 / 28) is 19.7 degrees


@pytest.mark.parametrize("up_axis", ["y", "z"])
def test_decoded_motion_is_as_decoded_and_dropped_joints_are_the_sources(two, tmp_path, up_axis):
    reader = common(two, up_axis=up_axis)
    config = reader.config
    decoded = reader.read("ours/2")
    source = two / "theirs" / "7.bvh"
    write_bvh(tmp_path / "out.bvh", decoded.motion, decoded.layout, source, config)
    found = open_reader(tmp_path / "out.bvh", config).read("out")
    np.testing.assert_allclose(found.motion, decoded.motion, atol=1e-6)
    before, after = read_bvh(source), read_bvh(tmp_path / "out.bvh")
    assert after.joints == before.joints
    column = 0
    for joint in before.joints:
        columns = slice(column, column + len(joint.channels))
        if joint.name in ("World", "Loin", "Waist", "Skull", "LeftHip", "RightHip"):
            np.testing.assert_allclose(after.values[:, columns], before.values[:, columns], atol=1e-5)
        elif joint.channels:
            assert np.abs(after.values[:, columns] - before.values[:, columns]).max() > 5
        column = columns.stop
    # Only some of the joints: the others stay.
    columns, layout = take_channels(decoded.layout, ["LeftUpLeg"])
    write_bvh(tmp_path / "leg.bvh", decoded.motion[:, columns], layout, source, config)
    found, was = open_reader(tmp_path / "leg.bvh", config).read("leg"), reader.read("theirs/7")
    np.testing.assert_allclose(found.motion[:, columns], decoded.motion[:, columns], atol=1e-6)
    rest = np.setdiff1d(np.arange(found.motion.shape[1]), columns)
    np.testing.assert_allclose(found.motion[:, rest], was.motion[:, rest], atol=1e-6)


def test_joints_that_cannot_hold_every_rotation_are_said(two, tmp_path):
    reader = common(two)
    clip, source = reader.read("ours/2"), two / "theirs" / "7.bvh"
    assert not write_bvh_file(tmp_path / "a.bvh", clip.motion, clip.layout, 30.0, source, reader.config).notes
    text = source.read_text().replace("LeftShin", "?", 1)
    before, _, after = text.partition("?")
    after = after.replace("CHANNELS 3 Zrotation Xrotation Yrotation", "CHANNELS 3 Zrotation Xrotation Zrotation", 1)
    source.write_text(f"{before}LeftShin{after}")
    written = write_bvh_file(tmp_path / "b.bvh", clip.motion, clip.layout, 30.0, source, reader.config)
    (note,) = written.notes
    assert note == "joints of the source that turn about fewer than three axes are not quite as decoded: LeftLeg"


def test_a_store_and_a_tokenizer_of_the_common_joints_need_no_file(two, tmp_path, capsys):
    flags = ("--joints", "common", "--joint_names", two.parent / "names.json", "--up_axis", "y")
    assert run(capsys, "prepare", two, "--out", tmp_path / "store", *flags)[0] == 0
    store = prepare(DataConfig(path=str(tmp_path / "store"), up_axis="y"), workers=1).store
    assert len(store.clip_names) == 8 and store.settings["joints"] == COMMON
    same = DataConfig(path=str(tmp_path / "store"), joints="common", joint_names=str(two.parent / "names.json"))
    assert prepare(same, workers=1).store.fingerprint == store.fingerprint
    with pytest.raises(UserError, match=r"joints: .* was prepared with .*, not \[\"Hips\"\]; prepare it again"):
        prepare(same.with_values({"joints": ["Hips"]}), workers=1)
    (two.parent / "names.json").unlink()
    tokenizer = make_tokenizer(store.layout)
    tokenizer.details["reading"] = reading_of(store.settings)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    codes, motion = tmp_path / "codes", tmp_path / "motion"
    assert run(capsys, "encode", tmp_path / "tokenizer", two, "--out", codes)[0] == 0
    assert run(capsys, "decode", tmp_path / "tokenizer", codes, "--out", motion)[0] == 0
    config = DataConfig(**tokenizer.details["reading"])
    for name in ("ours/0", "theirs/7"):
        clip, found = (open_reader(folder / f"{name}.bvh", config).read(name[-1]) for folder in (two, motion))
        expected = tokenizer.decode(tokenizer.encode(clip.motion), len(clip.motion))
        np.testing.assert_allclose(found.motion[:, -3:], expected[:, -3:], atol=1e-6)


def test_equal_failures_of_the_other_skeleton_are_one_line(two, tmp_path, capsys):
    tokenizer = make_tokenizer(open_reader(two / "ours", DataConfig()).read("0").layout)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    status, result, errors = run(capsys, "encode", tmp_path / "tokenizer", two, "--out", tmp_path / "codes")
    assert status == 1 and len(result["done"]) == 5 and len(result["failed"]) == 3
    (line,) = errors
    assert line.startswith(f"failed: {two / 'theirs' / '5.bvh'} and 2 more: no Hips (rotation_6d in 6 columns)")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({}, r"joints with different names: Hips, Pelvis; .*only in 0.bvh: Hips, LeftUpLeg.*only in 5.bvh: Pelvis"),
        ({"Pelvis": "Hips", "Nowhere": "Head"}, "joint_names: no file in .* has a joint Nowhere$"),
        ({**THEIRS, "Waist": "Chest"}, "5.bvh: rvqvae.data.joint_names: Waist and Torso both get the name Chest"),
        ({**THEIRS, "Waist": "translation"}, "Waist gets translation, which is reserved"),
        (
            {**THEIRS, "LeftHip": "LeftUpLeg", "LeftThigh": "Spine"},
            "LeftLeg is below LeftUpLeg in one and below Spine in the other; name the joints to use without it",
        ),
    ],
)
def test_names_that_do_not_fit_are_refused(two, names, words):
    with pytest.raises(UserError, match=words) as error:
        common(two, joint_names=names)
    assert "\n" not in str(error.value)


def test_too_few_common_joints_are_refused(two):
    for file in (two / "theirs").iterdir():
        file.write_text(file.read_text().replace("Pelvis", "Hips").replace("Foot", "Sole").replace("Arm", "Limb"))
    with pytest.raises(UserError, match=r"1 joint in common: Hips; --joint_names FILE.json"):
        common(two, joint_names=None)


@pytest.mark.parametrize("way", ["common", "skeleton_of"])
def test_damaged_files_among_two_skeletons_are_left_out(two, way):
    rng, whole = np.random.default_rng(0), (two / "theirs" / "6.bvh").read_bytes()
    damaged = [one.content for one in broken_bytes(rng, whole, 64)] + [cut(rng, whole) for _ in range(36)]
    for index, content in enumerate(damaged):
        (two / "theirs" / f"damaged_{index:02}.bvh").write_bytes(content)
    settings = {"joints": "common", "joint_names": str(two.parent / "names.json")}
    if way == "skeleton_of":
        settings = {"skeleton_of": str(two / "theirs" / "5.bvh")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store = prepare(DataConfig(path=str(two), up_axis="y", **settings), workers=1).store
    stored = {name.partition("#")[0] for name in store.clip_names}
    left = {entry["file"].removesuffix(".bvh") for entry in store.report()["quarantine"]}
    counts = store.report()["file_counts"][0]
    assert {"theirs/5", "theirs/6", "theirs/7"} <= stored and len(
        [name for name in stored | left if "dam" in name]
    ) > 90
    assert counts["read"] + counts["left_out"] + sum(one["files"] for one in counts["passed_over"]) == 108
    assert all(np.isfinite(store.clip(name)).all() for name in store.clip_names)


def test_a_list_of_joints_is_read_from_every_skeleton(two):
    names = ["Chest", "LeftArm", "RightArm"]
    reader = common(two, joints=names)
    reader.check(reader.clip_names())
    take = reader.take("theirs/5")
    turns = world_of_file(two / "theirs" / "5.bvh")[1]
    np.testing.assert_allclose(take.motion[:, :6].reshape(-1, 2, 3), turns["Torso"][:, :2], atol=1e-9)
    assert [part.name for part in take.layout] == [*names, "translation"]
    store = prepare(common(two, joints=["Head"], joint_names=None).config, workers=1).store
    assert len(store.clip_names) == 5
    assert "has no turning joint Head, which rvqvae.data.joints names" in store.left_out[0].reason
