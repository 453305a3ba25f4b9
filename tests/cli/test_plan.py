"""`ds-rvqvae plan`: the table, the picture and the JSON, and what is refused in one line."""

import json
import subprocess
import sys

import numpy as np
import pytest

from ds_rvqvae.cli import main
from tests.gpu.plans import KEYS


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.delenv("LOCAL_SIZE", raising=False)
    file = tmp_path / "plan.json"
    arguments = ["plan", "large", "--gpus", "7", "--gpu_memory", "24GiB", "--json", str(file)]
    assert main([*arguments, "--picture", str(tmp_path / "new" / "plan.png")]) == 0
    printed = capsys.readouterr().out
    assert "230,822,606 trainable parameters" in printed and "fits" in printed
    assert max(map(len, printed.replace(str(tmp_path), "").splitlines())) <= 120
    result = json.loads(file.read_text())
    assert {f"{key}_bytes" for key in (*KEYS, "total")} <= result.keys()
    assert result["parameter_count"] == 230_822_606 and result["card_bytes"] == 24 << 30
    from matplotlib.image import imread

    picture = imread(tmp_path / "new" / "plan.png")
    assert len(np.unique(picture[..., :3].reshape(-1, 3), axis=0)) > 9
    assert main([*arguments[:-1], "--set", "rvqvae.data.body_part=hands"]) == 0
    assert json.loads(capsys.readouterr().out)["in_features"] == 180


def test_what_does_not_fit_says_so(capsys):
    assert main(["plan", "large", "--gpu_memory", "2GiB", "--gpus", "1"]) == 0
    printed = capsys.readouterr().out
    assert "DOES NOT FIT" in printed and "not even a micro batch of one window" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu_memory", "24"], "give a size with its unit"),
        (["--gpus", "0"], "--gpus 0: give 1 or more"),
        (["--in_features", "-1"], "--in_features -1: give 1 or more"),
        (["--picture", "plan.pdf"], "give a name that ends in .png"),
        (["--picture", "/dev/null/plan.png"], "cannot be written"),
        (["--set", "rvqvae.model.widht=3"], "did you mean width?"),
        (["--set", "train_batch_size=4"], "train_batch_size: 4 is not"),
    ],
)
def test_refusals_are_one_line(arguments, message, capsys):
    assert main(["plan", "baseline", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_it_answers_without_torch():
    code = "import sys; from ds_rvqvae.cli import main; main(['plan', 'large']); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
