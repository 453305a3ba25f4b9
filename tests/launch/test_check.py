"""The checks of a run before a rank starts, and their order."""

import pytest

from ds_rvqvae.config.profile import load_profile
from ds_rvqvae.errors import ExitStatus
from ds_rvqvae.launch import check
from ds_rvqvae.launch.main import main
from ds_rvqvae.runs import folder
from ds_rvqvae.runs.folder import write_profile
from tests.launch.launching import CPU, has_driver


def test_a_batch_larger_than_the_data_is_a_warning(launch):
    ran = launch("--dry_run", "--batch_size", "5000")
    assert ran.returncode == 0
    assert "warning: the global batch of 35,000 is larger than" in ran.stderr


def test_an_existing_run_needs_resume(launch):
    (launch.folder / "runs" / "mine").mkdir(parents=True)
    ran = launch("--dry_run", "--name", "mine")
    assert ran.returncode == ExitStatus.BAD_INPUT and "--resume" in ran.stderr
    assert launch("--dry_run", "--name", "mine", "--resume").returncode == 0


def test_the_motion_is_looked_at_once_which_may_last_and_is_said(tmp_path, demo_folder, monkeypatch, capsys):
    looks, look = [], folder.takes_part
    monkeypatch.setattr(folder, "takes_part", lambda config: looks.append(config.path) or look(config))
    monkeypatch.setattr(check, "_UNSAID", 0.0)  # each stage is printed as it begins
    for name, value in {**CPU, "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    for part in ("upper", "hands"):
        of_part = [f'rvqvae.data.path="/old/{part}"', f'rvqvae.data.body_part="{part}"']
        (tmp_path / "runs" / f"baseline-{part}").mkdir(parents=True)
        write_profile(tmp_path / "runs" / f"baseline-{part}", load_profile("baseline", of_part))
    assert main(["--dry_run", f"--data_path={demo_folder}", "--include=localhost:0", "--resume"]) == ExitStatus.DONE
    said = capsys.readouterr().err.splitlines()
    assert looks == [str(demo_folder)]
    assert said.index(f"checking {demo_folder}") < said.index(f"reading {demo_folder}")
    (line,) = [line for line in said if line.startswith("warning: --resume: ")]
    assert line.endswith("anew. There is baseline-upper (/old/upper); --resume runs/baseline-upper goes on with it")


@pytest.mark.skipif(has_driver(), reason="this machine has cards")
def test_cards_on_a_machine_without_a_driver_are_exit_4_but_bad_input_comes_first(launch):
    ran = launch("--dry_run", variables={})
    assert ran.returncode == ExitStatus.NO_DRIVER
    assert "--demo" in ran.stderr
    assert launch("--dry_run", "--width", "0", variables={}).returncode == ExitStatus.BAD_INPUT
    assert launch("--dry_run", "--name", "a/b", variables={}).returncode == ExitStatus.BAD_INPUT
