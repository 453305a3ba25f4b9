"""The `rvqvae.data` object of a profile: where motion comes from, what of it is used, and how it is cut."""

import difflib
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from ds_rvqvae.config.deepspeed import Count, Section, Share
from ds_rvqvae.config.facts import DataFacts
from ds_rvqvae.config.names import BODY_PARTS, FORMATS

if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[tuple(FORMATS)]

_STORE = DataFacts(resume="free", store="setting", reading=False)
"""Keys of how files are made into a store."""
_READING = DataFacts(resume="fixed", store="setting", reading=True)
"""Those of them that say what the numbers in a file mean."""
_INPUTS = DataFacts(resume="fixed", store="no", reading=False)
"""Keys that make other inputs of the same store."""
_FREE = DataFacts(resume="free", store="no", reading=False)
"""Keys of what training draws from a store. `body_parts` is among them because what it makes of the columns of a run is
compared by themselves."""


def to_say(key: str, value: object) -> str:
    """How a key of `rvqvae.data` that `prepare` has a flag for is given, for messages."""
    return f"--{key} {value} (rvqvae.data.{key})"


def is_part_name(name: object) -> bool:
    """Whether a body part can be called so: its name is that of a folder beside `tokenizer`, and a part of keys."""
    if not isinstance(name, str) or len(name) > 64 or name == "tokenizer":
        return False
    return name.replace("_", "").replace("-", "").isalnum()


class RulesConfig(Section):
    """What is not motion. A clip is cut around it; the report names file, frames and rule."""

    reference_pose: Annotated[bool, _STORE] = True
    """Cut a reference pose (T-pose) before the motion: frames in which most of the joints that move stand unturned."""
    dropouts: Annotated[bool, _STORE] = True
    """Cut frames in which every value is zero."""
    max_joint_step: Annotated[Annotated[float, Field(gt=0)] | None, _STORE] = 30.0
    """Degrees that joints turn from one frame to the next, mean over joints: more is a jump. null: no such rule."""
    max_root_step: Annotated[Annotated[float, Field(gt=0)] | None, _STORE] = 0.5
    """Metres that the root moves from one frame to the next: more is a jump. null: no such rule."""
    min_frames: Annotated[int, Field(ge=16), _STORE] = 16
    """Frames that a piece of a clip needs, at `rvqvae.data.fps`."""


class AugmentConfig(Section):
    """Random changes of training windows, drawn anew by seed for every sample; scoring never sees them."""

    mirror: Annotated[Share, _FREE] = 0.0
    """How often a window is mirrored: left and right change places, joints by name (Guo et al. 2022, HumanML3D)."""
    time_scale: Annotated[float, Field(ge=0, le=0.5), _FREE] = 0.0
    """Windows are played at a speed drawn from 1 - this to 1 + this (Um et al. 2017, time-warping)."""
    noise: Annotated[float, Field(ge=0), _FREE] = 0.0
    """Standard deviation of noise on the normalised windows (Um et al. 2017, jittering)."""
    offset: Annotated[float, Field(ge=0), _FREE] = 0.0
    """Standard deviation of what is added to a window's normalised columns, the same to all its frames: another
    posture. Of our own making."""
    mix: Annotated[Share, _FREE] = 0.0
    """How often a window takes some neighbouring joints from others, as CutMix does with images (Yun et al. 2019)."""
    mix_windows: Annotated[int, Field(ge=2), _FREE] = 2
    """Windows that a mixed one is made of, itself included; no more than there are joints."""
    scale: Annotated[float, Field(ge=0), _FREE] = 0.0
    """Spread of what a window's normalised columns are multiplied by, one number a joint (or matrix of features), whose
    logarithm has this standard deviation: wider and narrower movements (Um et al. 2017, on wearables' signals)."""

    @property
    def is_on(self) -> bool:
        """Whether any of them does something."""
        return bool(self.mirror or self.time_scale or self.noise or self.offset or self.mix or self.scale)


