"""Joint positions: HumanML3D's and KIT's folders, positions of other joints, and what cannot be known."""

import json
from pathlib import Path

import numpy as np
import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.readers import open_reader
from ds_rvqvae.data.formats.writing import WRITERS, open_motion_file
from ds_rvqvae.data.store.prepare import prepare, settings_of
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion import recovery
from ds_rvqvae.motion.clip import ClipError, UnfitError
from ds_rvqvae.motion.layout import SMPLX_JOINTS, SMPLX_PARENTS, feature_layout, take_channels
from ds_rvqvae.motion.skeleton import builtin_skeleton, forward_kinematics, joint_places, skeleton_from_json
from ds_rvqvae.tokenizer.folder import columns_for, reading_of
from tests.cli.commands import make_tokenizer, run
from tests.data.formats.bvh_files import body, snapmogen_body, world_of_file, write_body
from tests.data.formats.damaged import npz
from tests.data.formats.joints.positions import positions, turns
from tests.data.motion import write_lists, write_matrices, write_statistics

NAMES = {"train": ("000000", "M000000"), "val": ("000001",), "test": ("000002",)}


def kit_positions(frames: int = 40, seed: int = 0) -> np.ndarray:
    """Returns positions of KIT's 21 joints in millimetres, float32 `[frames, 21, 3]`."""
    down = {"neck": (0, 150, 0), "head": (0, 120, 0)} | dict.fromkeys(("belly", "chest"), (0, 180, 0))
    for side, way in (("left", 1), ("right", -1)):
        down |= {f"{side}_shoulder": (180 * way, 0, 0), f"{side}_elbow": (0, -280, 0), f"{side}_wrist": (0, -250, 0)}
        down |= {f"{side}_hip": (90 * way, 0, 0), f"{side}_knee": (0, -430, 0), f"{side}_ankle": (0, -430, 0)}
        down |= {f"{side}_heel": (0, -60, -40), f"{side}_toe": (0, 0, 200)}
    offsets = np.array([down.get(name, (0, 0, 0)) for name in recovery.JOINT_NAMES[251]], np.float64)
    path = np.stack([20.0 * np.arange(frames), np.full(frames, 950.0), np.zeros(frames)], axis=1)
    return forward_kinematics(turns(frames, 21, seed), offsets, recovery.parents_of(251), path).astype(np.float32)


def write_positions(file: Path, values: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, values)
    return file


