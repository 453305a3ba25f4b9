"""Which keys may change when a run goes on."""

import json

import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.config.profile import load_profile
from ds_rvqvae.errors import UserError
from ds_rvqvae.runs.checkpoints import MANIFEST, seal
from ds_rvqvae.runs.start import find_resume
from tests.settings import SMALL, models_with_another

FIXED = {
    "model": (
        *("width", "depth", "down_t", "stride_t", "dilation_growth_rate", "activation", "outer_activation"),
        *("norm", "code_dim", "nb_code", "num_quantizers", "shared_codebook", "fsq_levels", "codebook_distance"),
    ),
    "data": ("body_part", "fps", "reading_version", "mean_file", "std_file", "std_floor", "feat_bias"),
}
OTHER_DATA = {
    "path": "/elsewhere",
    "format": "bvh",
    "body_part": "hands",
    "body_parts": {"feet": [7, 8]},
    "speakers": [2],
    "window_size": 32,
    "window_stride": 24,
    "window_sizes": [16, 32],
    "balance": "speaker",
    "split": "hash",
    "fps": 60.0,
    "source_fps": 60.0,
    "metres_per_unit": 0.01,
    "up_axis": "z",
    "split_version": "version2",
    "reading_version": 1,
    "store_dtype": "float16",
    "rules": {"dropouts": False},
    "mean_file": "/mean.npy",
    "std_file": "/std.npy",
    "std_floor": 0.1,
    "feat_bias": 5.0,
    "augment": {"noise": 0.1},
    "num_workers": 0,
}
"""Another value of each key, but for `weights`, which goes with `balance` only."""


@pytest.fixture
def run(tmp_path):
    """A run of one checkpoint, as far as a resume reads it before it opens the checkpoint."""
    checkpoint = tmp_path / "checkpoints" / "global_step5"
    checkpoint.mkdir(parents=True)
    manifest = {"step": 5, "world_size": 1, "global_batch": 16, "motion": "motion", "files": {}}
    (checkpoint / MANIFEST).write_text(json.dumps(seal(manifest)))
    (checkpoint.parent / "latest").write_text(checkpoint.name)
    profile = load_profile("demo", ["train_micro_batch_size_per_gpu=16", "rvqvae.data.window_size=64"])
    profile = profile.with_values({"rvqvae.model": SMALL})
    (tmp_path / "profile.json").write_text(json.dumps(profile.to_dict()))
    return tmp_path


def resumed(run, section, key, value):
    """What a resume says of another value."""
    profile = load_profile(run / "profile.json").with_values({f"rvqvae.{section}.{key}": value})
    return find_resume(run, profile, 1, "motion").notes


@pytest.mark.parametrize("key", ModelConfig.model_fields)
def test_keys_of_the_model_that_stay(run, key):
    for config in models_with_another(key):
        _check(run, "model", key, getattr(config, key))


@pytest.mark.parametrize("key", [key for key in DataConfig.model_fields if key != "weights"])
def test_keys_of_the_data_that_stay(run, key):
    other = DataConfig.model_validate({key: OTHER_DATA[key]})
    _check(run, "data", key, getattr(other, key))


def _check(run, section, key, value):
    if key in FIXED[section]:
        with pytest.raises(UserError, match=rf"^--resume: rvqvae\.{section}\.{key} was .* and cannot change to "):
            resumed(run, section, key, value)
    else:
        assert any(note.startswith(f"changed: rvqvae.{section}.{key}") for note in resumed(run, section, key, value))
