"""The folders of tokenizers: what is read of them, what is refused, and how they are replaced."""

import json

import numpy as np
import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import ClipError
from ds_rvqvae.motion.layout import Channels, feature_layout, layout_to_json, select_columns, smplx_layout
from ds_rvqvae.tokenizer.folder import (
    columns_for,
    hint_of,
    is_tokenizer,
    read_body,
    read_config,
    reading_config,
    reading_of,
    statistics_from,
)
from tests.cli.commands import CONFIG, make_tokenizer

LAYOUT = (Channels("hip", "rotation_6d", 0, 6), Channels("root", "translation", 6, 9))


@pytest.fixture
def folder(tmp_path):
    """Of a tokenizer of nine columns."""
    make_tokenizer(LAYOUT, "hip").save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_config_says_what_was_saved(folder):
    assert is_tokenizer(folder) and not is_tokenizer(folder.parent)
    config = read_config(folder)
    assert (config.model, config.layout, config.fps, config.in_features) == (CONFIG, LAYOUT, 30.0, 9)
    np.testing.assert_array_equal(config.mean, np.zeros(9, np.float32))
    np.testing.assert_array_equal(config.std, np.ones(9, np.float32))
    assert config.details["body_part"] == "hip" and "fingerprint" not in config.details


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"format_version": 2}, "format_version is 2; this release reads version 1"),
        ({"in_features": 8}, "not a tokenizer's config"),
        ({"fps": 0}, "fps is 0, not a frame rate"),
        ({"fps": "30"}, "fps is 30, not a frame rate"),
        ({"body_part": "../up"}, "body_part is '../up', not the name of a body part"),
        ({"normalisation": {"mean": [0] * 9, "std": [0] * 9}}, "a std is not above 0"),
        ({"layout": 3}, "not a tokenizer's config"),
    ],
)
def test_a_config_that_cannot_be_is_refused_in_one_line(folder, change, complaint):
    values = json.loads((folder / "config.json").read_text()) | change
    del values["fingerprint"]  # changed on purpose
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError) as raised:
        read_config(folder)
    message = str(raised.value)
    assert complaint in message and message.startswith(f"{folder / 'config.json'}: ") and "\n" not in message


def test_a_folder_that_lacks_a_file_says_what_may_have_been_meant(folder, tmp_path):
    (tmp_path / "run").mkdir()
    folder.rename(tmp_path / "run" / "tokenizer")
    with pytest.raises(UserError, match=r"run: not a tokenizer's folder: config.json is missing; did you mean .*/tok"):
        read_config(tmp_path / "run")
    (tmp_path / "run" / "tokenizer" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model.safetensors is missing$"):
        read_config(tmp_path / "run" / "tokenizer")
    (tmp_path / "body").mkdir()
    (tmp_path / "body" / "body.json").write_text("{}")
    assert "it is a body's" in hint_of(tmp_path / "body")
    assert hint_of(tmp_path / "body" / "arm") == f"; the body's tokenizer in {tmp_path / 'body'} has no such part"
    assert hint_of(tmp_path) == ""


def test_a_body_names_its_parts(tmp_path):
    layout = layout_to_json(LAYOUT)
    (tmp_path / "body.json").write_text(json.dumps({"format_version": 1, "parts": ["a", "b"], "layout": layout}))
    assert read_body(tmp_path) == (["a", "b"], LAYOUT)
    (tmp_path / "body.json").write_text(json.dumps({"format_version": 1, "parts": ["upper"]}))
    assert read_body(tmp_path) == (["upper"], None)
    for values, complaint in (
        ({"format_version": 1, "parts": ["../a"]}, "not names of body parts"),
        ({"format_version": 1, "parts": []}, "not names of body parts"),
        ({"format_version": 3, "parts": ["a"]}, "format_version is 3; this release reads version 1"),
        ({"parts": ["a"]}, "not the file of a body's tokenizer: KeyError"),
        ([], "not the file of a body's tokenizer: TypeError"),
    ):
        (tmp_path / "body.json").write_text(json.dumps(values))
        with pytest.raises(UserError, match=complaint):
            read_body(tmp_path)


def test_statistics_have_to_normalise():
    mean, std = statistics_from({"mean": [1, 2], "std": [0.5, 4]})
    assert mean.dtype == std.dtype == np.float32 and mean.tolist() == [1, 2] and std.tolist() == [0.5, 4]
    for values in (
        {"mean": [1, 2], "std": [1]},
        {"mean": [[1]], "std": [[1]]},
        {"mean": [1], "std": [-1]},
        {"mean": [float("nan")], "std": [1]},
        {"mean": [0], "std": [float("inf")]},
    ):
        with pytest.raises(ValueError, match="normalisation"):
            statistics_from(values)


def test_files_are_read_as_the_training_motion_was():
    settings = DataConfig(up_axis="z", metres_per_unit=0.01).model_dump()
    kept = reading_of(settings)
    assert kept == {"up_axis": "z", "metres_per_unit": 0.01, "reading_version": 2} and reading_of({}) == {}
    assert reading_of(DataConfig(reading_version=1).model_dump()) == {"reading_version": 1}
    config = reading_config({"reading": kept}, 25.0, "walk.bvh")
    assert (config.up_axis, config.metres_per_unit, config.fps, config.path) == ("z", 0.01, 25.0, "walk.bvh")
    assert reading_config({"reading": reading_of(DataConfig().model_dump())}, 30.0) == DataConfig(fps=30.0)
    with pytest.raises(UserError, match="the tokenizer's config: reading: "):
        reading_config({"reading": {"up_axis": "w"}}, 30.0)


def test_columns_are_found_by_name_wherever_they_stand():
    moved = (
        Channels("root", "translation", 0, 3),
        Channels("face", "feature", 3, 5),
        Channels("hip", "rotation_6d", 5, 11),
    )
    assert columns_for(LAYOUT, moved).tolist() == [5, 6, 7, 8, 9, 10, 0, 1, 2]
    columns, upper = select_columns(smplx_layout(), "upper")
    np.testing.assert_array_equal(columns_for(upper, smplx_layout()), columns)
    assert columns_for(LAYOUT, feature_layout(9)).tolist() == list(range(9))


@pytest.mark.parametrize(
    ("layout", "complaint"),
    [
        (feature_layout(8), "^8 columns, this tokenizer takes 9$"),
        ((Channels("hip", "rotation_6d", 0, 6),), r"no root \(translation in 3 columns\).*; the motion has hip$"),
        (
            (*LAYOUT[:1], Channels("root", "position", 6, 9)),
            r"no root \(translation .*the motion has position in 3",
        ),
    ],
)
def test_columns_that_are_not_there_are_named(layout, complaint):
    with pytest.raises(ClipError, match=complaint):
        columns_for(LAYOUT, layout)


def test_columns_without_names_can_be_refused():
    with pytest.raises(ClipError, match="no hip"):
        columns_for(LAYOUT, feature_layout(9), takes_bare=False)
