"""Loading gives what was saved, or refuses: mixed files, damage, changes by hand, hostile sizes."""

import json
import shutil
import struct
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ds_rvqvae import BodyTokenizer, MotionTokenizer
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.errors import UserError
from ds_rvqvae.model.rvqvae import RVQVAE
from ds_rvqvae.motion.layout import feature_layout
from ds_rvqvae.runs.init_from import read_initial
from ds_rvqvae.tokenizer.folder import read_config
from ds_rvqvae.tokenizer.saved.reading import open_weights

CONFIG = ModelConfig(width=16, depth=1, code_dim=4, nb_code=8, num_quantizers=2)


def make(seed=0, **details):
    torch.manual_seed(seed)
    return MotionTokenizer(RVQVAE(5, CONFIG), torch.zeros(5), torch.ones(5), feature_layout(5), 30.0, details)


@pytest.fixture
def folder(tmp_path):
    make().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def as_before(folder):
    """As versions up to 0.3 wrote it: weights without metadata."""
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def edit(folder, remove=(), **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: config[key] for key in config if key not in remove}))


def refusal(folder, load=MotionTokenizer.from_pretrained):
    with pytest.raises(UserError) as raised:
        load(folder)
    assert "\n" not in str(raised.value) and str(folder) in str(raised.value)
    return str(raised.value)


def test_the_weights_carry_their_config(folder):
    with safe_open(folder / "model.safetensors", framework="numpy") as content:
        assert json.loads(content.metadata()["ds_rvqvae"]) == json.loads((folder / "config.json").read_text())
    assert open_weights(folder / "model.safetensors").values["fps"] == 30.0


@pytest.mark.parametrize("old", [False, True])
def test_one_flipped_bit_anywhere_in_the_weights_is_told(folder, old):
    if old:
        as_before(folder)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    (header,) = struct.unpack("<Q", whole[:8])
    names = json.loads(whole[8 : 8 + header])
    for name, entry in names.items():
        # An old tokenizer has only its fingerprint, which leaves out buffers that only training uses.
        if name == "__metadata__" or (old and name.endswith(("ema_sum", "ema_count", "updates"))):
            continue
        place = 8 + header + entry["data_offsets"][0]
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert "copy or export" in refusal(folder)
    file.write_bytes(whole)
    assert MotionTokenizer.from_pretrained(folder).fingerprint == make().fingerprint


def test_a_changed_byte_of_the_header_is_told(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    (header,) = struct.unpack("<Q", whole[:8])
    for place in range(0, 8 + header, 97):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            loaded = MotionTokenizer.from_pretrained(folder)
        except UserError:
            continue
        # A byte that nothing reads.
        assert (loaded.fingerprint, loaded.fps, loaded.layout) == (make().fingerprint, 30.0, make().layout)


@pytest.mark.parametrize("old", [False, True])
def test_weights_of_another_run_are_told(folder, tmp_path, old):
    make(seed=1).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    if old:
        as_before(folder)
    assert "of another tokenizer" in refusal(folder)
    edit(folder, remove=["fingerprint"])  # as the message says, if these weights are wanted
    assert MotionTokenizer.from_pretrained(folder).fingerprint == make(seed=1).fingerprint


BY_HAND = {
    "fps": 25.0,
    "normalisation": {"mean": [1.0] * 5, "std": [1.0] * 5},
    "model": {**CONFIG.model_dump(mode="json"), "activation": "gelu"},
    "body_part": "upper",
    "reading": {"reading_version": 1},
    "layout": [{"name": "mine", "kind": "feature", "columns": [0, 5]}],
}


@pytest.mark.parametrize("key", BY_HAND)
def test_a_config_that_was_changed_by_hand_says_how_to_go_on(folder, caplog, key):
    edit(folder, **{key: BY_HAND[key]})
    said = refusal(folder)
    assert f"was saved with (in {key})" in said and "remove its key fingerprint" in said
    assert refusal(folder, read_config) == said
    edit(folder, remove=["fingerprint"])
    caplog.clear()
    loaded = MotionTokenizer.from_pretrained(folder)
    assert [f"differs from model.safetensors in fingerprint, {key}" in one.message for one in caplog.records] == [True]
    assert key != "fps" or loaded.fps == 25.0
    assert key != "body_part" or loaded.details["body_part"] == "upper"
    assert key != "layout" or loaded.layout[0].name == "mine"


@pytest.mark.parametrize("key", ["fps", "normalisation", "model"])
def test_an_old_config_that_was_changed_by_hand_says_how_to_go_on(folder, caplog, key):
    as_before(folder)
    edit(folder, **{key: BY_HAND[key]})
    assert "remove its key fingerprint" in refusal(folder)
    edit(folder, remove=["fingerprint"])
    loaded = MotionTokenizer.from_pretrained(folder)
    assert "has no fingerprint" in caplog.text and (key != "fps" or loaded.fps == 25.0)


def test_what_is_added_to_a_config_is_free(folder, caplog):
    edit(folder, license="mit")
    assert MotionTokenizer.from_pretrained(folder).details["license"] == "mit" and not caplog.records


def test_scores_that_are_no_numbers_equal_themselves(tmp_path, caplog):
    make(note={"angle": float("nan")}).save_pretrained(tmp_path / "tokenizer")
    MotionTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert not caplog.records


DAMAGE = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "NULs at its end": lambda content: content + bytes(4096),
    "random bytes at its end": lambda content: content + bytes(range(255, 0, -1)),
    "nested without end": lambda content: b"[" * 100_000,
    "no UTF-8": lambda content: b"\xff" + content,
    "missing": None,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "README.md"])
