"""Export a body's tokenizer: GestureLSM's checkpoints of all parts, with the one config that names them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from ds_rvqvae import __version__
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.layout import EXPRESSIONS, TRANSLATION, select_columns, smplx_layout, take_channels
from ds_rvqvae.tokenizer.body import BodyTokenizer
from ds_rvqvae.tokenizer.foreign.formats import (
    BODY_FORMAT,
    FORMATS,
    PART_KEYS,
    check_expressible,
    no_such_part,
)
from ds_rvqvae.tokenizer.foreign.writing import came_projected, foreign_state_dict, model_options, write_new_folder
from ds_rvqvae.tokenizer.tokenizer import MotionTokenizer

CONFIG = "configs/body.yaml"
_STATISTICS = {"pose": "beatx_2_330", "trans": "beatx_2_trans", "exps": "beatx_2_exps"}
"""Prefixes of the files of mean and std: for the joints, the translation and the expressions."""
_TRAINING_ONLY = ("mu", "quantize_dropout_prob")
"""Options in which parts may differ: only training uses them."""
_README = """# {title}'s tokenizers of {parts}

Written by `ds-rvqvae export --format {format}` (ds_rvqvae {version}): {fps:g} frames per second, {stride} frames
per code.

| part | columns | levels x codes | checkpoint | named by |
|---|---|---|---|---|
{rows}

## With {title}'s code

Copy the folders into the root of its repository, and the keys of `{config}` into the config that you train or sample
with:

```bash
GESTURELSM=../GestureLSM  # its repository
cp -r ckpt mean_std configs "$GESTURELSM"/
```

Each checkpoint loads with `strict=True`{projection}. `mean_std/` has one number per column: SMPL-X's 55 joints as 6D
rotations (330), the translation (3: x velocity, height, z velocity) and the expressions (100). Columns that no part
has are 0 in the mean and 1 in the std. The keys `mean_exps_path` and `std_exps_path` are not {title}'s own; normalise
the expressions by these files before the checkpoint of a face encodes them.

```bash
python -c "
import torch, yaml
config = yaml.safe_load(open('{config}'))
weights = torch.load(config['{key}'], weights_only=True)['net']
print(len(weights), tuple(weights['encoder.model.0.weight'].shape))
"
```

## Back into ds_rvqvae

```bash
{imports}
```
"""


def save_foreign_body(body: BodyTokenizer, folder: str | Path, *, embedding_proj: bool | None = None) -> list[Path]:
    """Writes a folder for the root of GestureLSM's repository: `ckpt/`, `mean_std/`, `configs/body.yaml`, `README.md`.

    Args:
        folder: a new or empty one; it is written completely or not at all.
        embedding_proj: as in `save_foreign`; by default False only if every part was imported without that layer.

    Returns:
        The files written.

    Raises:
        UserError: GestureLSM's code cannot express a part, has no such part, or cannot combine these parts; or the
            folder is in use or cannot be written.
    """
    _check(body)
    if embedding_proj is None:
        embedding_proj = any(came_projected(part, BODY_FORMAT) for part in body.parts.values())
    files = {name: _file_of(name, part) for name, part in body.parts.items()}
    contents: dict[Path, Any] = {
        Path(files[name]): {"net": foreign_state_dict(part, BODY_FORMAT, embedding_proj=embedding_proj)}
        for name, part in body.parts.items()
    }
    config = _options(body) | {key: f"./{files[part]}" for part in body.parts for key in PART_KEYS[part]}
    for statistic in ("mean", "std"):
        for key, values in _statistics(body, statistic).items():
            file = f"mean_std/{_STATISTICS[key]}_{statistic}.npy"
            contents[Path(file)] = values
            config[f"{statistic}_{key}_path"] = f"./{file}"
    contents[Path(CONFIG)] = str(yaml.safe_dump(config))
    contents[Path("README.md")] = _readme(body, files, embedding_proj)
    return write_new_folder(Path(folder), contents)


def _check(body: BodyTokenizer) -> None:
    first = next(iter(body.parts))
    for part, tokenizer in body.parts.items():
        if part not in PART_KEYS or tokenizer.layout != select_columns(smplx_layout(), part)[1]:
            raise UserError(no_such_part(part))
        try:
            check_expressible(tokenizer.model.config, BODY_FORMAT)
        except UserError as error:
            raise UserError(f"part {part}: {error}") from None
        theirs, own = (model_options(body.parts[name], BODY_FORMAT) for name in (first, part))
        for key in own:
            if key not in _TRAINING_ONLY and own[key] != theirs[key]:
                title = FORMATS[BODY_FORMAT].title
                raise UserError(
                    f"parts {first} and {part}: {key} is {theirs[key]} and {own[key]}, but {title} builds the nets of "
                    "all parts from one set of options; export the parts one by one"
                )


def _file_of(name: str, part: MotionTokenizer) -> str:
    step = part.details.get("training_step")
    return f"ckpt/net_{name}.pth" if step is None else f"ckpt/net_{step}_{name}.pth"


def _options(body: BodyTokenizer) -> dict[str, Any]:
    """Returns the options that are the same for all parts."""
    options = [model_options(part, BODY_FORMAT) for part in body.parts.values()]
    return {key: value for key, value in options[0].items() if all(other[key] == value for other in options)}


def _statistics(body: BodyTokenizer, name: str) -> dict[str, NDArray[np.float32]]:
    """Returns the mean or std of the joints `[330]`, of the translation `[3]` and, if a part has them, expressions."""
    layout = smplx_layout()
    values = np.full(layout[-1].stop, 0 if name == "mean" else 1, np.float32)
    for tokenizer in body.parts.values():
        columns, _ = take_channels(layout, [channels.name for channels in tokenizer.layout])
        values[columns] = getattr(tokenizer, name).cpu().numpy()
    starts = {channels.name: channels.start for channels in layout}
    joints, rest = starts[TRANSLATION], starts[EXPRESSIONS]
    found = {"pose": values[:joints], "trans": values[joints:rest]}
    has_face = any(own.name == EXPRESSIONS for tokenizer in body.parts.values() for own in tokenizer.layout)
    return found | ({"exps": values[rest:]} if has_face else {})


def _readme(body: BodyTokenizer, files: Mapping[str, str], projected: bool) -> str:
    rows, title = [], FORMATS[BODY_FORMAT].title
    for name, part in body.parts.items():
        config = part.model.config
        keys = ", ".join(f"`{key}`" for key in PART_KEYS[name])
        size = f"{config.num_quantizers} x {config.nb_code}"
        rows.append(f"| {name} | {part.model.in_features} | {size} | `{files[name]}` | {keys} |")
    imports = [
        f"ds-rvqvae import {file} --format {BODY_FORMAT} --out tokenizers/{name}" for name, file in files.items()
    ]
    return _README.format(
        title=title,
        format=BODY_FORMAT,
        version=__version__,
        parts=", ".join(body.parts),
        fps=body.fps,
        stride=next(iter(body.parts.values())).code_stride,
        rows="\n".join(rows),
        config=CONFIG,
        key=PART_KEYS[next(iter(body.parts))][0],
        imports="\n".join(imports),
        projection="" if projected else ", into code without `embedding_proj`",
    )