@pytest.fixture
def humanml3d(tmp_path, monkeypatch):
    """HumanML3D's folder: features, positions, lists, statistics of the features, texts."""
    monkeypatch.setenv("DS_RVQVAE_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "HumanML3D"
    every = [name for names in NAMES.values() for name in names]
    for seed, name in enumerate(every):
        write_positions(root / "new_joints" / f"{name}.npy", positions(seed=seed))
    write_matrices(root / "new_joint_vecs", every, 263)
    write_statistics(root, 263)
    write_lists(root, **{split: " ".join(names) for split, names in NAMES.items()}, all=" ".join(every))
    return root


@pytest.mark.parametrize("at", ["new_joints", "."])
def test_humanml3ds_positions_have_their_names_rate_splits_and_columns(humanml3d, at):
    store = prepare(DataConfig(path=str(humanml3d / at), format="joints"), workers=1).store
    assert [part.name for part in store.layout] == ["translation", *SMPLX_JOINTS[1:22]]
    assert {part.kind for part in store.layout[1:]} == {"relative_position"} and store.layout[-1].stop == 66
    assert {segment.name: segment.split for segment in store.segments} == {
        name: split for split, names in NAMES.items() for name in names
    }
    # 40 frames at 20 fps are 59 at 30; every third one of these is every second one of those.
    source = positions(seed=2).astype(np.float64)
    clip = store.clip("000001")
    assert store.fps == 30 and clip.shape == (59, 66)
    np.testing.assert_allclose(clip[::3, 3:].reshape(-1, 21, 3), (source[:, 1:] - source[:, :1])[::2], atol=1e-6)
    np.testing.assert_allclose(clip[:, 1], 0.9, atol=1e-6)
    np.testing.assert_allclose(clip[1:, 0], 0.02 * 20 / 30, atol=1e-6)  # velocities, metres per frame
    trained = np.concatenate([store.clip(name) for name in NAMES["train"]])
    np.testing.assert_allclose(store.mean, trained.mean(axis=0), atol=1e-6)
    assert not store.has_own_statistics  # those beside the folder are of 263 other columns
    report = store.report()
    assert report["readings"] == [
        "HumanML3D's 22 joints, by the folder new_joints",
        "20 fps, as HumanML3D's joint positions have",
        "1 unit = 1 m, as HumanML3D's joint positions have",
    ]
    assert store.settings["source_fps"] == 20 and store.settings["metres_per_unit"] == 1
    figure = skeleton_from_json(store.skeleton, "store")
    lengths = np.linalg.norm(builtin_skeleton().offsets[1:22], axis=1)
    np.testing.assert_allclose(np.linalg.norm(figure.offsets[1:], axis=1), lengths, atol=2e-4)
    if at == ".":
        passed = {group["reason"] for group in report["file_counts"][0]["passed_over"]}
        assert "not in new_joints" in passed
    assert open_reader(humanml3d, DataConfig()).key == "humanml3d"
    assert open_reader(humanml3d / "new_joints", DataConfig()).key == "joints"


def test_kits_positions_are_in_millimetres(tmp_path):
    write_positions(tmp_path / "KIT-ML" / "new_joints" / "00001.npy", kit_positions())
    reader = open_reader(tmp_path / "KIT-ML" / "new_joints", DataConfig(fps=12.5))
    take = reader.take("00001")
    assert (
        take.fps == 12.5
        and [part.name for part in take.layout[1:]] == list(recovery.JOINT_NAMES[251][1:])
        and not take.notes
    )
    np.testing.assert_allclose(take.motion[:, :3], kit_positions()[:, 0] / 1000, atol=1e-6)
    places = joint_places(reader.read("00001").motion, take.layout, skeleton_from_json(take.skeleton, "KIT"))
    np.testing.assert_allclose(places, kit_positions() / 1000, atol=1e-5)


def test_joints_without_names_are_refused_with_the_flag(tmp_path, capsys):
    write_positions(tmp_path / "data" / "a.npy", positions(joints=24))
    status, _, errors = run(capsys, "prepare", tmp_path / "data", "--out", tmp_path / "store")
    assert status == 2 and len(errors) == 1
    assert f"{tmp_path / 'data'}: positions of 24 joints, which have no names: --skeleton FILE" in errors[0]


def skeleton_file(file: Path, joints: int = 24) -> Path:
    names = [f"j{joint}" for joint in range(joints)]
    file.write_text(json.dumps({"joint_names": names, "parents": list(SMPLX_PARENTS[:joints])}))
    return file


@pytest.mark.parametrize("form", ["npy", "npz", "flat", "flat_npz"])
def test_positions_of_any_joints_are_read_with_a_skeleton(tmp_path, form):
    values = positions(joints=24)
    values = values.reshape(len(values), -1) if form.startswith("flat") else values
    (tmp_path / "data").mkdir()
    if form.endswith("npz"):
        (tmp_path / "data" / "a.npz").write_bytes(npz({"joints": values, "fps": np.array(60)}))
    else:
        np.save(tmp_path / "data" / "a.npy", values)
    config = DataConfig(format="joints", skeleton=str(skeleton_file(tmp_path / "s.json")), metres_per_unit=1)
    reader = open_reader(tmp_path / "data", config)
    take = reader.take("a")
    assert take.fps == (60 if form.endswith("npz") else 30)
    np.testing.assert_allclose(take.motion[:, 3:].reshape(-1, 23, 3), positions(joints=24)[:, 1:] - positions()[:, :1])
    assumed = "no file gives its frame rate: 30 fps (rvqvae.data.fps) is assumed where there is none; --source_fps N"
    assert bool(reader.notes) != form.endswith("npz") and all(note.startswith(assumed) for note in reader.notes)
    if form.endswith("npz"):
        take = open_reader(tmp_path / "data", config.with_values({"source_fps": 50.0})).take("a")
        assert take.fps == 50 and take.notes == ("the file gives 60 fps, but rvqvae.data.source_fps 50 is used",)


def test_a_bvh_file_names_joints_that_follow_its_hierarchy(tmp_path):
    file = write_body(tmp_path / "walk.bvh", body())
    places = world_of_file(file)[0]
    write_positions(tmp_path / "data" / "walk.npy", np.stack(list(places.values()), axis=1) / 100)
    reader = open_reader(tmp_path / "data", DataConfig(skeleton=str(file)))
    take = reader.take("walk")
    assert [part.name for part in take.layout[1:]] == list(places)[1:] and not take.notes
    assert reader.readings[-1].startswith("1 unit = 1 m, by the size of the bodies")


def test_a_bvh_file_without_a_known_unit_gives_names_too(tmp_path):
    file = write_body(tmp_path / "t_pose.bvh", snapmogen_body())
    places = world_of_file(file)[0]
    write_positions(tmp_path / "data" / "walk.npy", 0.02 * np.stack(list(places.values()), axis=1))
    reader = open_reader(tmp_path / "data", DataConfig(skeleton=str(file)))
    assert [part.name for part in reader.take("walk").layout[1:]] == list(places)[1:]
    assert np.linalg.norm(reader.take(reader.clip_names()[0]).skeleton["offsets"][3]) == pytest.approx(
        0.02 * 4.86, abs=2e-4
    )


@pytest.mark.parametrize(("unit", "metres"), [(100, 0.01), (1000, 0.001), (1 / 0.0254, 0.0254)])
def test_the_unit_is_recognised_by_the_size_of_the_bodies_and_kept(tmp_path, unit, metres):
    for seed in range(3):
        write_positions(tmp_path / "data" / f"{seed}.npy", unit * positions(seed=seed))
    config = DataConfig(skeleton=str(skeleton_file(tmp_path / "s.json", 22)))
    reader = open_reader(tmp_path / "data", config)
    assert reader.config.metres_per_unit == metres and "by the size of the bodies" in reader.readings[0]
    take = reader.take("1")
    np.testing.assert_allclose(take.motion[:, :3], positions(seed=1)[:, 0], atol=1e-5)
    # A single file is read as the folder was, whatever its size.
    baby = write_positions(tmp_path / "baby.npy", 0.4 * unit * positions())
    assert np.ptp(open_reader(baby, reader.config).take("baby").motion[:, 4::3]) < 0.8


def test_a_unit_that_is_not_known_is_refused(tmp_path):
    config = DataConfig(skeleton=str(skeleton_file(tmp_path / "s.json", 22)))
    write_positions(tmp_path / "data" / "0.npy", 7 * positions())
    with pytest.raises(UserError, match=r"the unit of length is not known: the body in 0 is .*--metres_per_unit N"):
        open_reader(tmp_path / "data", config)
    for seed in range(4):
        write_positions(tmp_path / "data" / f"{seed}.npy", (1, 100)[seed % 2] * positions())
    with pytest.raises(UserError, match=r"different units of length: metres as in 0, centimetres as in 1"):
        open_reader(tmp_path / "data", config)


def test_z_up_is_turned_and_lying_bodies_are_refused(tmp_path, humanml3d):
    turn = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # y up to z up
    for name in NAMES["train"]:
        write_positions(humanml3d / "new_joints" / f"{name}.npy", positions(seed=3) @ turn.T)
    (humanml3d / "new_joints" / "000001.npy").unlink()
    (humanml3d / "new_joints" / "000002.npy").unlink()
    with pytest.raises(UserError, match="--up_axis z"):
        prepare(DataConfig(path=str(humanml3d / "new_joints")), workers=1)
    take = open_reader(humanml3d / "new_joints", DataConfig(up_axis="z")).take("000000")
    np.testing.assert_allclose(take.motion[:, :3], positions(seed=3)[:, 0], atol=1e-6)


def test_a_folder_of_bvh_files_with_some_positions_is_bvh(tmp_path):
    for seed in range(3):
        write_body(tmp_path / "data" / f"{seed}.bvh", body(), seed=seed)
    write_positions(tmp_path / "data" / "places.npy", positions())
    reader = open_reader(tmp_path / "data", DataConfig(skeleton=str(skeleton_file(tmp_path / "s.json", 22))))
    assert reader.key == "bvh"
    config = DataConfig(format="joints", skeleton=str(tmp_path / "s.json"), joint_names={"a": "b"})
    reader = open_reader(tmp_path / "data", config)
    assert reader.clip_names() == ["places"]
    assert reader.notes[-1] == "no effect on joint positions: rvqvae.data.joint_names"


def test_bones_that_change_and_odd_sizes_are_said(tmp_path):
    values = positions()
    values[:, 15] += np.linspace(0, 0.1, len(values))[:, None]
    config = DataConfig(skeleton=str(skeleton_file(tmp_path / "s.json", 22)), metres_per_unit=10)
    (note, tall) = open_reader(write_positions(tmp_path / "a.npy", values), config).take("a").notes
    assert note.startswith("bones change their length within the clip: that to j15 by ") and "more" not in note
    assert tall.startswith("the body is 1") and "--metres_per_unit N" in tall


def test_positions_that_do_not_fit_the_skeleton_are_named(tmp_path):
    config = DataConfig(format="joints", skeleton=str(skeleton_file(tmp_path / "s.json", 22)), metres_per_unit=1)
    folder = tmp_path / "data"
    for seed in range(3):
        write_positions(folder / f"{seed}.npy", positions(seed=seed))
    write_positions(folder / "few.npy", positions()[:, :20])
    write_positions(folder / "words.npy", np.full((40, 22, 3), "a"))
    (folder / "two.npz").write_bytes(npz({"joints": positions(), "more": positions()}))
    reader = open_reader(folder, config)
    for name, words in {
        "few": r"has the shape \[40, 20, 3\], not \[frames, 22, 3\]",
        "words": "not positions",
        "two": "one array of joint positions .* it has joints, more",
    }.items():
        with pytest.raises(ClipError, match=words):
            reader.take(name)
    with pytest.raises(UserError, match=r"the files have 22 joints, rvqvae\.data\.skeleton 24"):
        open_reader(folder, config.with_values({"skeleton": str(skeleton_file(tmp_path / "t.json", 24))}))
    for wrong, words in (({"parents": [-1]}, "no key joint_names"), ({"joint_names": ["a"], "parents": [0]}, "root")):
        with pytest.raises(UserError, match=f"rvqvae.data.skeleton: .*{words}"):
            open_reader(folder, config.with_values({"skeleton": wrong}))


def test_written_positions_are_those_that_were_read(tmp_path, humanml3d):
    reader = open_reader(humanml3d / "new_joints", DataConfig(fps=20))
    clip, source = reader.read("000001"), humanml3d / "new_joints" / "000001.npy"
    write = WRITERS["joints"].write
    assert write(tmp_path / "out.npy", clip.motion, clip.layout, 20.0, source, reader.config) == (20.0, (), ())
    found = np.load(tmp_path / "out.npy")
    assert found.dtype == np.float32 and found.shape == (40, 22, 3)
    np.testing.assert_allclose(found, np.load(source), atol=1e-5)  # the path starts at x = 2, z = 0.5
    # Without the source it starts at 0; with some of the columns, the rest is the source's, or at rest.
    written = write(tmp_path / "free.npy", clip.motion, clip.layout, 20.0, None, reader.config)
    shift = np.load(source)[0, 0] * [1, 0, 1]
    np.testing.assert_allclose(np.load(tmp_path / "free.npy"), np.load(source) - shift, atol=1e-5)
    assert written.source_fps == 0 and not written.notes
    columns, layout = take_channels(clip.layout, ["head", "left_wrist"])
    write(tmp_path / "part.npy", clip.motion[:, columns] + 0.1, layout, 20.0, source, reader.config)
    moved = np.load(tmp_path / "part.npy") - np.load(source)
    np.testing.assert_allclose(moved[:, [15, 20]], 0.1, atol=1e-5)
    np.testing.assert_allclose(np.delete(moved, [15, 20], axis=1), 0, atol=1e-5)
    written = write(tmp_path / "rest.npy", clip.motion[:, columns], layout, 20.0, None, reader.config)
    assert "at rest" in written.notes[0] and np.load(tmp_path / "rest.npy").shape == (40, 22, 3)
    with pytest.raises(UnfitError, match="the source has 40 frames at 20 fps, but the motion has 39"):
        write(tmp_path / "no.npy", clip.motion[1:], clip.layout, 20.0, source, reader.config)
    # In the source's unit, along its axes, at another frame rate.
    turn = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    other = write_positions(tmp_path / "z.npy", 100 * positions(seed=1) @ turn.T)
    config = reader.config.with_values({"up_axis": "z", "metres_per_unit": 0.01, "fps": 10.0})
    clip = open_reader(other, config).read("z")
    write(tmp_path / "z_out.npy", clip.motion, clip.layout, 10.0, other, config)
    np.testing.assert_allclose(np.load(tmp_path / "z_out.npy"), np.load(other)[::2], atol=1e-3)


def test_positions_are_encoded_and_decoded_to_positions(tmp_path, humanml3d, capsys):
    store = prepare(DataConfig(path=str(humanml3d / "new_joints")), workers=1).store
    tokenizer = make_tokenizer(store.layout)
    tokenizer.details["reading"] = reading_of(store.settings)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    for name in ("000001", "000002"):  # the folder's name is not needed any more
        write_positions(tmp_path / "mine" / f"{name}.npy", np.load(humanml3d / "new_joints" / f"{name}.npy"))
    assert run(capsys, "encode", tmp_path / "tokenizer", tmp_path / "mine", "--out", tmp_path / "codes")[0] == 0
    decode = ("decode", tmp_path / "tokenizer", tmp_path / "codes", "--out", tmp_path / "motion", "--fps", "source")
    status, result, _ = run(capsys, *decode)
    assert status == 0 and len(result["done"]) == 2
    video = ("render", tmp_path / "tokenizer", tmp_path / "mine" / "000001.npy", "--out", tmp_path / "v.gif")
    status, result, _ = run(capsys, *video, "--seconds", 0.1)
    assert status == 0 and result["angle_error_deg"] is None and result["joint_error_mm"] > 0
    found = np.load(tmp_path / "motion" / "000001.npy")
    assert found.shape == (40, 22, 3) and found.dtype == np.float32
    clip = np.array(store.clip("000001"))
    decoded = tokenizer.decode(tokenizer.encode(clip), len(clip))
    np.testing.assert_allclose(found[::2, 1:] - found[::2, :1], decoded[::3, 3:].reshape(-1, 21, 3), atol=1e-5)
    np.testing.assert_allclose(found[0, 0, [0, 2]], np.load(tmp_path / "mine" / "000001.npy")[0, 0, [0, 2]], atol=1e-5)


def test_flattened_positions_are_encoded_as_positions_not_as_columns(tmp_path):
    file = write_positions(tmp_path / "new_joints" / "a.npy", positions(seed=0))
    wanted = open_reader(file.parent, DataConfig()).take("a").layout
    np.save(tmp_path / "flat.npy", np.load(file).reshape(-1, 66))
    entries = {"joint_names": list(recovery.JOINT_NAMES[263]), "parents": list(recovery.parents_of(263))}
    config = DataConfig(skeleton=entries, source_fps=20, fps=20, metres_per_unit=1)
    take = open_motion_file(tmp_path / "flat.npy", config, wanted).take("flat")
    assert take.layout == wanted
    with pytest.raises(ClipError):
        columns_for(wanted, feature_layout(66))


def test_the_bones_of_the_first_file_are_no_setting(tmp_path):
    for name, seed in (("b", 0), ("a", 3)):
        write_positions(tmp_path / "new_joints" / f"{name}.npy", positions(seed=seed))
        settings = settings_of(open_reader(tmp_path / "new_joints", DataConfig()).config)
        assert set(settings["skeleton"]) == {"joint_names", "parents"}
