import csv
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import ds_rvqvae
from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.config.names import FORMATS
from ds_rvqvae.data import open_store
from ds_rvqvae.data.formats.readers import READERS, open_reader
from ds_rvqvae.errors import ExitStatus, UserError
from ds_rvqvae.motion.clip import Clip, LeftOut, spans
from ds_rvqvae.motion.layout import smplx_layout
from tests.data.motion import beat2_arrays, write_beat2, write_beat2_folder, write_packed

PACKAGE = Path(ds_rvqvae.__file__).parent
DOCUMENT = Path(__file__).parents[3] / "docs" / "data.md"


def read(path, **settings) -> list[Clip | LeftOut]:
    return list(open_reader(path, DataConfig(**settings)).clips())


def write_split(file, rows: dict[str, str]) -> None:
    with file.open("w", newline="") as lines:
        csv.writer(lines).writerows([("id", "type"), *rows.items()])


def test_beat2_features_mean_what_the_layout_says(tmp_path):
    arrays = beat2_arrays()
    (clip,) = read(write_beat2(tmp_path / "1_a_0_1_1.npz"))
    assert clip.motion.shape == (60, 433) and clip.motion.dtype == np.float32 and clip.layout == smplx_layout()
    matrix = Rotation.from_rotvec(arrays["poses"][7].reshape(55, 3)[16]).as_matrix()
    assert np.allclose(clip.motion[7, 16 * 6 : 17 * 6], matrix[:2].reshape(6), atol=1e-6)
    x, y, z = clip.motion[:, 330:333].T
    assert x[0] == 0 and z[0] == 0
    assert np.allclose(np.cumsum(x), arrays["trans"][:, 0] - arrays["trans"][0, 0], atol=1e-5)
    assert np.allclose(np.cumsum(z), arrays["trans"][:, 2] - arrays["trans"][0, 2], atol=1e-5)
    assert np.allclose(y, arrays["trans"][:, 1], atol=1e-6)
    assert np.allclose(clip.motion[:, 333:], arrays["expressions"], atol=1e-6)


def test_beat2_velocities_are_per_frame_of_the_wanted_rate(tmp_path):
    trans = np.linspace([0, 1, 0], [1.19, 1, -2.38], 120)
    (clip,) = read(write_beat2(tmp_path / "1_a.npz", 120, trans=trans), fps=15.0)
    assert clip.fps == 15 and clip.motion.shape == (60, 433)
    assert np.allclose(clip.motion[1:, 330], 0.02, atol=1e-6) and np.allclose(clip.motion[1:, 332], -0.04, atol=1e-6)


def test_beat2_folder_with_its_split(tmp_path):
    write_beat2_folder(tmp_path / "smplxflame_30", ("1_a_0_1_1", "2_b_0_1_1", "2_b_0_2_2"))
    write_split(tmp_path / "train_test_split.csv", {"1_a_0_1_1": "train", "2_b_0_1_1": "additional", "9_z": "test"})
    for path in (tmp_path, tmp_path / "smplxflame_30"):
        first, second, unlisted, missing = read(path)
        assert [first.split, second.split, unlisted.split] == ["train", "additional", "additional"]
        assert missing == LeftOut("9_z.npz", "train_test_split.csv lists it, but there is no such file")


def test_beat2_speakers_are_chosen_by_the_leading_number(tmp_path):
    write_beat2_folder(tmp_path, ("1_a", "2_b", "22_c", "3_d"))
    assert [clip.name for clip in read(tmp_path, speakers=[2, 3])] == ["2_b", "3_d"]
    with pytest.raises(UserError, match="its speakers are 1, 2, 3, 22"):
        read(tmp_path, speakers=[7])


def test_names_in_the_split_file_cannot_lead_out_of_the_folder(tmp_path):
    write_beat2_folder(tmp_path / "smplxflame_30", ("1_a",))
    write_beat2(tmp_path / "secret.npz")
    write_split(tmp_path / "train_test_split.csv", {"../secret": "train", "1_a": "train"})
    left_out, clip = read(tmp_path)
    assert clip.name == "1_a" and "leads out of the folder" in left_out.reason


