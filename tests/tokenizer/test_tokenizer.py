"""The exported tokenizer: it loads what it saves, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ds_rvqvae import RVQVAE, MotionTokenizer, read_codes
from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.data.formats.smpl.beat2 import Beat2Reader
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.layout import Channels, feature_layout, select_columns, smplx_layout
from ds_rvqvae.tokenizer.decode import decode_files
from ds_rvqvae.tokenizer.encode import encode_files
from tests.data.motion import beat2_arrays, write_beat2
from tests.ranks import ROOT

CONFIG = ModelConfig(width=16, depth=1, code_dim=4, nb_code=8, num_quantizers=3)


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    layout = (Channels("hip", "rotation_6d", 0, 6), Channels("rest", "feature", 6, 8))
    return MotionTokenizer(RVQVAE(8, CONFIG), torch.randn(8), torch.rand(8) + 0.5, layout, 30.0, {"training_step": 7})


@pytest.mark.parametrize("is_old", [True, False])
def test_an_import_that_assumed_things_says_so(tokenizer, tmp_path, caplog, is_old):
    tokenizer.details["imported_from"] = {"format": "momask"} | ({} if is_old else {"settings": {}})
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    MotionTokenizer.from_pretrained(tmp_path / "tokenizer")
    said = [record.message for record in caplog.records]
    assert len(said) == is_old and all("which assumed relu" in text and "import it again" in text for text in said)


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = MotionTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert not loaded.training and loaded.layout == tokenizer.layout
    assert loaded.details == {"reading": {"reading_version": 2}, "training_step": 7}
    for name, value in tokenizer.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    assert torch.equal(tokenizer.mean, loaded.mean) and torch.equal(tokenizer.std, loaded.std)
    motion = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    np.testing.assert_array_equal(tokenizer.encode(motion), loaded.encode(motion))
    config = json.loads((tmp_path / "tokenizer" / "config.json").read_text())
    assert config["code_rate"] == 7.5 and config["fps"] == 30.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer"]


def test_saving_again_replaces_what_it_wrote_and_nothing_else(tokenizer, tmp_path):
    folder = tmp_path / "tokenizer"
    tokenizer.save_pretrained(folder)
    (folder / "notes").write_text("mine")
    (folder / ".git").mkdir()
    (folder / "model.safetensors").unlink()
    tokenizer.save_pretrained(folder)
    names = sorted(path.name for path in folder.iterdir())
    assert names == [".git", "README.md", "config.json", "model.safetensors", "notes"]
    assert (folder / "notes").read_text() == "mine" and list(tmp_path.iterdir()) == [folder]
    assert MotionTokenizer.from_pretrained(folder).fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("table", [None, "{", "{}", "[]", '{"model_type": "bert"}'])
def test_a_folder_of_something_else_is_not_replaced(tokenizer, tmp_path, table):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years")
    if table is not None:
        (tmp_path / "other" / "config.json").write_text(table)
    with pytest.raises(UserError, match="not a tokenizer of ours"):
        tokenizer.save_pretrained(tmp_path / "other")
    assert (tmp_path / "other" / "thesis.txt").read_text() == "years"


def test_a_disk_that_is_full_leaves_nothing(tokenizer, tmp_path):
    code = (
        "import resource, sys\n"
        "from ds_rvqvae import MotionTokenizer\n"
        "tokenizer = MotionTokenizer.from_pretrained(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: tokenizer.save_pretrained(sys.argv[2])\n"
        "except OSError as error: print('too large' in str(error))\n"
    )
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    command = [sys.executable, "-c", code, str(tmp_path / "tokenizer"), str(tmp_path / "out")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == "True\n", result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]


def test_normalisation_is_included(tokenizer):
    motion = torch.randn(16, 8) * tokenizer.std + tokenizer.mean
    codes = tokenizer.encode(motion)
    normalised = (motion - tokenizer.mean) / tokenizer.std
    assert torch.equal(codes, tokenizer.model.encode(normalised[None])[0])
    expected = tokenizer.model.decode(codes[None])[0] * tokenizer.std + tokenizer.mean
    torch.testing.assert_close(tokenizer.decode(codes), expected)


def test_arrays_give_arrays_and_any_length_is_padded(tokenizer):
    motion = np.zeros((18, 8), np.float32)
    codes = tokenizer.encode(motion)
    assert isinstance(codes, np.ndarray) and codes.shape == (5, 3) and codes.dtype == np.int64
    assert isinstance(tokenizer.decode(codes), np.ndarray) and tokenizer.decode(codes).shape == (20, 8)
    assert tokenizer.decode(codes[:, :1]).shape == (20, 8)
    assert isinstance(tokenizer.encode(torch.zeros(18, 8)), torch.Tensor)


@pytest.mark.parametrize("shape", [(10, 7), (10,), (0, 8), (1, 0, 8), (0, 10, 8), (1, 1, 10, 8)])
def test_wrong_shapes_are_refused(tokenizer, shape):
    with pytest.raises(ValueError, match="takes \\[frames, 8\\]"):
        tokenizer.encode(np.zeros(shape, np.float32))


@pytest.mark.parametrize("norm", [None, "GN"])
def test_a_padded_batch_is_its_clips_one_by_one(norm):
    torch.manual_seed(1)
    config = CONFIG.model_copy(update={"norm": norm, "width": 32})
    tokenizer = MotionTokenizer(RVQVAE(8, config), torch.zeros(8), torch.ones(8), feature_layout(8), 30.0)
    lengths = [33, 7, 40]
    motion = np.random.default_rng(0).normal(size=(3, 40, 8)).astype(np.float32)
    codes = tokenizer.encode(motion, lengths)
    assert codes.shape == (3, 10, 3) and codes.dtype == np.int64
    decoded = tokenizer.decode(codes, lengths)
    assert decoded.shape == (3, 40, 8) and decoded.dtype == np.float32
    for clip, length, its_codes, its_motion in zip(motion, lengths, codes, decoded, strict=True):
        count = -(-length // 4)
        np.testing.assert_array_equal(its_codes[:count], tokenizer.encode(clip[:length]))
        assert (its_codes[count:] == -1).all()
        np.testing.assert_array_equal(its_motion[:length], tokenizer.decode(its_codes[:count], length))
        assert not its_motion[length:].any() and its_motion[:length].any()
    assert torch.equal(tokenizer.encode(torch.from_numpy(motion), torch.tensor(lengths)), torch.from_numpy(codes))


def test_a_padded_batch_without_lengths_is_refused_and_dropped_levels_are_not(tokenizer):
    motion = np.random.default_rng(0).normal(size=(3, 40, 8)).astype(np.float32)
    whole = tokenizer.encode(motion)
    assert tokenizer.decode(whole).shape == (3, 40, 8)
    dropped = whole.copy()
    dropped[1, 4:, 1:] = -1
    assert tokenizer.decode(dropped).shape == (3, 40, 8)
    codes = tokenizer.encode(motion, [40, 40, 17])
    for given in (codes, torch.from_numpy(codes)):
        with pytest.raises(ValueError, match=r"row 5 of clip 2 is -1 on all levels.*: give lengths"):
            tokenizer.decode(given)
    with pytest.raises(ValueError, match=r"row 5 is -1 on all levels.*: give lengths"):
        tokenizer.decode(codes[2])
    assert not tokenizer.decode(codes, [40, 40, 17])[2, 17:].any()


@pytest.mark.parametrize("kind", [str, Path])
def test_paths_are_refused_in_words_that_name_what_takes_them(tokenizer, kind):
    with pytest.raises(TypeError, match=r"walk\.npz'\)? is a path.*; encode_file\(path\) encodes a file"):
        tokenizer.encode(kind("walk.npz"))
    with pytest.raises(TypeError, match=r"is a path.*; ds_rvqvae.read_codes\(path\).codes reads those of a file"):
        tokenizer.decode(kind("codes.npz"))


def test_a_file_goes_through_codes_and_back(tmp_path):
    layout = select_columns(smplx_layout(), "upper")[1]
    torch.manual_seed(0)
    details = {"body_part": "upper"}
    tokenizer = MotionTokenizer(RVQVAE(78, CONFIG), torch.zeros(78), torch.ones(78), layout, 30.0, details)
    source = write_beat2(tmp_path / "1_a.npz", 62, mocap_frame_rate=np.array(60, np.int32))
    codes = tokenizer.encode_file(source)
    clip = Beat2Reader(source, DataConfig()).read("1_a")
    own = clip.motion[:, select_columns(clip.layout, "upper")[0]]
    np.testing.assert_array_equal(codes, tokenizer.encode(own))
    report = encode_files(tokenizer, [source], tmp_path / "codes")
    np.testing.assert_array_equal(read_codes(report.done[0].output).codes, codes)
    decode_files(tokenizer, [tmp_path / "codes"], tmp_path / "motion", fps="source")
    tokenizer.decode_to_file(torch.from_numpy(codes), str(tmp_path / "direct.npz"), source, fps="source")
    with np.load(tmp_path / "motion" / "1_a.npz") as said, np.load(tmp_path / "direct.npz") as direct:
        assert said.files == direct.files and all(np.array_equal(said[key], direct[key]) for key in said.files)
    tokenizer.decode_to_file(codes, tmp_path / "alone.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "alone.npy"), tokenizer.decode(codes))


BAD_RATES = (0, -30.0, np.nan, np.inf, "30", "fast")


@pytest.mark.parametrize(
    ("file", "settings", "words"),
    [
        ("a.txt", {}, r"a\.txt: motion is written as \.npz, \.npy, \.bvh, \.csv;"),
        ("a.bvh", {}, "takes its hierarchy from a source"),
        ("a.npz", {}, "cannot be stored in a BEAT2 file"),
        ("a.npy", {"fps": 60.0}, "columns of unknown meaning are never resampled"),
        ("a.npy", {"fps": "source"}, "its source's frame rate is not known"),
        ("a.npy", {"source": "missing.npz"}, "missing.npz"),
        *(("a.npy", {"fps": fps}, "fps is .*; give a number of frames per second, or 'source'") for fps in BAD_RATES),
        ("a.npy", {"fps": 1e6}, r"cannot be written at 1e\+06 fps: .*never resampled"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused(tokenizer, tmp_path, file, settings, words):
    with pytest.raises(UserError, match=words):
        tokenizer.decode_to_file(np.zeros((4, 3), np.int64), tmp_path / file, **settings)
    assert not any(tmp_path.iterdir())


def test_codes_of_several_clips_are_not_a_files(tokenizer, tmp_path):
    for count in (1, 2):
        with pytest.raises(ValueError, match="a file holds one clip: give its codes"):
            tokenizer.decode_to_file(np.zeros((count, 4, 3), np.int64), tmp_path / "a.npy")
    assert not any(tmp_path.iterdir())


def test_a_rate_that_is_none_is_refused_before_any_file(tokenizer, tmp_path):
    with pytest.raises(UserError, match="fps is 0; give a number of frames per second"):
        decode_files(tokenizer, [tmp_path / "codes"], tmp_path / "motion", fps=0)


def test_what_the_commands_say_of_files_is_logged_of_them_here_too(tmp_path, caplog):
    tokenizer = MotionTokenizer(
        RVQVAE(78, CONFIG), torch.zeros(78), torch.ones(78), select_columns(smplx_layout(), "upper")[1], 30.0
    )
    poses = beat2_arrays(62)["poses"]
    poses[:, :3] = [np.pi / 2, 0, 0]
    source = write_beat2(tmp_path / "1_a.npz", 62, poses=poses, mocap_frame_rate=np.array(60, np.int32))

    def said(function, *args, **settings):
        caplog.clear()
        function(*args, **settings)
        return [record.getMessage() for record in caplog.records if record.name == "ds_rvqvae"]

    codes = tokenizer.encode_file(source)
    (line,) = said(tokenizer.encode_file, source)
    assert line.startswith(f"{source}: ") and "lies along z; y should be up" in line
    for name in ("a.npz", "a.npy"):
        file = tmp_path / name
        told = f"{file}: source at 60 fps, written at 30; fps='source' keeps the source's"
        assert said(tokenizer.decode_to_file, codes, file, source) == [told]
        assert said(tokenizer.decode_to_file, codes, file, source, fps="source") == []
    before = source.read_bytes()
    (tmp_path / "link.npz").symlink_to(source)
    for name in ("1_a.npz", "link.npz"):
        with pytest.raises(UserError, match="is its source, which is never overwritten; name another file"):
            tokenizer.decode_to_file(codes, tmp_path / name, source)
    assert source.read_bytes() == before


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_motion_that_is_not_finite_is_refused(tokenizer, value):
    motion = np.zeros((40, 8), np.float32)
    motion[39, 3] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        tokenizer.encode(motion)


def test_lengths_that_do_not_fit_are_refused(tokenizer):
    with pytest.raises(ValueError, match="2 lengths for 1 clips"):
        tokenizer.encode(np.zeros((10, 8), np.float32), [3, 4])
    with pytest.raises(ValueError, match="from 1 to 10, not \\[11\\]"):
        tokenizer.encode(np.zeros((10, 8), np.float32), 11)
    with pytest.raises(ValueError, match="from 1 to 8"):
        tokenizer.decode(np.zeros((2, 3), np.int64), 0)
    with pytest.raises(ValueError, match="float32"):
        tokenizer.decode(np.zeros((2, 3), np.float32))


@pytest.mark.parametrize(
    ("settings", "fingerprint"),
    [
        ({}, "c624baf182d6d93442828980d03f411eebee541a1e809ce58d86cecb1ac8dce7"),
        ({"mu": 0.5, "dropout": 0.1}, "c624baf182d6d93442828980d03f411eebee541a1e809ce58d86cecb1ac8dce7"),
        ({"norm": "LN", "activation": "silu"}, "3e55a5ef664a3d1f73f8d7f028612a912d497b0446f59359e75512af06da5b1c"),
        (
            {"activation": "silu", "outer_activation": "relu"},
            "e968ff52fca0e82851f4326783ce0d5a7699b2b26ca2b0b7f7a2a12cddb4a9cf",
        ),
        ({"beam_size": 2}, "dff12c4256857c62cca45314807f9e0f61342c37598cb6f260831cf8e41b6258"),
        (
            {"codebook_distance": "cosine", "shared_codebook": True},
            "f544c304a70f6300844236cdb9230cb3c090c5615ef8bfbcb498a7a57c6ac6de",
        ),
        ({"fsq_levels": [2, 2]}, "d037c4ef04fba5f0665bcc09999c3215215bba757896bb72bfd3dfd57397bea0"),
    ],
)
def test_fingerprints_stay_what_they_were(settings, fingerprint):
    """Codes files and bodies name the fingerprint of their tokenizer: no later version may compute another."""
    model = RVQVAE(3, ModelConfig(width=4, depth=1, down_t=1, code_dim=2, nb_code=4, num_quantizers=2, **settings))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape))
    tokenizer = MotionTokenizer(model, torch.zeros(3), torch.ones(3), feature_layout(3), 30.0)
    assert tokenizer.fingerprint == fingerprint


def test_the_fingerprint_is_of_what_codes_mean(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    for dtype in (torch.float32, torch.bfloat16):
        assert MotionTokenizer.from_pretrained(tmp_path / "tokenizer", dtype=dtype).fingerprint == tokenizer.fingerprint
    weights = (tmp_path / "tokenizer" / "model.safetensors").read_bytes()
    other = RVQVAE(8, CONFIG)
    MotionTokenizer(other, tokenizer.mean, tokenizer.std, tokenizer.layout, 30.0).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"model.safetensors holds the weights of another tokenizer"):
        MotionTokenizer.from_pretrained(tmp_path / "other")
    (tmp_path / "other" / "config.json").unlink()  # as the message says
    assert MotionTokenizer.from_pretrained(tmp_path / "other").fingerprint == tokenizer.fingerprint
    before = tokenizer.fingerprint
    tokenizer = MotionTokenizer.from_pretrained(tmp_path / "tokenizer", trainable=True)
    tokenizer.model.quantizer.ema_count += 1  # of training only
    assert tokenizer.fingerprint == before
    tokenizer.model.quantizer.codebooks[0, 0, 0] += 1
    assert tokenizer.fingerprint != before


def test_the_config_and_the_card_say_what_it_is(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    config = json.loads((tmp_path / "tokenizer" / "config.json").read_text())
    assert config["joint_names"] == ["hip"] and config["training_step"] == 7 and config["in_features"] == 8
    assert config["normalisation"] == {"mean": tokenizer.mean.tolist(), "std": tokenizer.std.tolist()}
    card = (tmp_path / "tokenizer" / "README.md").read_text()
    # 7.5 codes per second, 3 levels, 8 codes per level.
    assert "`[frames / 4, 3]`" in card and "68 bits/s" in card and tokenizer.fingerprint in card


def test_the_files_are_as_readable_as_others(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert len({file.stat().st_mode for file in (tmp_path / "tokenizer").iterdir()}) == 1


def test_bf16_keeps_codebooks_and_normalisation_in_fp32(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = MotionTokenizer.from_pretrained(tmp_path / "tokenizer", dtype=torch.bfloat16)
    assert loaded.model.encoder[0].weight.dtype == torch.bfloat16
    assert loaded.model.quantizer.codebooks.dtype == loaded.mean.dtype == torch.float32
    assert loaded.decode(loaded.encode(torch.randn(16, 8))).dtype == torch.float32


def _without(folder, name):
    (folder / name).unlink()


def _config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    del config["fingerprint"]  # changed on purpose
    (folder / "config.json").write_text(json.dumps(config | changes))


MODEL = CONFIG.model_dump(mode="json")
DAMAGE = {
    "no weights": (lambda folder: _without(folder, "model.safetensors"), "model.safetensors is missing"),
    "another format": (lambda folder: _config(folder, format_version=99), "format_version is 99"),
    "a wider model": (lambda folder: _config(folder, in_features=9), "not a tokenizer's config: .* 8"),
    "a mean too few": (
        lambda folder: _config(folder, normalisation={"mean": [0.0] * 7, "std": [1.0] * 8}),
        r"mean has the shape \[7\], std \[8\]",
    ),
    "a std of 0": (
        lambda folder: _config(folder, normalisation={"mean": [0.0] * 8, "std": [0.0] * 8}),
        "a std is not above 0",
    ),
    "a mean that is NaN": (
        lambda folder: _config(folder, normalisation={"mean": [float("nan")] * 8, "std": [1.0] * 8}),
        "not finite",
    ),
    "no frame rate": (lambda folder: _config(folder, fps=0), "fps is 0"),
    "a body part that is none": (lambda folder: _config(folder, body_part=["upper"]), "body_part is"),
    "a model beyond memory": (
        lambda folder: _config(folder, model={**MODEL, "width": 2**20, "nb_code": 2**40}),
        "model.width is 1048576, more than model.safetensors can hold",
    ),
    "another depth": (lambda folder: _config(folder, model={**MODEL, "depth": 2}), "is missing, not"),
    "unknown model key": (lambda folder: _config(folder, model={"widht": 3}), "widht"),
    "another code_dim": (lambda folder: _config(folder, model={**MODEL, "code_dim": 5}), "quantizer.codebooks|encoder"),
    "truncated weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"abc"), "model.safetensors"),
}


@pytest.mark.parametrize(("damage", "pattern"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_folders_are_refused_in_one_line(tokenizer, tmp_path, damage, pattern):
    folder = tmp_path / "tokenizer"
    tokenizer.save_pretrained(folder)
    damage(folder)
    with pytest.raises(UserError, match=pattern) as refusal:
        MotionTokenizer.from_pretrained(folder)
    assert "\n" not in str(refusal.value)


def test_it_loads_without_deepspeed(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    code = (
        "import sys; sys.modules['deepspeed'] = None\n"
        "import numpy as np\n"
        "from ds_rvqvae import MotionTokenizer\n"
        "tokenizer = MotionTokenizer.from_pretrained(sys.argv[1])\n"
        "print(tokenizer.encode(np.zeros((16, 8), np.float32)).shape)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "tokenizer")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == "(4, 3)\n", result.stderr