def test_a_damaged_file_is_made_good_by_another_or_refused(folder, caplog, name, damage):
    file = folder / name
    change = DAMAGE[damage]
    if change is None:
        file.unlink()
    else:
        file.write_bytes(change(file.read_bytes()))
    if name == "model.safetensors":
        assert str(file) in (said := refusal(folder)) or f"{name} is missing" in said
        assert "again" in said or "missing" in said
        return
    loaded = MotionTokenizer.from_pretrained(folder)
    assert loaded.fingerprint == make().fingerprint
    assert (f"{file}: " in caplog.text and "is used" in caplog.text) == (name == "config.json")
    loaded.save_pretrained(folder)
    caplog.clear()
    assert MotionTokenizer.from_pretrained(folder).fingerprint == make().fingerprint and not caplog.records


def test_a_damaged_old_config_is_refused(folder):
    as_before(folder)
    for content in (b"", b"{", b"[" * 100_000, b"[]"):
        (folder / "config.json").write_bytes(content)
        assert "config.json: not a tokenizer's config" in (said := refusal(folder)) and "again" in said
    (folder / "config.json").unlink()
    assert "config.json is missing" in refusal(folder)


MODEL = CONFIG.model_dump(mode="json")
HOSTILE = {
    "depth": 1_000_000,
    "width": 10**30,
    "nb_code": 10**12,
    "down_t": 10**6,
    "num_quantizers": 10**6,
    "code_dim": 10**12,
    "stride_t": 10**9,
    "dilation_growth_rate": 10**9,
    "beam_size": 10**9,
    "quantize_dropout_min_levels": 10**30,
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("key", HOSTILE)
def test_sizes_beyond_the_weights_are_refused_at_once(folder, tmp_path, key, old):
    if old:
        as_before(folder)
    edit(folder, remove=["fingerprint"], model={**MODEL, key: HOSTILE[key]})
    began = time.monotonic()
    if key == "quantize_dropout_min_levels":  # of training only
        MotionTokenizer.from_pretrained(folder)
    else:
        said = refusal(folder)
        assert key in said or " is [" in said or "overflow" in said.lower()
    (tmp_path / "body").mkdir()
    shutil.copytree(folder, tmp_path / "body" / "arm")
    (tmp_path / "body" / "body.json").write_text(json.dumps({"format_version": 1, "parts": ["arm"]}))
    if key in ("depth", "width", "code_dim", "num_quantizers", "nb_code"):
        for load in (read_config, lambda folder: read_initial(str(folder), "arm")):
            assert key in refusal(folder, load)
        assert key in refusal(tmp_path / "body", BodyTokenizer.from_pretrained)
    assert time.monotonic() - began < 5


def test_a_grid_without_end_is_refused_at_once(folder):
    for levels, changes in (
        ([10**6, 10**6], {"nb_code": 10**12, "code_dim": 2}),
        ([10**6] * 8, {"code_dim": 8}),
        ([10**5, 10**5], {"code_dim": 2}),
        ([8, 8], {"nb_code": 64, "code_dim": 2, "num_quantizers": 10**12}),
    ):
        edit(folder, remove=["fingerprint"], model={**MODEL, "fsq_levels": levels, **changes})
        began = time.monotonic()
        assert "more than model.safetensors can hold" in refusal(folder)
        assert time.monotonic() - began < 2


def test_other_things_that_a_config_cannot_say(folder, tmp_path):
    for changes, words in (
        (
            {"layout": [{"name": "a", "kind": "rotation_6d", "columns": [0, 6 * 10**12]}]},
            "6000000000000, but",
        ),
        ({"layout": [{"name": "a\nb", "kind": "feature", "columns": [0, 5]}]}, "control characters"),
        ({"layout": [{"name": "\x1b[31m", "kind": "feature", "columns": [0, 5]}]}, "control characters"),
        ({"layout": [{"name": "\ud800", "kind": "feature", "columns": [0, 5]}]}, "control characters"),
        ({"normalisation": {"mean": [1e39] * 5, "std": [1.0] * 5}}, "not finite in float32"),
        ({"normalisation": {"mean": [0] * 5, "std": [10**400] * 5}}, "too large for float32"),
        ({"normalisation": {"mean": [0] * 5, "std": [1e-60] * 5}}, "std is not above 0"),
        ({"in_features": 10**12}, "5 columns"),
        ({"fps": 10**400}, "fps is"),
    ):
        make().save_pretrained(folder)
        edit(folder, remove=["fingerprint"], **changes)
        assert words in refusal(folder)
    width = 6 * 10**12
    layout = [{"name": "a", "kind": "rotation_6d", "columns": [0, width]}]
    (tmp_path / "body.json").write_text(json.dumps({"format_version": 1, "parts": ["a"], "layout": layout}))
    assert "more than 65,536" in refusal(tmp_path, BodyTokenizer.from_pretrained)


def test_a_header_beyond_the_file_is_refused(folder):
    file = folder / "model.safetensors"
    for length in (2**63, 2**40, file.stat().st_size):
        file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
        assert "cannot be read as weights" in refusal(folder)


def test_an_old_tokenizer_loads_as_before(folder, caplog):
    config = (folder / "config.json").read_bytes()
    loaded = MotionTokenizer.from_pretrained(as_before(folder))
    assert loaded.fingerprint == make().fingerprint and not caplog.records
    assert (folder / "config.json").read_bytes() == config
    half = MotionTokenizer.from_pretrained(folder, dtype=torch.bfloat16)
    assert half.fingerprint == make().fingerprint
