"""The keys of motion data: valid names of body parts, and errors that are found before any file is opened."""

import pytest
from pydantic import ValidationError

from ds_rvqvae.config.data import AugmentConfig, DataConfig, is_part_name
from ds_rvqvae.config.names import BODY_PARTS


@pytest.mark.parametrize(
    ("name", "may"),
    [
        ("left_arm", True),
        ("left-arm2", True),
        ("größe", True),
        ("a" * 64, True),
        ("a" * 65, False),
        ("tokenizer", False),
        ("", False),
        ("_-", False),
        ("left arm", False),
        ("a/b", False),
        ("..", False),
        (3, False),
    ],
)
def test_a_part_is_called_as_a_folder_and_a_key_may_be(name, may):
    assert is_part_name(name) is may


def test_a_body_part_is_a_known_one_or_one_of_the_profiles_own():
    for part in BODY_PARTS:
        assert DataConfig(body_part=part).body_part == part
    arm = {"left_arm": ["Left*", 3]}
    assert DataConfig(body_part="left_arm", body_parts=arm).body_parts == arm
    with pytest.raises(ValidationError, match="no body part 'uper'; did you mean 'upper'"):
        DataConfig(body_part="uper")
    with pytest.raises(ValidationError, match="no body part 'left_ram'; did you mean 'left_arm'"):
        DataConfig(body_part="left_ram", body_parts=arm)
    with pytest.raises(ValidationError, match=r"no body part 'zzz'; known are upper, .*, face_jaw, left_arm;"):
        DataConfig(body_part="zzz", body_parts=arm)
    with pytest.raises(ValidationError, match="'left arm': name parts with letters"):
        DataConfig(body_parts={"left arm": ["Left*"]})


def test_weights_need_something_that_they_weigh():
    assert DataConfig(balance="speaker", weights={"2": 3.0}).weights == {"2": 3.0}
    with pytest.raises(ValidationError, match=r"rvqvae\.data\.weights: needs rvqvae\.data\.balance"):
        DataConfig(weights={"2": 3.0})


@pytest.mark.parametrize("key", ["mirror", "time_scale", "noise", "offset", "mix", "scale"])
def test_any_augmentation_is_on_by_itself(key):
    assert AugmentConfig(**{key: 0.25}).is_on


def test_how_many_windows_are_mixed_does_nothing_by_itself():
    assert not AugmentConfig().is_on and not AugmentConfig(mix_windows=4).is_on