def test_a_clip_listed_for_two_splits_is_left_out(tmp_path):
    write_beat2_folder(tmp_path, ("1_a",))
    (tmp_path / "train_test_split.csv").write_text("id,type\n1_a,train\n1_a,test\n")
    (left_out,) = read(tmp_path)
    assert "'train and test'" in left_out.reason


def test_feature_folder_in_the_form_of_humanml3d(tmp_path):
    joint_vecs = tmp_path / "new_joint_vecs"
    joint_vecs.mkdir()
    for index, name in enumerate(("000000", "000001", "M000001", "odd")):
        np.save(joint_vecs / f"{name}.npy", np.full((40, 7 if name == "odd" else 9), index, np.float64))
    (tmp_path / "train.txt").write_text("000000\nM000001\nodd\n\n")
    (tmp_path / "val.txt").write_text("000001\n000009\n")
    clips = {getattr(clip, "name", None) or clip.file: clip for clip in read(tmp_path, fps=20.0)}
    assert {name: clip.split for name, clip in clips.items() if isinstance(clip, Clip)} == {
        "000000": "train",
        "000001": "val",
        "M000001": "train",
    }
    assert clips["M000001"].fps == 20 and clips["M000001"].motion.dtype == np.float32
    assert clips["odd.npy"].reason == "the matrix has shape [40, 7], not [frames, 9]"
    assert "no such file" in clips["000009.npy"].reason


def test_packed_npz_with_split_and_layout(tmp_path):
    layout = [{"name": "Hips", "kind": "rotation_6d", "columns": [0, 6]}]
    file = write_packed(
        tmp_path / "all.npz", width=6, split=np.array(["train", "val", "test"]), layout=np.array(json.dumps(layout))
    )
    clips = read(file)
    assert [(clip.name, len(clip.motion), clip.split) for clip in clips] == [
        ("clip0", 40, "train"),
        ("clip1", 30, "val"),
        ("clip2", 50, "test"),
    ]
    assert clips[1].motion[0, 0] == 40 and clips[0].layout[0].name == "Hips"


@pytest.mark.parametrize("fps", [25.0, 30.0, 36.0])
def test_an_empty_piece_of_a_packed_npz_is_left_out(tmp_path, fps):
    layout = np.array(json.dumps([{"name": "root", "kind": "position", "columns": [0, 5]}]))
    file = write_packed(tmp_path / "all.npz", clip_start=np.array([0, 40, 40, 120]), layout=layout)
    first, empty, last = read(file, fps=fps)
    assert empty == LeftOut("all.npz: clip1", f"0 frames at {fps:g} fps, fewer than the 16 a clip needs")
    assert [first.name, last.name] == ["clip0", "clip2"]


def test_spans_names_runs_of_frames():
    assert spans(np.array([3, 4, 5, 9])) == "3-5, 9"
    assert spans(np.arange(0, 20, 2), most=2) == "0, 2 and 8 more spans"


def _object_array(file):
    np.savez(file, **{**beat2_arrays(), "poses": np.array([{}, {}], object)})


def _cut_short(file):
    write_beat2(file)
    file.write_bytes(file.read_bytes()[:5000])


def _nan(file):
    poses = beat2_arrays()["poses"]
    poses[[3, 4, 5, 9]] = np.nan
    write_beat2(file, poses=poses)


