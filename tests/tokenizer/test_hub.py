"""Tokenizers on the hub: the real client against a small hub on this machine."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from ds_rvqvae import RVQVAE, MotionTokenizer
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.layout import feature_layout
from tests.ranks import ROOT
from tests.tokenizer.local_hub import COMMIT, local_hub

pytest.importorskip("huggingface_hub")


@pytest.fixture
def hub(tmp_path):
    """Runs code in a process of its own with this machine as the hub; returns its output."""
    files: dict[str, bytes] = {}
    with local_hub(files, tmp_path / "hub") as of_hub:

        def run(code, *arguments, **environment):
            variables = {**of_hub, "OMP_NUM_THREADS": "1", **environment}
            command = [sys.executable, "-c", "import sys\nfrom ds_rvqvae import MotionTokenizer\n" + code, *arguments]
            return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60)

        run.files = files
        yield run


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    config = ModelConfig(width=16, depth=1, code_dim=4, nb_code=8, num_quantizers=2)
    tokenizer = MotionTokenizer(RVQVAE(8, config), torch.zeros(8), torch.ones(8), feature_layout(8), 30.0)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_pushed_and_loaded_again_it_is_the_same(hub, folder):
    pushed = hub(
        "print(MotionTokenizer.from_pretrained(sys.argv[1]).push_to_hub('someone/motion', token='hf_x'))", str(folder)
    )
    assert pushed.returncode == 0, pushed.stderr
    assert pushed.stdout.strip().endswith(f"/commit/{COMMIT}")
    assert sorted(hub.files) == ["README.md", "config.json", "model.safetensors"]
    hub.files["optimizer.pt"] = b"not for us"
    load = (
        "import numpy\n"
        "tokenizer = MotionTokenizer.from_pretrained('someone/motion')\n"
        "print(tokenizer.fingerprint, tokenizer.encode(numpy.ones((9, 8), 'float32')).tolist())"
    )
    loaded = hub(load)
    here = MotionTokenizer.from_pretrained(folder)
    codes = here.encode(np.ones((9, 8), np.float32)).tolist()
    assert loaded.stdout.strip() == f"{here.fingerprint} {codes}", loaded.stderr
    # Once downloaded, it loads without the hub.
    assert hub(load, HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9").stdout == loaded.stdout


def test_a_repository_that_is_not_there_is_refused_in_one_line(hub):
    code = (
        "from ds_rvqvae.errors import UserError\n"
        "try: MotionTokenizer.from_pretrained('nobody/nothing')\n"
        "except UserError as error: print(error)\n"
    )
    result = hub(code)
    assert result.stdout.startswith("nobody/nothing: no such folder, and cannot be downloaded "), result.stderr
    assert len(result.stdout.splitlines()) == 1


def test_without_the_client_folders_load_and_repositories_name_the_extra(hub, folder):
    code = (
        "sys.modules['huggingface_hub'] = None\n"
        "from ds_rvqvae.errors import UserError\n"
        "MotionTokenizer.from_pretrained(sys.argv[1])\n"
        "try: MotionTokenizer.from_pretrained('someone/motion')\n"
        "except UserError as error: print(error)\n"
    )
    result = hub(code, str(folder))
    assert "pip install 'ds_rvqvae[hub]'" in result.stdout, result.stderr


def test_a_misspelt_folder_is_no_repository(tmp_path):
    with pytest.raises(UserError, match="not a tokenizer's folder"):
        MotionTokenizer.from_pretrained(tmp_path / "nothing")
    with pytest.raises(UserError, match="not a tokenizer's folder"):
        MotionTokenizer.from_pretrained("runs/baseline-upper/tokeniser")
