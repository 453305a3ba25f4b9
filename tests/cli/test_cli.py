"""`ds-rvqvae`: answers at once, refuses in one line, and its verbs do what they say."""

import json
import subprocess
import sys

import numpy as np
import pytest

from ds_rvqvae import cli
from ds_rvqvae.data import open_store
from tests.ranks import ROOT


def _run(*arguments):
    command = [sys.executable, "-m", "ds_rvqvae.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_help_answers_without_torch():
    loaded = (
        "import sys; from ds_rvqvae import cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'deepspeed', 'matplotlib', 'safetensors'} & set(sys.modules)))"
    )
    for arguments in (["--help"], ["evaluate", "--help"], ["profile", "show", "large"]):
        result = subprocess.run([sys.executable, "-c", loaded, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert result.stdout.splitlines()[-1] == "[]", result.stdout


def test_profile_show_counts_the_parameters(capsys):
    assert cli.main(["profile", "show", "large"]) == 0
    assert "trainable parameters: 230,822,606 (78 columns, body part upper)" in capsys.readouterr().out
    assert cli.main(["profile", "show", "baseline", "--json", "--set", "rvqvae.model.width=256"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["profile"]["rvqvae"]["model"]["width"] == 256 and shown["parameter_count"] < 17_688_270


def test_profile_validate_names_what_is_wrong(tmp_path, capsys):
    wrong = tmp_path / "wrong.json"
    wrong.write_text((ROOT / "ds_configs" / "demo.json").read_text().replace('"width"', '"widht"'))
    assert cli.main(["profile", "validate", "baseline", str(wrong)]) == 2
    printed = capsys.readouterr()
    assert "baseline: valid" in printed.out
    assert "rvqvae.model.widht: unknown key; did you mean width?" in printed.err
    assert cli.main(["profile", "validate", "baseline", str(wrong), "--json"]) == 2
    result = json.loads(capsys.readouterr().out)
    assert result["baseline"]["valid"] and "milestones" in " ".join(result["baseline"]["warnings"])
    assert not result[str(wrong)]["valid"] and "widht: unknown key" in result[str(wrong)]["error"]


def test_profile_diff_of_baseline_and_large(capsys):
    assert cli.main(["profile", "diff", "baseline", "large", "--json"]) == 0
    difference = json.loads(capsys.readouterr().out)
    assert difference["rvqvae.model.width"] == [512, 1536]
    assert difference["train_micro_batch_size_per_gpu"] == [80, 160]
    assert "rvqvae.model.code_dim" not in difference


def test_prepare_packs_a_store_and_says_what_it_left_out(tmp_path, demo_folder, capsys):
    motion = tmp_path / "motion"
    motion.mkdir()
    for clip in sorted((demo_folder / "smplxflame_30").glob("*.npz"))[:2]:
        (motion / clip.name).write_bytes(clip.read_bytes())
    assert cli.main(["prepare", str(motion), "--out", str(tmp_path / "store")]) == 0
    assert "2 clips of 2 files: 320 frames" in capsys.readouterr().out
    store = open_store(tmp_path / "store")
    assert len(store.clip_names) == 2 and store.clip(store.clip_names[0]).dtype == np.float32
    (motion / "3_broken_0_1_1.npz").write_bytes(b"no zip")
    assert cli.main(["prepare", str(motion), "--out", str(tmp_path / "partly"), "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["clips"] == 2 and result["left_out"][0]["file"].endswith("3_broken_0_1_1.npz")


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ([], "VERB"),
        (["evalute", "x"], "evalute"),
        (["evaluate", "nowhere"], "nowhere: not a run's folder"),
        (["evaluate", "nowhere", "--splt", "val"], "did you mean --split"),
        (["profile", "show", "basline"], "basline: no such profile"),
        (["profile", "show", "baseline", "--set", "rvqvae.model.widht=3"], "did you mean width"),
        (["prepare", "nowhere", "--out", "store"], "nowhere"),
    ],
)
def test_refusals_are_one_line_and_status_2(arguments, pattern):
    result = _run(*arguments)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and pattern in result.stderr, result.stderr
    assert result.stdout == ""