def _infinite_translation(file):
    trans = beat2_arrays()["trans"]
    trans[11, 1] = 1e300
    write_beat2(file, trans=trans)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda file: file.write_bytes(b""), "damaged or cut short"),
        (lambda file: file.write_bytes(b"not an archive"), "not a NumPy file of plain arrays"),
        (_cut_short, "damaged or cut short"),
        (lambda file: file.mkdir(), "a folder, not a file"),
        (lambda file: file.symlink_to("nowhere"), "cannot be read: No such file"),
        (lambda file: write_beat2(file, poses=None), "no key poses; it has betas, expressions"),
        (lambda file: write_beat2(file, trans=None), "no key trans"),
        (
            lambda file: write_beat2(file, poses=np.zeros((60, 156))),
            r"poses has shape \[60, 156\], not \[frames, 165\]",
        ),
        (lambda file: write_beat2(file, poses=np.zeros(165)), r"poses has shape \[165\]"),
        (lambda file: write_beat2(file, poses=np.full((60, 165), "x")), "poses holds <U1"),
        (lambda file: write_beat2(file, trans=np.zeros((59, 3))), "60, 59 and 60 frames"),
        (lambda file: write_beat2(file, mocap_frame_rate=np.array(0)), "mocap_frame_rate is 0"),
        (lambda file: write_beat2(file, frames=0), "poses is empty"),
        (lambda file: write_beat2(file, frames=15), "15 frames at 30 fps"),
        (_object_array, "never loaded"),
        (_nan, "NaN or infinite values in 4 of 60 frames: 3-5, 9"),
        (_infinite_translation, "in 1 of 60 frames: 11"),
    ],
)
def test_a_damaged_clip_is_left_out_with_its_reason(tmp_path, damage, reason):
    write_beat2(tmp_path / "1_good.npz")
    damage(tmp_path / "2_bad.npz")
    good, left_out = read(tmp_path)
    assert good.name == "1_good" and left_out.file == "2_bad.npz"
    assert re.search(reason, left_out.reason) and "\n" not in left_out.reason


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"motion": np.zeros(5)}, "motion has shape"),
        ({"clip_name": None}, "no key clip_name; it has motion, clip_start, fps"),
        ({"fps": None}, "no key fps"),
        ({"fps": np.array(-1.0)}, "fps is -1.0"),
        ({"clip_start": np.array([0, 50, 40, 120])}, "does not rise"),
        ({"clip_start": np.array([0, 40, 70, 500])}, "120 frames of motion"),
        ({"clip_start": np.array([0, 40])}, "row numbers"),
        ({"clip_name": np.array([1, 2, 3])}, "not a list of strings"),
        ({"clip_name": np.array(["a", None, "b"], object)}, "never loaded"),
        ({"split": np.array(["train"])}, "split has 1 entries, clip_name 3"),
        ({"layout": np.array("{")}, "layout: "),
    ],
)
def test_a_wrong_packed_npz_is_refused_in_one_line(tmp_path, changes, complaint):
    file = write_packed(tmp_path / "all.npz", **changes)
    with pytest.raises(UserError, match=complaint) as refusal:
        read(file)
    assert str(refusal.value).startswith(str(file)) and "\n" not in str(refusal.value)


def _foreign_npz(path):
    np.savez(path, audio=np.zeros(3), rate=np.array(1))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda path: None, "no such file or folder"),
        (lambda path: path.mkdir(), "an empty folder"),
        (lambda path: (path.mkdir(), (path / "b.fbx").touch(), (path / "a.txt").touch()), "no reader knows a.txt"),
        (lambda path: path.write_text("HIERARCHY"), "no reader knows this file"),
    ],
)
def test_what_no_reader_knows_is_refused_in_one_line(tmp_path, make, complaint):
    path = tmp_path / "motion"
    make(path)
    with pytest.raises(UserError, match=complaint) as refusal:
        open_reader(path, DataConfig())
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_an_npz_of_something_else_is_refused_with_its_keys(tmp_path):
    _foreign_npz(tmp_path / "sound.npz")
    with pytest.raises(UserError, match=r"sound\.npz: no key poses .* it has audio, rate"):
        open_reader(tmp_path / "sound.npz", DataConfig())


def test_speakers_are_refused_where_there_are_none(tmp_path):
    with pytest.raises(UserError, match="only a BEAT2 folder has speakers"):
        read(write_packed(tmp_path / "all.npz"), speakers=[1])


BVH = "HIERARCHY\nROOT Hips\n{\nOFFSET 0 0 0\nCHANNELS 3 Zrotation Yrotation Xrotation\n"
BVH += "End Site\n{\nOFFSET 0 90 0\n}\n}\nMOTION\nFrames: 20\nFrame Time: .0083333\n" + "1 2 3\n" * 20


