"""The `rvqvae.data` object of a profile: the source of motion, the part of it that is used, and how it is cut."""

import difflib
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from ds_rvqvae.config.deepspeed import Count, Section, Share
from ds_rvqvae.config.facts import DataFacts
from ds_rvqvae.config.names import BODY_PARTS, FORMATS

if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[tuple(FORMATS)]

_STORE = DataFacts(resume="free", store="setting", reading=False)
"""Keys that say how a store is made from files."""
_READING = DataFacts(resume="fixed", store="setting", reading=True)
"""Keys of a store that say what the numbers in a file mean."""
_STORE_LATER = DataFacts(resume="free", store="setting if set", reading=False)
_READING_LATER = DataFacts(resume="fixed", store="setting if set", reading=True)
"""The same for keys that stores of versions up to 0.7 do not have; these stores match as long as the keys are null."""
_INPUTS = DataFacts(resume="fixed", store="no", reading=False)
"""Keys that change the model's input from the same store."""
_FREE = DataFacts(resume="free", store="no", reading=False)
"""Keys that say what training draws from a store. `body_parts` is one of them, because the columns that result from it
are compared directly."""

DESCRIBED = ("skeleton", "robot", "joint_names", "skeleton_of")
"""Keys of `rvqvae.data` that name a file or hold its content."""


def to_say(key: str, value: object) -> str:
    """Returns how to give a key of `rvqvae.data` that is a flag of `prepare`, for messages."""
    return f"--{key} {value} (rvqvae.data.{key})"


def is_part_name(name: object) -> bool:
    """Returns whether this is a valid name of a body part: it becomes the name of a folder beside `tokenizer`, and part
    of JSON keys."""
    if not isinstance(name, str) or len(name) > 64 or name == "tokenizer":
        return False
    return name.replace("_", "").replace("-", "").isalnum()


class RulesConfig(Section):
    """Rules that find frames which are not motion. A clip is cut around them; the report names file, frames and
    rule."""

    reference_pose: Annotated[bool, _STORE] = True
    """Cut a reference pose (T-pose) before the motion: frames in which most of the moving joints have no rotation."""
    dropouts: Annotated[bool, _STORE] = True
    """Cut frames in which every value is zero."""
    max_joint_step: Annotated[Annotated[float, Field(gt=0)] | None, _STORE] = 30.0
    """Largest rotation of joints from one frame to the next, in degrees, mean over joints; more is a jump. null: no
    such rule."""
    max_root_step: Annotated[Annotated[float, Field(gt=0)] | None, _STORE] = 0.5
    """Largest movement of the root from one frame to the next, in metres; more is a jump. null: no such rule."""
    min_frames: Annotated[int, Field(ge=16), _STORE] = 16
    """Fewest frames of a piece of a clip, at `rvqvae.data.fps`."""


class AugmentConfig(Section):
    """Random changes of training windows. They are drawn from the seed for every sample; evaluation never uses them."""

    mirror: Annotated[Share, _FREE] = 0.0
    """Probability that a window is mirrored. Left and right joints, found by name, are swapped (Guo et al. 2022,
    HumanML3D)."""
    time_scale: Annotated[float, Field(ge=0, le=0.5), _FREE] = 0.0
    """Largest change of speed. A window's speed is drawn from 1 - this to 1 + this (Um et al. 2017, time-warping)."""
    noise: Annotated[float, Field(ge=0), _FREE] = 0.0
    """Standard deviation of noise on the normalised windows (Um et al. 2017, jittering)."""
    offset: Annotated[float, Field(ge=0), _FREE] = 0.0
    """Standard deviation of a constant offset of a window's normalised columns. It is the same for all frames of the
    window, so that the posture changes. Our own method."""
    mix: Annotated[Share, _FREE] = 0.0
    """Probability that a window takes some neighbouring joints from other windows, as CutMix does with images (Yun et
    al. 2019)."""
    mix_windows: Annotated[int, Field(ge=2), _FREE] = 2
    """Windows that a mixed window is made of, itself included; at most the number of joints."""
    scale: Annotated[float, Field(ge=0), _FREE] = 0.0
    """Standard deviation of the logarithm of a scale factor for a window's normalised columns. There is one factor per
    joint (or feature group), which makes movements wider or narrower (Um et al. 2017, for wearable sensors)."""

    @property
    def is_on(self) -> bool:
        """Whether any augmentation is on."""
        return bool(self.mirror or self.time_scale or self.noise or self.offset or self.mix or self.scale)


