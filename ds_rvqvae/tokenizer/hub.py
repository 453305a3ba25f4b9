"""Tokenizers on the Hugging Face hub. The extra `hub` installs its client; folders on disk do not need it."""

import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ds_rvqvae.errors import UserError
from ds_rvqvae.tokenizer.scores.tables import score_table


def download(repo_id: str, revision: str | None, files: Sequence[str]) -> Path:
    """Returns the folder of a repository's files, downloaded from the hub or in the client's cache.

    Raises:
        UserError: no client, no such repository, or no connection to the hub.
    """
    client = _client(repo_id)
    try:
        return Path(client.snapshot_download(repo_id, revision=revision, allow_patterns=list(files)))
    except (OSError, ValueError, client.errors.HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{repo_id}: no such folder, and cannot be downloaded from the hub: {reason}") from None


def upload(folder: Path, repo_id: str, *, private: bool | None, token: str | None) -> str:
    """Uploads a folder to a repository, which is created if needed, and returns the commit's address.

    Raises:
        UserError: no client, or the hub refuses.
    """
    client = _client(repo_id)
    try:
        api = client.HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder).commit_url)
    except (OSError, ValueError, client.errors.HfHubHTTPError) as error:
        raise UserError(f"{repo_id}: cannot be uploaded: {str(error).strip().splitlines()[0]}") from None


def _client(repo_id: str) -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise UserError(
            f"{repo_id}: no such folder; for a repository on the hub install the extra: pip install 'ds_rvqvae[hub]'"
        ) from None
    return huggingface_hub


_CARD = """---
library_name: ds_rvqvae
tags:
- motion
- tokenizer
- rvq-vae
---

# Motion tokenizer{title}

A residual vector-quantized VAE that turns human motion into codes and back.

| | |
|---|---|
| takes | `[frames, {features}]`{body_part} at {fps:g} frames per second, in the data's own units |
| gives | `[frames / {stride}, {levels}]` codes of {nb_code:,}; {code_rate:g} codes per second, {bits:,.0f} bits/s |
| nets | width {width}, depth {depth}, {down_t} down-sampling layers of stride {stride_t}, code_dim {code_dim} |
| training step | {training_step} |
| fingerprint | `{fingerprint}` |

```python
from ds_rvqvae import MotionTokenizer

tokenizer = MotionTokenizer.from_pretrained("this folder")
codes = tokenizer.encode(motion)
motion = tokenizer.decode(codes)
```

`config.json` says what the columns are and how they are normalised.
{scores}"""


def model_card(config: dict[str, Any]) -> str:
    """Returns the model card, in Markdown, of a tokenizer with this config file."""
    model = config["model"]
    stride = model["stride_t"] ** model["down_t"]
    bits = config["code_rate"] * model["num_quantizers"] * math.log2(model["nb_code"])
    part, scores, step = config.get("body_part"), config.get("scores"), config.get("training_step")
    return _CARD.format(
        **{key: model[key] for key in ("width", "depth", "down_t", "stride_t", "code_dim", "nb_code")},
        title=f", body part {part}" if part else "",
        body_part=f" of body part `{part}`" if part else "",
        features=config["in_features"],
        fps=config["fps"],
        stride=stride,
        levels=model["num_quantizers"],
        code_rate=config["code_rate"],
        bits=bits,
        training_step="unknown" if step is None else f"{step:,}",
        fingerprint=config["fingerprint"],
        scores=f"\nScores on held-out motion:\n\n```\n{score_table(scores)}\n```\n" if scores else "",
    )