def _several_formats(folder):
    folder.mkdir()
    for index in range(3):
        (folder / f"{index}.bvh").write_text(BVH)
    np.save(folder / "features.npy", np.ones((40, 9)))
    np.savez(folder / "walk.npz", poses=np.zeros((40, 156)), trans=np.zeros((40, 3)), mocap_framerate=np.array(120.0))
    (folder / "notes.txt").touch()
    return folder


def test_of_several_formats_the_one_with_the_most_files_is_read_and_the_others_are_noted(tmp_path):
    folder = _several_formats(tmp_path / "motion")
    reader = open_reader(folder, DataConfig())
    assert reader.key == "bvh" and len(reader.notes) == 2
    assert (
        "holds SMPL-X, SMPL-H or SMPL npz, not read; set rvqvae.data.format to smpl to read that instead"
        in reader.notes[0]
    )


def test_readers_are_asked_in_the_order_of_their_certainty():
    order = [reader.key for reader in READERS]
    certain = ["packed", "beat2", "humanml3d", "humanml3d_272", "aist", "motionx", "joints"]
    assert order == [*certain, "smpl", "bvh", "robot_csv", "robot_npz", "features"], "a new format too"
    assert {reader.key: f"{reader.__module__}.{reader.__name__}" for reader in READERS} == {
        name: f"ds_rvqvae.data.formats.{place}" for name, place in FORMATS.items()
    }


def _package_with_the_documented_format(folder):
    """A copy of the package to which the recipe "Adding a format" of docs/data.md was applied."""
    recipe = DOCUMENT.read_text(encoding="utf-8").partition("## Adding a format")[2]
    reader, registration = (code.partition("```")[0] for code in recipe.split("```python\n")[1:])
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(PACKAGE.parent / "ds_configs", folder / "ds_configs")
    (folder / reader.split("\n")[0].removeprefix("# ")).write_text(reader, encoding="utf-8")
    place, start, _, entry, end, _ = registration.split("\n")
    listed = folder / place.removeprefix("# ")
    text = listed.read_text(encoding="utf-8")
    stop = text.index(f"\n{end}\n", text.index(f"\n{start}\n"))
    listed.write_text(f"{text[:stop]}\n{entry}{text[stop:]}", encoding="utf-8")


@pytest.mark.processes
def test_a_format_is_added_as_the_documents_say(tmp_path):
    _package_with_the_documented_format(tmp_path / "copy")
    (tmp_path / "motion" / "a").mkdir(parents=True)
    motion = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    np.savetxt(tmp_path / "motion" / "a" / "walk.csv", motion, fmt="%.9g", delimiter=",")
    (tmp_path / "motion" / "bad.csv").write_text("1,2\nx,y\n")
    (tmp_path / "motion" / "empty.csv").touch()
    os.mkfifo(tmp_path / "motion" / "pipe.csv")
    np.save(tmp_path / "motion" / "other.npy", np.ones((40, 9)))
    command = [sys.executable, "-m", "ds_rvqvae.cli", "prepare", tmp_path / "motion", "--out", tmp_path / "store"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "copy"), "DS_RVQVAE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [*command, "--format", "csv"], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == ExitStatus.PARTLY_DONE, done.stderr
    store = open_store(tmp_path / "store")
    assert store.clip_names == ["a/walk"]
    assert [entry.file for entry in store.left_out] == ["bad.csv", "empty.csv", "pipe.csv"]
    assert "UserWarning" not in done.stderr
    assert np.array_equal(store.clip("a/walk"), motion) and store.settings["format"] == "csv"


def test_every_format_can_be_asked_for(tmp_path):
    folder = _several_formats(tmp_path / "motion")
    found = {name: open_reader(folder, DataConfig(format=name)) for name in ("bvh", "smpl", "features")}
    assert {name: reader.key for name, reader in found.items()} == {name: name for name in found}
    assert found["smpl"].clip_names() == ["walk"] and "features" in found["features"].clip_names()
    assert not any("not read" in note for reader in found.values() for note in reader.notes)


