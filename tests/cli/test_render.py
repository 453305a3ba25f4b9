"""`ds-rvqvae render`: videos that can be read back, their content, and errors."""

import json
import shutil
import sys
from itertools import pairwise

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from ds_rvqvae import BodyTokenizer, cli
from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.smpl.beat2 import Beat2Reader
from ds_rvqvae.motion.layout import Channels, select_columns, smplx_layout
from ds_rvqvae.motion.skeleton import builtin_skeleton
from ds_rvqvae.viz.comparison import compare
from tests.data.motion import write_beat2, write_beat2_folder, write_packed
from tests.viz.shown import make_tokenizer, moving_clip, upper_tokenizer

SIZE = (480, 240)


@pytest.fixture(scope="module")
def tokenizer():
    return upper_tokenizer()


@pytest.fixture
def folder(tokenizer, tmp_path):
    """A folder with a tokenizer and a BEAT2 clip of 60 frames."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    write_beat2(tmp_path / "clip.npz")
    return tmp_path


def _render(folder, *arguments) -> int:
    return cli.main(["render", str(folder / "tokenizer"), str(folder / "clip.npz"), "--size", "480x240", *arguments])


def _read_mp4(file) -> tuple[dict, np.ndarray]:
    """Returns ffmpeg's description of a video, and its pictures, uint8 `[frames, height, width, 3]`."""
    pictures = imageio_ffmpeg.read_frames(str(file))
    meta = next(pictures)
    width, height = meta["size"]
    return meta, np.stack([np.frombuffer(picture, np.uint8).reshape(height, width, 3) for picture in pictures])


def test_an_mp4_has_the_frames_size_and_rate_asked_for(folder, capsys):
    assert _render(folder, "--out", str(folder / "new" / "clip.mp4"), "--json") == 0
    result = json.loads(capsys.readouterr().out)
    meta, pictures = _read_mp4(folder / "new" / "clip.mp4")
    assert pictures.shape == (60, 240, 480, 3) and result["frames"] == 60 and result["size"] == [480, 240]
    assert meta["fps"] == 30.0 and meta["codec"] == "h264" and meta["pix_fmt"].startswith("yuv420p")
    assert meta["duration"] == pytest.approx(2.0, abs=0.05)
    assert [file.name for file in (folder / "new").iterdir()] == ["clip.mp4"]
    # Each panel shows something, and moves; the white margin between the title and the curve's labels stays white.
    for panel in np.split(pictures[:, :170], 3, axis=2):
        assert (panel[0] < 100).any() and np.abs(panel[0].astype(int) - panel[30]).max() > 100
    truth, reconstruction = pictures[:, 20:170, :160], pictures[:, 20:170, 160:320]
    assert np.abs(truth[30].astype(int) - reconstruction[30]).max() > 100


def test_a_gif_keeps_time(folder, capsys):
    assert _render(folder, "--out", str(folder / "clip.gif"), "--fps", "12", "--start", "0.5", "--seconds", "1") == 0
    assert "12 frames of 480x240 at 12 fps; clip, 3 levels" in capsys.readouterr().out
    with Image.open(folder / "clip.gif") as image:
        assert image.size == SIZE and image.n_frames == 12 and image.info["loop"] == 0
        durations, pictures = [], []
        for frame in range(image.n_frames):
            image.seek(frame)
            durations.append(image.info["duration"])
            pictures.append(np.asarray(image.convert("RGB")).astype(int))
    assert sum(durations) == 1000 and set(durations) == {80, 90}
    assert all(np.abs(after - before).max() > 50 for before, after in pairwise(pictures))


