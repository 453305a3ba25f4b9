"""How MoMask, GestureLSM and T2M-GPT name the tensors that these nets have too. Without torch.

Sources of the names: MoMask (Guo et al. 2024), GestureLSM (Liu et al. 2025) and T2M-GPT (Zhang et al. 2023). Their nets
are one and the same, and `model/nets.py` computes what they compute, with two limits: outside the residual blocks
theirs have ReLU whatever the blocks have (`outer_activation`), and their decoders up-sample by 2 whatever `stride_t`
is.
"""

from dataclasses import dataclass

from ds_rvqvae.config.model import ModelConfig

FIRST_WEIGHT = "encoder.model.0.weight"
"""The one key that the files of all formats end a key in."""
UPSAMPLING = 2
"""What the decoders of all formats up-sample by."""
OUTER_ACTIVATION = "relu"
"""What the nets of all formats have outside their residual blocks."""
DATASETS = {"t2m": (263, 20.0), "kit": (251, 12.5)}
"""Columns and frames a second of the data sets that MoMask and T2M-GPT know: HumanML3D and KIT-ML."""


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
