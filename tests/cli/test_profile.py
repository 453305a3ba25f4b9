"""`ds-rvqvae profile`: settings and sizes that are shown, profiles that are checked and compared."""

import json

from ds_rvqvae import cli
from tests.ranks import ROOT


def test_profile_show_counts_the_parameters(capsys):
    assert cli.main(["profile", "show", "large"]) == 0
    shown = capsys.readouterr().out
    assert "trainable parameters: 230,822,606 (78 columns, body part upper)" in shown
    assert "note: rvqvae.schedule.milestones: 400,000 lies at or past total_iter 300,000: no effect" in shown
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
    assert result["baseline"] == {"valid": True, "warnings": []}
    wandb = tmp_path / "wandb.json"
    wandb.write_text((ROOT / "ds_configs" / "demo.json").read_text().replace("{", '{"wandb": {"enabled": true},', 1))
    assert cli.main(["profile", "validate", str(wandb)]) == 2
    assert f"{wandb}: wandb.enabled: scalars do not go to Weights & Biases yet" in capsys.readouterr().err
    assert not result[str(wrong)]["valid"] and "widht: unknown key" in result[str(wrong)]["error"]


def test_profile_validate_tells_which_systems_could_load_the_tokenizer(capsys):
    assert cli.main(["profile", "validate", "baseline", "best", "--for", "gesturelsm"]) == 2
    printed = capsys.readouterr()
    assert "baseline: valid" in printed.out and "best" not in printed.out
    assert printed.err.startswith("error: best: --for gesturelsm: rvqvae.model.activation silu: GestureLSM has ReLU")


def test_profile_diff_of_baseline_and_large(capsys):
    assert cli.main(["profile", "diff", "baseline", "large", "--json"]) == 0
    difference = json.loads(capsys.readouterr().out)
    assert difference["rvqvae.model.width"] == [512, 1536]
    assert difference["train_micro_batch_size_per_gpu"] == [80, 160]
    assert "rvqvae.model.code_dim" not in difference
