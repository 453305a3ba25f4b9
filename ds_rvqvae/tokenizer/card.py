"""The model card: what a person who finds a tokenizer's folder wants to know."""

import math
from typing import Any

from ds_rvqvae.tokenizer.tables import score_table

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
| takes | `[frames, {features}]`{body_part} at {fps:g} frames a second, in the data's own units |
| gives | `[frames / {stride}, {levels}]` codes of {nb_code:,}; {code_rate:g} codes a second, {bits:,.0f} bits/s |
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
    """The card, in Markdown, of a tokenizer with this config file."""
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