def test_codes_are_drawn_where_they_are_asked_for(folder, capsys):
    arguments = ["render", str(folder / "tokenizer"), str(folder / "clip.npz"), "--out", str(folder / "clip.gif")]
    assert cli.main([*arguments, "--codes", "--seconds", "0.2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["size"] == [960, 624]
    with Image.open(folder / "clip.gif") as image:
        assert image.size == (960, 624)
        rows = np.asarray(image.convert("RGB"))[400:440, 60:900].reshape(-1, 3)
    assert len(np.unique(rows, axis=0)) > 5  # the untrained tokenizer has eight codes per level


def test_the_parts_of_a_body_are_shown_together(tokenizer, folder, capsys):
    lower = make_tokenizer(select_columns(smplx_layout(), "lower_trans")[1])
    shutil.rmtree(folder / "tokenizer")
    BodyTokenizer({"upper": tokenizer, "lower_trans": lower}).save_pretrained(folder / "tokenizer")
    assert _render(folder, "--out", str(folder / "body.gif"), "--seconds", "0.5", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    clip, skeleton = Beat2Reader(folder / "clip.npz", DataConfig()).read("clip"), builtin_skeleton()
    both, upper = (compare(parts, clip, skeleton, seconds=0.5) for parts in ([tokenizer, lower], [tokenizer]))
    assert shown["angle_error_deg"] == pytest.approx(both.angle_error.mean())
    foot = skeleton.joint_names.index("left_foot")
    assert foot in both.measured and foot not in upper.measured
    assert upper.joint_error[:, foot].max() < 1e-6 < both.joint_error[:, foot].min()


def test_a_bare_matrix_of_the_tokenizers_columns_is_taken(folder):
    columns, _ = select_columns(smplx_layout(), "upper")
    np.save(folder / "upper.npy", moving_clip().motion[:, columns])
    arguments = ["render", str(folder / "tokenizer"), str(folder / "upper.npy"), "--out", str(folder / "upper.gif")]
    assert cli.main([*arguments, "--seconds", "0.5", "--size", "480x240"]) == 0
    with Image.open(folder / "upper.gif") as image:
        assert image.n_frames == 7


def test_one_clip_of_several_is_named(folder, capsys):
    write_beat2_folder(folder / "clips", ("1_a_0_1_1", "2_b_0_1_1"))
    arguments = ["render", str(folder / "tokenizer"), str(folder / "clips"), "--out", str(folder / "one.gif")]
    assert cli.main(arguments) == 2
    assert "choose one with --clip NAME (2: 1_a_0_1_1, 2_b_0_1_1)" in capsys.readouterr().err
    assert cli.main([*arguments, "--clip", "3_c"]) == 2
    assert "has no clip 3_c" in capsys.readouterr().err
    assert cli.main([*arguments, "--clip", "2_b_0_1_1", "--seconds", "0.2", "--size", "320x160"]) == 0
    assert "3 frames of 320x160 at 15 fps; 2_b_0_1_1" in capsys.readouterr().out


def test_joints_of_other_names_take_a_skeleton_of_their_own(tmp_path, capsys):
    names = ["Hips", "Chest", "Head"]
    layout = tuple(Channels(name, "rotation_6d", 6 * index, 6 * index + 6) for index, name in enumerate(names))
    make_tokenizer(layout).save_pretrained(tmp_path / "tokenizer")
    entries = [{"name": part.name, "kind": part.kind, "columns": [part.start, part.stop]} for part in layout]
    write_packed(tmp_path / "packed.npz", width=18, layout=np.array(json.dumps(entries)))
    out = tmp_path / "out.gif"
    arguments = ["render", str(tmp_path / "tokenizer"), str(tmp_path / "packed.npz"), "--clip", "clip1"]
    arguments += ["--out", str(out), "--size", "480x240"]
    assert cli.main(arguments) == 2
    message = capsys.readouterr().err
    assert "Hips, Chest, Head" in message and "--skeleton FILE" in message and message.count("\n") == 1
    skeleton = {"joint_names": names, "parents": [-1, 0, 1], "offsets": [[0, 1, 0], [0, 0.4, 0], [0, 0.3, 0]]}
    (tmp_path / "skeleton.json").write_text(json.dumps(skeleton))
    assert cli.main([*arguments, "--skeleton", str(tmp_path / "skeleton.json")]) == 0
    with Image.open(out) as image:
        assert image.n_frames == 15


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--out", "clip.avi"], "a video is .mp4 or .gif"),
        (["--out", "tokenizer.mp4/clip.mp4"], "is a file"),
        (["--levels", "0"], "--levels 0: the tokenizer has 1 to 3"),
        (["--levels", "4"], "--levels 4: the tokenizer has 1 to 3"),
        (["--start", "2"], "--start 2: clip ends after 2.0 s"),
        (["--start", "1e308"], "ends after 2.0 s"),
        (["--start", "-1"], "-1 is below 0"),
        (["--seconds", "0"], "0 is not above 0"),
        (["--seconds", "nan"], "'nan' is not a number"),
        (["--fps", "60"], "--fps 60: the motion has 30 fps"),
        (["--fps", "0.1"], "0.1 is below 1"),
        (["--size", "481x240"], "mp4 needs even numbers; use 480x240"),
        (["--size", "big"], "not WIDTHxHEIGHT"),
        (["--size", "20x10"], "not WIDTHxHEIGHT"),
        (["--skeleton", "none.json"], "none.json: cannot be read"),
        (["--clip", "other"], "has no clip other"),
        (["--sekonds", "3"], "did you mean --seconds?"),
    ],
)
def test_bad_flags_are_refused_in_one_line_and_leave_nothing(folder, monkeypatch, capsys, arguments, complaint):
    monkeypatch.chdir(folder)
    (folder / "tokenizer.mp4").write_text("a file")
    before = sorted(folder.rglob("*"))
    try:
        status = _render(folder, *arguments)
    except SystemExit as refused:  # argparse's own way
        status = refused.code
    message = capsys.readouterr().err
    assert status == 2 and complaint in message and message.count("\n") == 1, message
    assert sorted(folder.rglob("*")) == before


def test_bad_motion_is_refused_in_one_line(folder, capsys):
    poses = np.load(folder / "clip.npz")["poses"].copy()
    poses[7] = np.nan
    write_beat2(folder / "nan.npz", poses=poses)
    (folder / "cut.npz").write_bytes((folder / "clip.npz").read_bytes()[:500])
    (folder / "empty").mkdir()
    np.save(folder / "narrow.npy", np.zeros((40, 7), np.float32))
    (folder / "fast").mkdir()
    for fast in ("fast.npz", "fast/fast.npz"):
        np.savez(folder / fast, motion=np.zeros((40, 78), np.float32), fps=np.array(60))
    complaints = {
        "fast.npz": "60 fps, but 30 fps is needed",
        "fast": "60 fps, but the tokenizer takes 30",
        "nan.npz": "NaN or infinite values in 1 of 60 frames: 7",
        "cut.npz": "damaged or cut short",
        "empty": "an empty folder",
        "narrow.npy": "7 columns, this tokenizer takes 78",
        "none.npz": "No such file",
    }
    for name, complaint in complaints.items():
        arguments = ["render", str(folder / "tokenizer"), str(folder / name), "--out", str(folder / "out.mp4")]
        assert cli.main(arguments) == 2
        message = capsys.readouterr().err
        assert complaint in message and message.count("\n") == 1, message
    assert cli.main(["render", str(folder / "empty"), str(folder / "clip.npz"), "--out", str(folder / "out.mp4")]) == 2
    assert not (folder / "out.mp4").exists()


def test_without_ffmpeg_mp4_names_the_extra_and_gif_works(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)  # an import of it fails, as where it is not installed
    monkeypatch.setenv("PATH", "")
    assert _render(folder, "--out", str(folder / "out.mp4"), "--seconds", "0.2") == 2
    message = capsys.readouterr().err
    assert "pip install 'ds_rvqvae[render]'" in message and ".gif" in message and message.count("\n") == 1
    assert _render(folder, "--out", str(folder / "out.gif"), "--seconds", "0.2") == 0
    assert not (folder / "out.mp4").exists() and (folder / "out.gif").is_file()


@pytest.mark.real_data
def test_a_real_clip_is_rendered(real_data, folder):
    motion = next((real_data / "beat2").glob("*.npz"))
    arguments = ["render", str(folder / "tokenizer"), str(motion), "--out", str(folder / "real.mp4")]
    assert cli.main([*arguments, "--start", "10", "--seconds", "1"]) == 0
    assert _read_mp4(folder / "real.mp4")[1].shape == (30, 480, 960, 3)
