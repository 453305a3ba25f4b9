"""Which keys may change when a run is resumed."""

import json

import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.config.profile import load_profile
from ds_rvqvae.config.request import read_training_flags
from ds_rvqvae.errors import ExitStatus, UserError
from ds_rvqvae.runs.checkpoints import MANIFEST, seal
from ds_rvqvae.runs.folder import write_profile
from ds_rvqvae.runs.start import as_begun, find_resume, request_of
from tests.settings import SMALL, models_with_another

FIXED = {
    "model": (
        *("width", "depth", "down_t", "stride_t", "dilation_growth_rate", "activation", "outer_activation"),
        *("norm", "code_dim", "nb_code", "num_quantizers", "shared_codebook", "fsq_levels", "codebook_distance"),
    ),
    "data": (
        *("body_part", "fps", "source_fps", "metres_per_unit", "up_axis", "reading_version"),
        *("skeleton", "robot", "csv_units", "joints", "joint_names"),
        *("mean_file", "std_file", "std_floor", "feat_bias"),
    ),
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
    "skeleton": "/skeleton.json",
    "robot": "/robot.xml",
    "csv_units": "metres_radians",
    "joints": "common",
    "joint_names": {"Hip": "Hips"},
    "skeleton_of": "/walk.bvh",
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
    """Returns the notes of a resume with another value."""
    profile = load_profile(run / "profile.json").with_values({f"rvqvae.{section}.{key}": value})
    return find_resume(run, profile, 1, {"motion": "motion"}).notes


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


RECORD = {"motion": "motion", "fps": 30.0, "splits": "some", "reading": {"up_axis": "z"}, "frames": "these"}


def _remember(run, record):
    """Makes the run's checkpoint record this about its motion."""
    file = run / "checkpoints" / "global_step5" / MANIFEST
    manifest = json.loads(file.read_text())
    del manifest["motion"]
    file.write_text(json.dumps(seal(manifest | record)))


@pytest.mark.parametrize(
    ("key", "now", "complaint"),
    [
        ("motion", "another", "other columns or another normalisation"),
        ("fps", 20.0, "20 fps, but .*global_step5 was trained at 30 fps"),
        ("reading", {"up_axis": "y"}, r'read with {"up_axis": "y"}, but those of .* were read with {"up_axis": "z"}'),
        ("splits", "others", "has other training or held-out clips"),
    ],
)
def test_a_run_goes_on_with_its_own_motion_only(run, key, now, complaint):
    """Also with a given normalisation, when columns and statistics do not show the change."""
    profile = load_profile(run / "profile.json")
    _remember(run, RECORD)
    assert find_resume(run, profile, 1, RECORD).notes == [f"going on from {run / 'checkpoints' / 'global_step5'}"]
    with pytest.raises(UserError, match=f"^--resume: .*{complaint}.*; resume with the same motion, or start a new run"):
        find_resume(run, profile, 1, RECORD | {key: now})


def test_other_frames_behind_the_same_normalisation_are_said(run):
    _remember(run, RECORD)
    notes = find_resume(run, load_profile(run / "profile.json"), 1, RECORD | {"frames": "those"}).notes
    assert any("the motion is not the same as when" in note for note in notes)


def test_a_checkpoint_that_remembers_less_is_gone_on_from(run):
    profile = load_profile(run / "profile.json")
    assert find_resume(run, profile, 1, RECORD).step() == 5
    with pytest.raises(UserError, match="other columns"):
        find_resume(run, profile, 1, RECORD | {"motion": "another"})


def _request(run, *flags):
    return read_training_flags(["--profile=demo", f"--out={run.parent}", f"--name={run.name}", *flags]).request()


def test_a_run_of_before_reads_its_motion_as_it_was_read_then(run):
    profile = json.loads((run / "profile.json").read_text())
    del profile["rvqvae"]["data"]["reading_version"]
    profile["rvqvae"]["data"] |= {"up_axis": "z", "metres_per_unit": 0.01}
    (run / "profile.json").write_text(json.dumps(profile))
    began = as_begun(_request(run, "--resume", "--metres_per_unit=0.02"), run).profile.rvqvae.data
    # A value asked for explicitly stays, and is refused then.
    assert (began.reading_version, began.up_axis, began.metres_per_unit) == (1, "z", 0.02)
    assert as_begun(_request(run.parent / "new"), run).profile.rvqvae.data.reading_version == 2
    (run / "checkpoints" / "global_step5" / MANIFEST).unlink()
    (run / "checkpoints" / "global_step5").rmdir()
    assert as_begun(_request(run, "--resume"), run).profile.rvqvae.data.reading_version == 2


def test_a_key_that_changes_nothing_is_refused_unless_the_run_began_with_it(run):
    flags = read_training_flags(["--profile=demo", "--set=wandb.enabled=true"])
    for refused in (
        lambda: request_of(flags),
        lambda: as_begun(_request(run, "--resume", "--set=dump_state=true"), run),
    ):
        with pytest.raises(UserError, match=r"^(wandb\.enabled|dump_state): ") as error:
            refused()
        assert error.value.status == ExitStatus.BAD_INPUT
    # Started by a version that accepted it.
    write_profile(run, load_profile(run / "profile.json", ["wandb.enabled=true"]))
    on = read_training_flags([f"--resume={run}"])
    assert as_begun(request_of(on), run).profile.warnings()[0].startswith("no effect: wandb.enabled: scalars do not go")
    more = read_training_flags([f"--resume={run}", "--set=steps_per_print=5"])
    with pytest.raises(UserError, match=r"^steps_per_print: "):
        as_begun(request_of(more), run)


def test_a_resume_says_that_motion_is_read_as_it_was(run):
    profile = load_profile(run / "profile.json").with_values({"rvqvae.data.reading_version": 1})
    write_profile(run, profile)
    notes = find_resume(run, profile, 1, {"motion": "motion"}).notes
    assert any("rvqvae.data.reading_version 1" in note and "a new run" in note for note in notes)
