"""How MoMask, GestureLSM and T2M-GPT name the tensors that these nets have too. Without torch.

Sources of the names: MoMask (Guo et al. 2024), GestureLSM (Liu et al. 2025) and T2M-GPT (Zhang et al. 2023). Their nets
are one and the same, and `model/nets.py` computes what they compute, with two limits: outside the residual blocks
theirs have ReLU whatever the blocks have (`outer_activation`), and their decoders up-sample by 2 whatever `stride_t`
is.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from ds_rvqvae.config.facts import ModelFacts, keys_that
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.config.profile import Profile
from ds_rvqvae.errors import UserError

FIRST_WEIGHT = "encoder.model.0.weight"
"""The one key that the files of all formats end a key in."""
UPSAMPLING = 2
"""What the decoders of all formats up-sample by."""
OUTER_ACTIVATION = "relu"
"""What the nets of all formats have outside their residual blocks."""
DATASETS = {"t2m": (263, 20.0), "kit": (251, 12.5)}
"""Columns and frames a second of the data sets that MoMask and T2M-GPT know: HumanML3D and KIT-ML."""


BODY_FORMAT = "gesturelsm"
"""The one format that has a body of several parts."""
PART_KEYS = {
    "upper": ("vqvae_upper_path",),
    "hands": ("vqvae_hands_path",),
    "lower": ("vqvae_lower_path",),
    "lower_trans": ("vqvae_lower_path", "vqvae_lower_trans_path"),
    "whole": ("vqvae_whole_path",),
    "whole_trans": ("vqvae_whole_path", "vqvae_whole_trans_path"),
    "face": ("vqvae_face_path",),
    "face_jaw": ("vqvae_face_path",),
}
"""The options by which its configs name the checkpoint of each part. Its legs may have the translation, its face the
jaw."""


@dataclass(frozen=True, slots=True)
class ForeignFormat:
    """What sets one system's files apart."""

    title: str
    weights_keys: tuple[str, ...]
    """Keys of the file under which its own loader looks for the state dict; the first is the one written."""
    prefix: str
    """What every key of the state dict begins with."""
    weights_file: str
    """Place of the weights in an exported folder, as its scripts expect it."""
    statistics: str
    """Folder of `mean.npy` and `std.npy` in an exported folder."""
    option_files: tuple[str, ...]
    """Names (patterns) of the files in which its scripts keep what a model was trained with."""
    dataset_key: str | None
    """The option that names one of `DATASETS`."""
    fps_key: str
    """The option that says frames a second; MoMask and T2M-GPT have none, and exports of ours have `fps`."""
    exported_options: str
    """The option file that exports have."""
    one_codebook: bool = False
    """Has a plain quantizer in place of a residual one."""
    can_project: bool = False
    """Some of its versions put the codebooks through a linear layer `embedding_proj` when they quantize."""

    def codebook_key(self, level: int) -> str:
        """Key of a level's codebook `[nb_code, code_dim]`, less the prefix."""
        return "quantizer.codebook" if self.one_codebook else f"quantizer.layers.{level}.codebook"

    def projection_keys(self, level: int) -> tuple[str, str]:
        """Keys of the weight `[code_dim, code_dim]` and bias `[code_dim]` of a level's `embedding_proj`."""
        layer = f"quantizer.layers.{level}.embedding_proj"
        return f"{layer}.weight", f"{layer}.bias"


FORMATS = {
    "momask": ForeignFormat(
        "MoMask",
        ("vq_model", "net"),
        "",
        "model/net_best_fid.tar",
        "meta",
        option_files=("opt.txt",),
        dataset_key="dataset_name",
        fps_key="fps",
        exported_options="opt.txt",
    ),
    "gesturelsm": ForeignFormat(
        "GestureLSM",
        ("net",),
        "",
        "net.pth",
        ".",
        # `run.log` names a data set too, but never the one that it is trained on.
        option_files=("run.log", "*.yaml", "*.yml"),
        dataset_key=None,
        fps_key="pose_fps",
        exported_options="net.yaml",
        can_project=True,
    ),
    "t2mgpt": ForeignFormat(
        "T2M-GPT",
        ("net",),
        "vqvae.",
        "net_last.pth",
        "meta",
        option_files=("run.log",),
        dataset_key="dataname",
        fps_key="fps",
        exported_options="run.log",
        one_codebook=True,
    ),
}

