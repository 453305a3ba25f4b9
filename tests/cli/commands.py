"""The verbs `encode` and `decode` as tests call them, and small tokenizers for them."""

import json

import torch

from ds_rvqvae import RVQVAE, MotionTokenizer, cli
from ds_rvqvae.config.model import ModelConfig

CONFIG = ModelConfig(width=16, depth=1, code_dim=4, nb_code=32, num_quantizers=3)


def make_tokenizer(layout, body_part=None, seed=0, config=CONFIG):
    torch.manual_seed(seed)
    width = layout[-1].stop
    model = RVQVAE(width, config)
    model.quantizer.codebooks.normal_()
    return MotionTokenizer(model, torch.zeros(width), torch.ones(width), layout, 30.0, {"body_part": body_part})


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def run(capsys, *arguments):
    """Exit status, the JSON result, and the lines on stderr."""
    status = cli.main([*map(str, arguments), "--json"])
    printed = capsys.readouterr()
    return status, json.loads(printed.out) if printed.out else None, printed.err.splitlines()


def counts(capsys, *arguments):
    """Exit status, and how many files are done, skipped and failed."""
    status, result, _ = run(capsys, *arguments)
    return status, len(result["done"]), len(result["skipped"]), len(result["failed"])
