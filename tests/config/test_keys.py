"""Every key of a profile in words: what may be given, the defaults, and whether it may change on a resume."""

import pytest

from ds_rvqvae import cli
from ds_rvqvae.config import keys
from ds_rvqvae.config.flags import PROFILE_FLAGS
from tests import freeze


@pytest.fixture(scope="module")
def found():
    return {key.path: key for key in keys.all_keys()}


def test_there_is_a_key_for_every_leaf_of_the_schema(found):
    recorded = {line.partition(":")[0] for line in freeze.read()["profile keys"]} - {"$schema"}
    sections = {path for path in recorded if any(other.startswith(f"{path}.") for other in recorded)}
    assert set(found) == recorded - sections
    flags = {key.flag.removeprefix("--"): key.path for key in found.values() if key.flag}
    assert {flag: path for flag, path in PROFILE_FLAGS.items() if path in found} == flags
    # Objects of several keys have a flag, and no line of their own.
    assert set(PROFILE_FLAGS) - set(flags) == {"rules", "augment"}


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("rvqvae.model.width", "integer above 0"),
        ("rvqvae.model.norm", "LN, GN or null"),
        ("rvqvae.model.dropout", "number from 0 below 1"),
        ("rvqvae.model.fsq_levels", "list of integers from 2 or null"),
        ("rvqvae.data.body_parts", "object of names, each with list of texts or integers or null"),
        ("rvqvae.training.ema_decay", "number above 0 below 1 or null"),
        ("optimizer.params.betas", "list of 2 numbers from 0 below 1"),
        ("zero_optimization.stage", "1 or 2"),
    ],
)
def test_what_a_key_takes_in_words(found, path, words):
    assert found[path].values == words


def test_every_key_has_a_meaning(found):
    assert [path for path, key in found.items() if not key.meaning] == []


def test_defaults_of_baseline_and_best(found):
    assert (found["rvqvae.model.code_dim"].baseline, found["rvqvae.model.code_dim"].best) == ("128", "32")
    # An object that a profile leaves out has the defaults of its keys.
    assert found["csv_monitor.enabled"].baseline == "false"


def test_what_may_change_on_a_resume(found):
    said = {
        path: found[f"rvqvae.{path}"].resume
        for path in ("model.width", "data.fps", "data.rules.dropouts", "loss.commit")
    }
    assert said == {"model.width": "no", "data.fps": "no", "data.rules.dropouts": "motion", "loss.commit": "yes"}
    assert found["optimizer.params.lr"].resume == "yes"


def test_the_command_finds_keys_by_name_flag_and_meaning(capsys):
    assert cli.main(["profile", "keys", "batch_size"]) == 0
    shown = capsys.readouterr().out
    assert "train_micro_batch_size_per_gpu or --batch_size\n    integer above 0; baseline: 80; may change" in shown
    assert cli.main(["profile", "keys", "dropout"]) == 0
    assert "number from 0 below 1; baseline: 0.2, in best 0.0; may change on a resume" in capsys.readouterr().out
    assert cli.main(["profile", "keys", "compile"]) == 0
    assert "true or false (as a flag: on or off)" in capsys.readouterr().out
    assert cli.main(["profile", "keys", "nothing_of_the_kind"]) == 2
    assert "`ds-rvqvae profile keys` lists all" in capsys.readouterr().err


def test_the_command_prints_the_pages_tables(capsys):
    assert cli.main(["profile", "keys", "--markdown"]) == 0
    assert capsys.readouterr().out == keys.markdown()
