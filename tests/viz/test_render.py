"""`ds-rvqvae render`: videos that can be read back, what they show, and what is refused."""

import json
import shutil
import sys
from itertools import pairwise

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from ds_rvqvae import RVQVAE, BodyTokenizer, MotionTokenizer, cli
from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.data.formats.smpl import Beat2Reader
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import Clip
from ds_rvqvae.motion.layout import Channels, select_columns, smplx_layout
from ds_rvqvae.motion.skeleton import builtin_skeleton
from ds_rvqvae.viz.comparison import compare
from ds_rvqvae.viz.render import Animation
from ds_rvqvae.viz.video import write_video
from tests.data.motion import write_beat2, write_beat2_folder, write_packed

CONFIG = ModelConfig(width=16, depth=1, code_dim=4, nb_code=8, num_quantizers=3)
SIZE = (480, 240)


def _tokenizer(layout) -> MotionTokenizer:
    torch.manual_seed(0)
    width = layout[-1].stop
    return MotionTokenizer(RVQVAE(width, CONFIG), torch.randn(width), torch.full((width,), 0.5), layout, 30.0)


@pytest.fixture(scope="module")
def tokenizer():
    """Of the upper body, untrained: what it decodes is far from the truth."""
    return _tokenizer(select_columns(smplx_layout(), "upper")[1])


