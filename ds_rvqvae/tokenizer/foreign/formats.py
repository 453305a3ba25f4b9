"""The names that MoMask, GestureLSM and T2M-GPT give to the tensors of our nets. Without torch.

Sources of the names: MoMask (Guo et al. 2024), GestureLSM (Liu et al. 2025) and T2M-GPT (Zhang et al. 2023). Their nets
are identical, and `model/nets.py` computes the same, with two limits: outside the residual blocks their nets always use
ReLU (`outer_activation`), and their decoders always up-sample by 2, for any `stride_t`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from ds_rvqvae.config.facts import ModelFacts, keys_that
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.config.profile import Profile
from ds_rvqvae.errors import UserError

FIRST_WEIGHT = "encoder.model.0.weight"
"""In the files of all formats exactly one key ends with this."""
UPSAMPLING = 2
"""Up-sampling factor of the decoders of all formats."""
OUTER_ACTIVATION = "relu"
"""Activation of the nets of all formats outside their residual blocks."""
DATASETS = {"t2m": (263, 20.0), "kit": (251, 12.5)}
"""Columns and frame rate of the data sets that MoMask and T2M-GPT know: HumanML3D and KIT-ML."""


BODY_FORMAT = "gesturelsm"
"""The only format that has a body of several parts."""
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
"""The options of its configs that name the checkpoint of each part. Its legs may include the translation, its face the
jaw."""


@dataclass(frozen=True, slots=True)
class ForeignFormat:
    """The properties of one system's files."""

    title: str
    weights_keys: tuple[str, ...]
    """Keys of the file that may hold the state dict; exports use the first."""
    prefix: str
    """Prefix of every key of the state dict."""
    weights_file: str
    """Path of the weights in an exported folder, as its scripts expect it."""
    statistics: str
    """Folder of `mean.npy` and `std.npy` in an exported folder."""
    option_files: tuple[str, ...]
    """Names (patterns) of the files that its scripts write a model's training options to."""
    dataset_key: str | None
    """The option that names one of `DATASETS`."""
    fps_key: str
    """The option for the frame rate; MoMask and T2M-GPT have none, so our exports write `fps`."""
    exported_options: str
    """The option file in exports."""
    one_codebook: bool = False
    """Has a plain quantizer instead of a residual one."""
    can_project: bool = False
    """Some of its versions apply a linear layer `embedding_proj` to the codebooks when they quantize."""

    def codebook_key(self, level: int) -> str:
        """Returns the key of a level's codebook `[nb_code, code_dim]`, without the prefix."""
        return "quantizer.codebook" if self.one_codebook else f"quantizer.layers.{level}.codebook"

    def projection_keys(self, level: int) -> tuple[str, str]:
        """Returns the keys of the weight `[code_dim, code_dim]` and bias `[code_dim]` of a level's `embedding_proj`."""
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
        # `run.log` names a data set too, but never the one that the model was trained on.
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
    "fsq_levels": "{title} needs codebooks, and finite scalar quantization has none; train without it",
    "codebook_distance": "{title} uses the Euclidean distance; train with --codebook_distance euclidean",
    "num_quantizers": "{title} has one quantizer; train with --num_quantizers 1, or export to momask",
    "stride_t": f"{{title}}'s decoder up-samples by {UPSAMPLING} only; train with --stride_t {UPSAMPLING}",
    "activation": "{title} has ReLU outside its residual blocks; train with --outer_activation relu",
    "outer_activation": "{title} has ReLU outside its residual blocks; train with --outer_activation relu",
}
"""Message for each key whose value the format cannot express, in the order of the checks; all other keys share one
message."""


def check_expressible(config: ModelConfig, format: str) -> None:
    """Raises UserError, naming key and value, if that system's code would compute something else with these weights."""
    known = FORMATS[format]
    limited = keys_that(ModelConfig, ModelFacts, lambda facts: facts.formats != "any")
    for key in dict.fromkeys((*_REFUSALS, *limited)):
        if not _is_expressible(key, config, known):
            text = _REFUSALS.get(key, "{title} has no such setting").format(title=known.title)
            raise UserError(f"rvqvae.model.{key} {_said(getattr(config, key))}: {text}")


def check_for(profile: Profile) -> None:
    """Raises UserError if a tokenizer trained by this profile cannot be exported to the system in `--for`."""
    format = profile.rvqvae.training.export_for
    if format is None:
        return
    try:
        check_expressible(profile.rvqvae.model, format)
    except UserError as error:
        raise UserError(f"--for {format}: {error}") from None


def check_body_for(profile: Profile, parts: Sequence[str]) -> None:
    """Raises UserError if a body of these parts cannot be exported to the system in `--for`."""
    if profile.rvqvae.training.export_for == BODY_FORMAT:
        own = profile.rvqvae.data.body_parts or {}
        for part in parts:
            if part in own or part not in PART_KEYS:
                raise UserError(f"--for {BODY_FORMAT}: {no_such_part(part)}")


def no_such_part(part: str) -> str:
    """Returns the message for a part that the other system's body cannot have."""
    return f"part {part}: {FORMATS[BODY_FORMAT].title} has only parts of SMPL-X: {', '.join(PART_KEYS)}"


def _said(value: object) -> str:
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


def _is_expressible(key: str, config: ModelConfig, known: ForeignFormat) -> bool:
    if key == "num_quantizers":
        return config.num_quantizers == 1 or not known.one_codebook
    if key == "stride_t":
        return config.stride_t == UPSAMPLING or not config.down_t
    if key == "activation":
        # Without `outer_activation`, this also is the activation outside the blocks.
        return config.outer_activation is not None or config.activation == OUTER_ACTIVATION
    if key == "outer_activation":
        return config.activation_outside == OUTER_ACTIVATION
    return bool(getattr(config, key) == ModelConfig.model_fields[key].default)


def net_keys(config: ModelConfig) -> dict[str, str]:
    """Returns, for each parameter of `model.RVQVAE`'s encoder and decoder, its key in all three formats."""
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
    """Returns the names of a residual stack's modules; ours and theirs both have the largest dilation first."""
    layers = ("norm1", "conv1", "norm2", "conv2") if config.norm else ("conv1", "conv2")
    blocks = range(config.depth)
    return {f"{ours}.blocks.{block}.{layer}": f"{theirs}.model.{block}.{layer}" for block in blocks for layer in layers}