class DataConfig(Section):
    """Where motion comes from and how it is cut."""

    path: Annotated[str | None, DataFacts(resume="free", store="source", reading=False)] = None
    """Motion files, a packed npz, or a prepared store. A folder of motion files, or one such file."""
    format: Annotated[FormatName | None, _STORE] = None
    """How files are read. null: by what is in the folder."""
    body_part: Annotated[str, Field(min_length=1), _INPUTS] = "upper"
    """Which columns are used: a part of SMPL-X and SMPL-H data, or one of `body_parts`. Other data give all their
    columns."""
    body_parts: Annotated[dict[str, Annotated[list[str | int], Field(min_length=1)]] | None, _FREE] = None
    """Body parts of your own, by joints' names. A name, and its joints by name (`Left*` stands for several) or
    number."""
    speakers: Annotated[list[int] | None, _STORE] = None
    """Only BEAT2 clips of these speakers. Their numbers lead the clips' names."""
    window_size: Annotated[Count, _FREE] = 128
    """Frames per training window. (T2M-GPT and MoMask: 64.)"""
    window_stride: Annotated[Count, _FREE] = 64
    """Frames from one window's start to the next."""
    window_sizes: Annotated[Annotated[list[Count], Field(min_length=1)] | None, _FREE] = None
    """Several lengths of training windows. Each step takes one of them, with as many windows as keep the frames a
    batch those of `window_size`."""
    balance: Annotated[Literal["speaker", "set"] | None, _FREE] = None
    """Draw windows evenly from speakers or sets. A set is the first folder of a clip's name."""
    weights: Annotated[dict[str, Annotated[float, Field(ge=0)]] | None, _FREE] = None
    """With balance: weight per speaker or set. Relative to 1 for those not named."""
    split: Annotated[Literal["auto", "time", "hash"], _STORE] = "auto"
    """How train, val and test are split. auto: the data's own split, else by a hash of the clip's name, else (a single
    clip) by time; time: the last part of every clip is held out."""
    fps: Annotated[float, Field(gt=0, le=1000), DataFacts(resume="fixed", store="setting", reading=False)] = 30.0
    """Frames per second that training sees. Motion at another rate is resampled."""
    source_fps: Annotated[Annotated[float, Field(gt=0, le=1e5)] | None, _READING] = None
    """Frames per second of the files themselves. Whatever they say; null: what they say, or what is known of their
    format."""
    metres_per_unit: Annotated[Annotated[float, Field(gt=0)] | None, _READING] = None
    """Length of a BVH file's unit, in metres. null: what the file says, else recognised by how tall its skeleton is."""
    up_axis: Annotated[Literal["y", "z"] | None, _READING] = None
    """The axis that points up in the files. z (AMASS, some BVH exports) is turned so that y does; null: y, and
    refused where the figures lie then."""
    split_version: Annotated[Annotated[str, Field(min_length=1)] | None, _STORE] = None
    """Folder of split lists, where there are several. By its name (`split/version1`, …)."""
    reading_version: Annotated[Literal[1, 2], _READING] = 2
    """Rules by which files are read. 1: those of ds_rvqvae up to 0.2, for stores, runs and tokenizers of then."""
    store_dtype: Annotated[Literal["float32", "float16", "bfloat16"], _STORE] = "float32"
    """Numbers in the store on disk."""
    rules: Annotated[RulesConfig, _STORE] = RulesConfig()
    """What is left out as no motion. A clip is cut around it; the report names file, frames and rule."""
    mean_file: Annotated[str | None, _INPUTS] = None
    """A .npy file of means to normalise by. One per column, in place of the training split's."""
    std_file: Annotated[str | None, _INPUTS] = None
    """A .npy file of standard deviations, likewise."""
    std_floor: Annotated[float, Field(gt=0), _INPUTS] = 0.01
    """Smallest standard deviation to divide by."""
    feat_bias: Annotated[float, Field(gt=0), _INPUTS] = 1.0
    """HumanML3D, KIT: weight of root and feet. Their columns weigh this many times as much (MoMask: 5)."""
    augment: Annotated[AugmentConfig, _FREE] = AugmentConfig()
    """Random changes of training windows. Drawn anew by seed for every sample; scoring never sees them."""
    num_workers: Annotated[int, Field(ge=0, le=256), _FREE] = 2
    """Threads per rank that gather batches. 0 gathers in the training thread."""

    @model_validator(mode="after")
    def _parts_are_known(self) -> "DataConfig":
        known = list(dict.fromkeys((*BODY_PARTS, *(self.body_parts or ()))))
        if self.body_part not in known:
            near = difflib.get_close_matches(self.body_part, known, n=1, cutoff=0.6)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)};"
            raise ValueError(
                f"rvqvae.data.body_part: no body part {self.body_part!r}; {hint} rvqvae.data.body_parts defines others"
            )
        for part in self.body_parts or ():
            if not is_part_name(part):
                raise ValueError(f"rvqvae.data.body_parts: {part!r}: name parts with letters, digits, - and _")
        if self.weights is not None and self.balance is None:
            raise ValueError("rvqvae.data.weights: say what they weigh by rvqvae.data.balance, speaker or set")
        return self