class DataConfig(Section):
    """The source of motion, and how it is cut."""

    path: Annotated[str | None, DataFacts(resume="free", store="source", reading=False)] = None
    """Motion files, a packed npz, or a prepared store. Either a folder of motion files or a single file."""
    format: Annotated[FormatName | None, _STORE] = None
    """Format of the motion files. null: recognised from the folder's content."""
    body_part: Annotated[str, Field(min_length=1), _INPUTS] = "upper"
    """Body part whose columns are used. It is a part of SMPL-X or SMPL-H data, or one of `body_parts`; with other data
    all columns are used."""
    body_parts: Annotated[dict[str, Annotated[list[str | int], Field(min_length=1)]] | None, _FREE] = None
    """Body parts of your own, by joints' names. Each has a name and its joints, by name (`Left*` matches several) or
    number."""
    speakers: Annotated[list[int] | None, _STORE] = None
    """Only BEAT2 clips of these speakers. The clips' names begin with the speakers' numbers."""
    window_size: Annotated[Count, _FREE] = 128
    """Frames per training window. (T2M-GPT and MoMask: 64.)"""
    window_stride: Annotated[Count, _FREE] = 64
    """Frames from one window's start to the next."""
    window_sizes: Annotated[Annotated[list[Count], Field(min_length=1)] | None, _FREE] = None
    """Several lengths of training windows. Each step uses one of them, with as many windows as keep the frames per
    batch equal to those with `window_size`."""
    balance: Annotated[Literal["speaker", "set"] | None, _FREE] = None
    """Draw windows evenly from speakers or sets. A set is the first folder in a clip's name."""
    weights: Annotated[dict[str, Annotated[float, Field(ge=0)]] | None, _FREE] = None
    """With balance: weight per speaker or set. Those not named have weight 1."""
    split: Annotated[Literal["auto", "time", "hash"], _STORE] = "auto"
    """How train, val and test are split. auto: the split of the data set itself, else by a hash of the clip's name,
    else (if there is a single clip) by time; time: the end of every clip is held out; hash: by a hash of the clip's
    name."""
    fps: Annotated[float, Field(gt=0, le=1000), DataFacts(resume="fixed", store="setting", reading=False)] = 30.0
    """Frames per second for training. Motion at another frame rate is resampled."""
    source_fps: Annotated[Annotated[float, Field(gt=0, le=1e5)] | None, _READING] = None
    """Frames per second of the files themselves. It overrides what the files say; null: what the files say, or the
    usual rate of their format."""
    metres_per_unit: Annotated[Annotated[float, Field(gt=0)] | None, _READING] = None
    """Length of a BVH file's unit, in metres. null: what the file says, else recognised from the height of its
    skeleton."""
    up_axis: Annotated[Literal["y", "z"] | None, _READING] = None
    """The axis that points up in the files. z (AMASS, some BVH exports): motion is rotated so that y points up; null:
    y, and an error if the figures lie down then."""
    skeleton: Annotated[str | dict[str, Any] | None, _READING_LATER] = None
    """JSON or BVH file of a skeleton. It names the joints of positions, and SMPL motion is drawn and measured with its
    bone lengths. The JSON has joint_names, parents and offsets (metres); a profile may have that object itself."""
    robot: Annotated[str | dict[str, Any] | None, _READING_LATER] = None
    """File of a robot: MJCF or URDF. It gives joint names, limits and kinematics of a robot's motion. A profile may
    have the object that a store makes of it."""
    csv_units: Annotated[Literal["metres_radians", "centimetres_degrees"] | None, _READING_LATER] = None
    """Units of a robot's csv files. null: recognised from header and values, or an error if both are possible."""
    joints: Annotated[Literal["common"] | Annotated[list[str], Field(min_length=1)] | None, _READING_LATER] = None
    """Joints of BVH files that are used. common: those that all skeletons in the folder have; or a list of names; null:
    all joints, of one skeleton."""
    joint_names: Annotated[str | dict[str, str] | None, _READING_LATER] = None
    """JSON file of joint names, theirs to ours. Skeletons with different names then have joints in common. A profile
    may have the JSON object itself."""
    skeleton_of: Annotated[str | dict[str, Any] | None, _STORE_LATER] = None
    """BVH file whose skeleton is used. Files with another skeleton are passed over."""
    split_version: Annotated[Annotated[str, Field(min_length=1)] | None, _STORE] = None
    """Folder of split lists, if there are several. It is given by name (`split/version1`, …)."""
    reading_version: Annotated[Literal[1, 2], _READING] = 2
    """Rules by which files are read. 1: the rules of ds_rvqvae up to 0.2, for its stores, runs and tokenizers."""
    store_dtype: Annotated[Literal["float32", "float16", "bfloat16"], _STORE] = "float32"
    """Type of the numbers in the store on disk."""
    rules: Annotated[RulesConfig, _STORE] = RulesConfig()
    """Rules for frames to leave out. They find frames that are not motion; a clip is cut around them, and the report
    names file, frames and rule."""
    mean_file: Annotated[str | None, _INPUTS] = None
    """A .npy file of means to normalise by. One value per column, in place of those of the training split."""
    std_file: Annotated[str | None, _INPUTS] = None
    """A .npy file of standard deviations to divide by. One value per column."""
    std_floor: Annotated[float, Field(gt=0), _INPUTS] = 0.01
    """Smallest standard deviation to divide by."""
    feat_bias: Annotated[float, Field(gt=0), _INPUTS] = 1.0
    """HumanML3D, KIT: weight of root and feet. Their columns weigh this many times as much as others (MoMask: 5)."""
    augment: Annotated[AugmentConfig, _FREE] = AugmentConfig()
    """Random changes of training windows. They are drawn from the seed for every sample; evaluation never uses them."""
    num_workers: Annotated[int, Field(ge=0, le=256), _FREE] = 2
    """Threads per rank that gather batches. 0: the training thread gathers them."""

    @model_validator(mode="after")
    def _parts_are_known(self) -> "DataConfig":
        known = list(dict.fromkeys((*BODY_PARTS, *(self.body_parts or ()))))
        if self.body_part not in known:
            near = difflib.get_close_matches(self.body_part, known, n=1, cutoff=0.6)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)};"
            raise ValueError(
                f"rvqvae.data.body_part: no body part {self.body_part!r}; {hint} define others with "
                "rvqvae.data.body_parts"
            )
        for part in self.body_parts or ():
            if not is_part_name(part):
                raise ValueError(f"rvqvae.data.body_parts: {part!r}: name parts with letters, digits, - and _")
        if self.weights is not None and self.balance is None:
            raise ValueError("rvqvae.data.weights: needs rvqvae.data.balance; set that to speaker or set")
        return self