@pytest.fixture
def folder(tokenizer, tmp_path):
    """A folder with a tokenizer and a BEAT2 clip of 60 frames."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    write_beat2(tmp_path / "clip.npz")
    return tmp_path


def _clip(frames: int = 60) -> Clip:
    rng = np.random.default_rng(0)
    motion = np.cumsum(rng.normal(size=(frames, 433)) * 0.02, axis=0) + rng.normal(size=433)
    return Clip("clip", motion.astype(np.float32), 30.0, smplx_layout())


def _render(folder, *arguments) -> int:
    return cli.main(["render", str(folder / "tokenizer"), str(folder / "clip.npz"), "--size", "480x240", *arguments])


def _read_mp4(file) -> tuple[dict, np.ndarray]:
    """What ffmpeg says of a video, and its pictures uint8 `[frames, height, width, 3]`."""
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


def test_fewer_frames_a_second_show_the_same_stretch(tokenizer):
    comparison = compare([tokenizer], _clip(), builtin_skeleton())
    assert Animation(comparison, 30.0, SIZE).frames.tolist() == list(range(60))
    assert Animation(comparison, 15.0, SIZE).frames.tolist() == list(range(0, 60, 2))
    assert len(Animation(comparison, 7.0, SIZE)) == 14


def test_a_comparison_is_that_of_encode_and_decode(tokenizer):
    clip, skeleton = _clip(), builtin_skeleton()
    whole = compare([tokenizer], clip, skeleton)
    columns, layout = select_columns(clip.layout, "upper")
    covered = clip.motion[:, columns]
    decoded = tokenizer.decode(tokenizer.encode(covered))

    def matrices(motion):
        first, second = np.moveaxis(motion.reshape(len(motion), -1, 2, 3).astype(np.float64), 2, 0)
        x = first / np.linalg.norm(first, axis=-1, keepdims=True)
        y = second - (x * second).sum(-1, keepdims=True) * x
        y /= np.linalg.norm(y, axis=-1, keepdims=True)
        return np.stack([x, y, np.cross(x, y)], axis=-2)

    traces = (matrices(covered) * matrices(decoded)).sum(axis=(-1, -2))
    angles = np.degrees(np.arccos(np.clip((traces - 1) / 2, -1, 1)))
    np.testing.assert_allclose(whole.angle_error, angles.mean(axis=1), atol=0.01)
    names = np.array(skeleton.joint_names)
    assert set(names[whole.measured]) < {part.name for part in layout}
    legs = [name for name in names if "knee" in name or "ankle" in name or "foot" in name]
    assert len(legs) == 6 and np.abs(whole.joint_error[:, np.isin(names, legs)]).max() < 1e-6
    wrists = whole.joint_error[:, np.isin(names, ["left_wrist", "right_wrist"])]
    assert wrists.mean() > 0.05 and whole.mean_distance_mm.shape == (60,)


def test_a_stretch_is_cut_out_of_the_whole_reconstruction(tokenizer):
    whole = compare([tokenizer], _clip(), builtin_skeleton())
    part = compare([tokenizer], _clip(), builtin_skeleton(), start=0.5, seconds=1.0)
    assert part.start == 0.5 and len(part.truth) == 30
    for name in ("truth", "found", "angle_error", "joint_error"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[15:45])
    assert len(compare([tokenizer], _clip(), builtin_skeleton(), start=1.5, seconds=1e300).truth) == 15


def test_the_parts_of_a_body_are_shown_together(tokenizer, folder, capsys):
    lower = _tokenizer(select_columns(smplx_layout(), "lower_trans")[1])
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


def test_fewer_levels_decode_another_motion(tokenizer):
    one, all_levels = (compare([tokenizer], _clip(), builtin_skeleton(), levels=levels) for levels in (1, None))
    assert one.levels_text == "1 level" and all_levels.levels_text == "3 levels"
    assert np.abs(one.found - all_levels.found).max() > 1e-3
    np.testing.assert_array_equal(one.truth, all_levels.truth)


def test_a_bare_matrix_of_the_tokenizers_columns_is_taken(folder):
    columns, _ = select_columns(smplx_layout(), "upper")
    np.save(folder / "upper.npy", _clip().motion[:, columns])
    arguments = ["render", str(folder / "tokenizer"), str(folder / "upper.npy"), "--out", str(folder / "upper.gif")]
    assert cli.main([*arguments, "--seconds", "0.5", "--size", "480x240"]) == 0
    with Image.open(folder / "upper.gif") as image:
        assert image.n_frames == 7


def test_one_clip_of_several_is_named(folder, capsys):
    write_beat2_folder(folder / "clips", ("1_a_0_1_1", "2_b_0_1_1"))
    arguments = ["render", str(folder / "tokenizer"), str(folder / "clips"), "--out", str(folder / "one.gif")]
    assert cli.main(arguments) == 2
    assert "--clip NAME names one (2: 1_a_0_1_1, 2_b_0_1_1)" in capsys.readouterr().err
    assert cli.main([*arguments, "--clip", "3_c"]) == 2
    assert "has no clip 3_c" in capsys.readouterr().err
    assert cli.main([*arguments, "--clip", "2_b_0_1_1", "--seconds", "0.2", "--size", "320x160"]) == 0
    assert "3 frames of 320x160 at 15 fps; 2_b_0_1_1" in capsys.readouterr().out


def test_joints_of_other_names_take_a_skeleton_of_their_own(tmp_path, capsys):
    names = ["Hips", "Chest", "Head"]
    layout = tuple(Channels(name, "rotation_6d", 6 * index, 6 * index + 6) for index, name in enumerate(names))
    _tokenizer(layout).save_pretrained(tmp_path / "tokenizer")
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
        (["--seconds", "nan"], "'nan' is no number"),
        (["--fps", "60"], "--fps 60: the motion has 30 frames a second"),
        (["--fps", "0.1"], "0.1 is below 1"),
        (["--size", "481x240"], "both have to be even for mp4; 480x240"),
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
    complaints = {
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


def test_a_tokenizer_of_faces_has_no_figure():
    layout = select_columns(smplx_layout(), "face")[1]
    with pytest.raises(UserError, match="no rotations of joints"):
        compare([_tokenizer(layout)], _clip(), builtin_skeleton())


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_video_that_breaks_off_leaves_the_older_one(tmp_path, suffix):
    class BreaksOff:
        def __len__(self):
            return 9

        def __iter__(self):
            yield np.zeros((240, 480, 4), np.uint8)
            yield np.full((240, 480, 4), 255, np.uint8)
            raise RuntimeError("no third picture")

    file = tmp_path / f"video{suffix}"
    file.write_bytes(b"older")
    with pytest.raises(RuntimeError, match="no third picture"):
        write_video(BreaksOff(), file, 30.0, SIZE)
    assert file.read_bytes() == b"older" and list(tmp_path.iterdir()) == [file]


def test_a_gif_beyond_memory_is_refused_before_it_is_drawn(tmp_path):
    with pytest.raises(UserError, match=r"use \.mp4"):
        write_video(range(100_000), tmp_path / "long.gif", 30.0, (960, 480))
    assert not list(tmp_path.iterdir())


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