def test_a_format_that_is_not_there_is_refused_with_what_is(tmp_path):
    folder = _several_formats(tmp_path / "motion")
    complaint = "rvqvae.data.format: .* is not of the format BEAT2 npz; it holds 3 .bvh, 1 .npy, 1 .txt, 1 .npz"
    with pytest.raises(UserError, match=complaint):
        open_reader(folder, DataConfig(format="beat2"))
    with pytest.raises(UserError, match="is not of the format packed npz; it is a file"):
        open_reader(folder / "0.bvh", DataConfig(format="packed"))


def test_a_beat2_folder_stays_one_whatever_else_it_holds(tmp_path):
    write_beat2_folder(tmp_path / "smplxflame_30", ("1_a",))
    (tmp_path / "weights").mkdir()
    for index in range(3):
        np.save(tmp_path / "weights" / f"{index}.npy", np.ones((40, 9)))
    write_split(tmp_path / "train_test_split.csv", {"1_a": "train"})
    reader = open_reader(tmp_path, DataConfig())
    assert reader.key == "beat2" and reader.clip_names() == ["1_a"] and not reader.notes


def test_a_folder_of_foreign_or_damaged_npz_is_refused_with_what_is_wrong(tmp_path):
    _foreign_npz(tmp_path / "sound.npz")
    with pytest.raises(UserError, match=r"no reader knows sound\.npz \(it has audio, rate\)"):
        open_reader(tmp_path, DataConfig())
    (tmp_path / "a.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"no reader knows a\.npz \(damaged or cut short: .*\)"):
        open_reader(tmp_path, DataConfig())


def test_nested_folders_are_searched_once_however_they_are_linked(tmp_path):
    for name in ("a/x.npz", "b/x.npz"):
        (tmp_path / name).parent.mkdir()
        np.savez(tmp_path / name, motion=np.ones((40, 9)))
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "c").symlink_to(tmp_path / "b")
    assert open_reader(tmp_path, DataConfig()).clip_names() == ["a/x", "b/x"]


def test_readers_are_imported_without_torch():
    code = "import sys, ds_rvqvae.data.formats.readers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pickles_are_refused_with_the_line_that_makes_an_npz_of_one(tmp_path):
    arrays = {"smpl_poses": np.ones((20, 72)), "smpl_trans": np.ones((20, 3)), "smpl_scaling": np.array([90.0])}
    (tmp_path / "motions").mkdir()
    (tmp_path / "motions" / "a b.pkl").write_bytes(pickle.dumps(arrays))
    with pytest.raises(UserError, match=r"no reader knows its files; \.pkl files are pickles") as refusal:
        open_reader(tmp_path, DataConfig())
    assert "\n" not in str(refusal.value)
    line = str(refusal.value).partition("in Python: ")[2]
    done = subprocess.run([sys.executable, "-c", line], cwd=tmp_path / "motions", capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert open_reader(tmp_path, DataConfig()).clip_names() == ["a b"]
    (tmp_path / "model.pt").touch()
    with pytest.raises(UserError, match=r"torch.load\('model.pt', map_location='cpu'\)\)$"):
        open_reader(tmp_path / "model.pt", DataConfig())
    reader = open_reader(tmp_path, DataConfig())
    assert reader.why_passed_over(tmp_path / "model.pt") == "a pickle, which is never loaded"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"csv_units": "metres_radians", "joints": "common"}, "rvqvae.data.joints, rvqvae.data.csv_units"),
        ({"skeleton": {"joint_names": ["a"], "parents": [-1]}}, "rvqvae.data.skeleton"),
    ],
)
def test_settings_of_other_formats_are_said_to_have_no_effect(tmp_path, settings, words):
    np.save(tmp_path / "a.npy", np.zeros((40, 12), np.float32))
    reader = open_reader(tmp_path, DataConfig(**settings))
    assert f"no effect on .npy or .npz feature matrices: {words}" in reader.notes