_REFUSALS = {
    "fsq_levels": "{title} has codebooks, and finite scalar quantization has none; train without",
    "codebook_distance": "{title} goes by distance; train with --codebook_distance euclidean",
    "num_quantizers": "{title} has one quantizer; train with --num_quantizers 1, or export to momask",
    "stride_t": f"{{title}}'s decoder up-samples by {UPSAMPLING} only; train with --stride_t {UPSAMPLING}",
    "activation": "{title} has ReLU outside its residual blocks; train with --outer_activation relu",
    "outer_activation": "{title} has ReLU outside its residual blocks; train with --outer_activation relu",
}
"""What is said of keys with a value that cannot be written, in the order in which they are checked; other keys of which
this can be said have a text in common."""


def check_expressible(config: ModelConfig, format: str) -> None:
    """Raises UserError, naming key and value, where that system's code computes something else with these weights."""
    known = FORMATS[format]
    limited = keys_that(ModelConfig, ModelFacts, lambda facts: facts.formats != "any")
    for key in dict.fromkeys((*_REFUSALS, *limited)):
        if not _is_expressible(key, config, known):
            text = _REFUSALS.get(key, "{title} has nothing of the kind").format(title=known.title)
            raise UserError(f"rvqvae.model.{key} {_said(getattr(config, key))}: {text}")


def check_for(profile: Profile) -> None:
    """Raises UserError where a tokenizer trained by a profile cannot be exported to the system that it is for."""
    format = profile.rvqvae.training.export_for
    if format is None:
        return
    try:
        check_expressible(profile.rvqvae.model, format)
    except UserError as error:
        raise UserError(f"--for {format}: {error}") from None


def check_body_for(profile: Profile, parts: Sequence[str]) -> None:
    """Raises UserError where a body of these parts cannot be exported to the system that its profile is for."""
    if profile.rvqvae.training.export_for == BODY_FORMAT:
        own = profile.rvqvae.data.body_parts or {}
        for part in parts:
            if part in own or part not in PART_KEYS:
                raise UserError(f"--for {BODY_FORMAT}: {no_such_part(part)}")


def no_such_part(part: str) -> str:
    """What is said of a part that a body of the other system cannot have."""
    return f"part {part}: {FORMATS[BODY_FORMAT].title}'s parts are those of SMPL-X: {', '.join(PART_KEYS)}"


def _said(value: object) -> str:
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


def _is_expressible(key: str, config: ModelConfig, known: ForeignFormat) -> bool:
    if key == "num_quantizers":
        return config.num_quantizers == 1 or not known.one_codebook
    if key == "stride_t":
        return config.stride_t == UPSAMPLING or not config.down_t
    if key == "activation":
        # Where it says what is outside the blocks too.
        return config.outer_activation is not None or config.activation == OUTER_ACTIVATION
    if key == "outer_activation":
        return config.activation_outside == OUTER_ACTIVATION
    return bool(getattr(config, key) == ModelConfig.model_fields[key].default)


def net_keys(config: ModelConfig) -> dict[str, str]:
    """Key of each parameter of `model.RVQVAE`'s encoder and decoder, and what it is called in all three formats."""
    modules = {"encoder.0": "encoder.model.0", "decoder.0": "decoder.model.0"}
    for stage in range(config.down_t):
        theirs = f"model.{2 + stage}"
        modules[f"encoder.{2 + 2 * stage}"] = f"encoder.{theirs}.0"
        modules |= _block_keys(f"encoder.{3 + 2 * stage}", f"encoder.{theirs}.1", config)
        modules |= _block_keys(f"decoder.{2 + 3 * stage}", f"decoder.{theirs}.0", config)
        modules[f"decoder.{4 + 3 * stage}"] = f"decoder.{theirs}.2"
    modules[f"encoder.{2 + 2 * config.down_t}"] = f"encoder.model.{2 + config.down_t}"
    modules[f"decoder.{2 + 3 * config.down_t}"] = f"decoder.model.{2 + config.down_t}"
    modules[f"decoder.{4 + 3 * config.down_t}"] = f"decoder.model.{4 + config.down_t}"
    return {f"{ours}.{name}": f"{theirs}.{name}" for ours, theirs in modules.items() for name in ("weight", "bias")}


def _block_keys(ours: str, theirs: str, config: ModelConfig) -> dict[str, str]:
    """Modules of a residual stack; both sides have the largest dilation first."""
    layers = ("norm1", "conv1", "norm2", "conv2") if config.norm else ("conv1", "conv2")
    blocks = range(config.depth)
    return {f"{ours}.blocks.{block}.{layer}": f"{theirs}.model.{block}.{layer}" for block in blocks for layer in layers}
