"""The settings of a run: a JSON profile, typed, overridden and validated.

A profile is a DeepSpeed config with one more object, `rvqvae`. This module imports neither torch nor DeepSpeed.
"""

import difflib
import json
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from ds_rvqvae.config.batch_sizes import windows_a_step
from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.config.deepspeed import DeepSpeedKeys, Section, why_not_used
from ds_rvqvae.config.model import LossConfig, ModelConfig, check_quantizer
from ds_rvqvae.config.training import ScheduleConfig, TrainingConfig
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import parse_json

PROFILE_FILE = "profile.json"
"""File in the folder of each run."""
REFERENCE_RANKS = 7
"""Ranks that a profile's learning rate is meant for by default: the launcher's default number of GPUs."""


class RvqvaeConfig(Section):
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig = TrainingConfig()


class Profile(DeepSpeedKeys):
    """A run's settings: DeepSpeed's keys and ours."""

    schema_: str | None = Field(None, alias="$schema")
    rvqvae: RvqvaeConfig

    @model_validator(mode="after")
    def _fits_together(self) -> "Profile":
        model, data = self.rvqvae.model, self.rvqvae.data
        sizes = [("window_size", data.window_size), *(("window_sizes", size) for size in data.window_sizes or [])]
        for key, size in sizes:
            if size % model.code_stride == 0:
                continue
            lower = size // model.code_stride * model.code_stride
            fits = [str(size) for size in (lower, lower + model.code_stride) if size]
            raise ValueError(
                f"rvqvae.data.{key}: {size} is not a multiple of the down-sampling "
                f"stride_t**down_t = {model.code_stride}; use {' or '.join(fits)}"
            )
        # The mean over zero differences is NaN.
        shortest, differences = min(size for _, size in sizes), 2 if self.rvqvae.loss.loss_acc else 1
        if shortest <= differences:
            of = "second differences (rvqvae.loss.loss_acc)" if differences == 2 else "differences"
            raise ValueError(f"rvqvae.data.window_size: {shortest} frames have no {of}; use {differences + 1} or more")
        if (data.mean_file is None) != (data.std_file is None):
            raise ValueError("rvqvae.data.mean_file: give mean_file and std_file together, or neither")
        if self.rvqvae.training.init_from is not None and data.mean_file is not None:
            raise ValueError(
                "rvqvae.training.init_from: it brings the tokenizer's normalisation; leave mean_file and std_file out"
            )
        if self.rvqvae.schedule.milestones != sorted(self.rvqvae.schedule.milestones):
            raise ValueError("rvqvae.schedule.milestones: give the steps in ascending order")
        if model.quantize_dropout_min_levels > model.num_quantizers:
            raise ValueError(
                f"rvqvae.model.quantize_dropout_min_levels: {model.quantize_dropout_min_levels} is more than the "
                f"{model.num_quantizers} levels of num_quantizers"
            )
        check_quantizer(model)
        bf16 = self.bf16
        if bf16.bf16_master_weights_and_grads and self.rvqvae.training.ema_decay is not None:
            raise ValueError(
                "rvqvae.training.ema_decay: a moving average stalls in bf16; leave out either this or "
                "bf16.bf16_master_weights_and_grads"
            )
        if bf16.bf16_optimizer_states and not bf16.bf16_master_weights_and_grads:
            raise ValueError("bf16.bf16_optimizer_states: needs bf16.bf16_master_weights_and_grads as well")
        if model.norm == "GN" and model.width % 32:
            raise ValueError(f"rvqvae.model.width: {model.width} is not a multiple of GN's 32 groups")
        return self

    def warnings(self, world_size: int | None = None, windows: Mapping[int, int] | None = None) -> list[str]:
        """Returns warnings about settings that are allowed but have another effect than it seems.

        Args:
            world_size: number of ranks, if known.
            windows: numbers of training windows by length, if known.
        """
        training = self.rvqvae.training
        # A new run refuses these; a resumed run may have them from a version that accepted them.
        found = [f"no effect: {text}" for text in self.without_effect()]
        model = self.rvqvae.model
        if training.init_from is not None and (model.weight_init != "torch" or model.zero_init_residual):
            found.append("rvqvae.model.weight_init, zero_init_residual: weights come from init_from: no effect")
        if training.init_from is not None and model.codebook_init != ModelConfig().codebook_init:
            found.append("rvqvae.model.codebook_init: codebooks come from init_from: no effect")
        if model.grid_key is not None and self.rvqvae.loss.commit != LossConfig().commit:
            found.append(f"rvqvae.loss.commit: with {model.grid_key} there are no codes to commit to: no effect")
        batches = windows_a_step(self.rvqvae.data, self.global_batch(world_size or 1))
        for size, count in (windows or {}).items():
            if batches[size] > count:
                of_length = f" of {size} frames" if self.rvqvae.data.window_sizes else ""
                sizes = f"{batches[size]:,} is larger than the {count:,} training windows{of_length}"
                avoided = "a smaller --batch_size or --window_stride avoids it"
                found.append(f"the global batch of {sizes}: a step spans epochs; {avoided}")
        if training.compile and len(batches) > 1:
            lengths = f"windows have {len(batches)} lengths"
            found.append(
                f"rvqvae.training.compile: {lengths}, and the first steps of each length wait for the compiler"
            )
        return found

    def notes(self) -> list[str]:
        """Returns remarks for commands that show the settings; they are not repeated at each start."""
        training, schedule = self.rvqvae.training, self.rvqvae.schedule
        late = [step for step in schedule.milestones if step >= training.total_iter]
        if not late or schedule.kind != "milestones":
            return []
        steps, total = ", ".join(f"{step:,}" for step in late), f"{training.total_iter:,}"
        lie = "lies" if len(late) == 1 else "lie"
        return [f"rvqvae.schedule.milestones: {steps} {lie} at or past total_iter {total}: no effect"]

    def idle(self, asked: Collection[str]) -> list[str]:
        """Returns a line for each key of `asked`, the paths that the user gave, that has no effect beside the other
        settings."""
        found = [(key, *_IDLE[key]) for key in _IDLE if key in asked]
        return [f"{key}: no effect, as {reason}" for key, reason, is_idle in found if is_idle(self)]

    def check_world_size(self, world_size: int) -> None:
        """Raises UserError if `train_batch_size` does not fit `world_size` ranks."""
        product = self.train_micro_batch_size_per_gpu * self.gradient_accumulation_steps * world_size
        if self.train_batch_size not in (None, product):
            raise UserError(
                f"train_batch_size: {self.train_batch_size} is not micro batch {self.train_micro_batch_size_per_gpu} x "
                f"accumulation {self.gradient_accumulation_steps} x {world_size} ranks = {product}; leave it out"
            )

    @property
    def windows_per_rank(self) -> int:
        """Windows per rank and optimizer step."""
        return self.train_micro_batch_size_per_gpu * self.gradient_accumulation_steps

    def global_batch(self, world_size: int) -> int:
        """Returns the windows per optimizer step over all ranks."""
        return self.windows_per_rank * world_size

    def learning_rate(self, world_size: int) -> float:
        """Returns the learning rate before its schedule: `optimizer.params.lr`, scaled if `scale_lr` is set.

        Linear scaling: Goyal et al. 2017, https://arxiv.org/abs/1706.02677, section 2.1.
        """
        training, rate = self.rvqvae.training, self.optimizer.params.lr
        if training.scale_lr is None:
            return rate
        return rate * self.global_batch(world_size) / (training.reference_batch or self.global_batch(REFERENCE_RANKS))

    def to_dict(self) -> dict[str, Any]:
        """Returns the complete profile as JSON objects, with every key of ours written out."""
        values = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        values["rvqvae"] = self.rvqvae.model_dump(mode="json")
        return values

    def deepspeed_config(self) -> dict[str, Any]:
        """Returns the dict for `deepspeed.initialize(config=…)`."""
        return {key: value for key, value in self.to_dict().items() if key not in ("$schema", "rvqvae")}


def shipped_profiles() -> dict[str, Path]:
    """Returns names and files of the profiles that come with the package."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "ds_configs", package.parent / "ds_configs"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.json")) if path.stem != "profile.schema"}
    return {}


def profile_file(name: str | Path) -> Path:
    """Returns the file of a profile, given by path or shipped name; raises UserError if there is none."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_profiles()
    if str(name) in shipped:
        return shipped[str(name)]
    if path.is_dir():
        raise UserError(f"{name}: a profile is a JSON file, but this is a folder")
    raise UserError(f"{name}: no such profile file, and none of the shipped profiles ({', '.join(shipped)})")


_IDLE: dict[str, tuple[str, Callable[[Profile], bool]]] = {
    "rvqvae.schedule.milestones": ("rvqvae.schedule.kind is cosine", lambda p: p.rvqvae.schedule.kind == "cosine"),
    "rvqvae.schedule.gamma": ("rvqvae.schedule.kind is cosine", lambda p: p.rvqvae.schedule.kind == "cosine"),
    "rvqvae.model.sample_anneal_iter": (
        "rvqvae.model.sample_codebook_temp is 0",
        lambda p: not p.rvqvae.model.sample_codebook_temp,
    ),
    "rvqvae.model.quantize_dropout_min_levels": (
        "rvqvae.model.quantize_dropout_prob is 0",
        lambda p: not p.rvqvae.model.quantize_dropout_prob,
    ),
    "rvqvae.loss.rotation_distance": ("rvqvae.loss.loss_rotation is 0", lambda p: not p.rvqvae.loss.loss_rotation),
    "rvqvae.training.reference_batch": (
        "rvqvae.training.scale_lr is not set",
        lambda p: p.rvqvae.training.scale_lr is None,
    ),
    "rvqvae.training.compile_mode": ("rvqvae.training.compile is off", lambda p: not p.rvqvae.training.compile),
    "activation_checkpointing.cpu_checkpointing": (
        "rvqvae.training.gradient_checkpointing is off",
        lambda p: not p.rvqvae.training.gradient_checkpointing,
    ),
}
"""Keys that have no effect while another key has a certain value: the reason in words, and a test for it. Shipped
profiles write these keys out too."""


def load_profile(path: str | Path, overrides: Iterable[str] = ()) -> Profile:
    """Reads a profile from a file or by its shipped name.

    Args:
        path: a JSON file, or a bare name such as `baseline`.
        overrides: `path.to.key=value` strings; the value is JSON, else it is taken as a plain string.

    Raises:
        UserError: it names the file, the JSON path of the wrong key, and what to do.
    """
    file = profile_file(path)
    try:
        values = parse_json(file.read_bytes(), object_pairs_hook=_without_duplicates)
    except (OSError, UnicodeError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: not JSON: {error.msg} at column {error.colno}") from None
    except _DuplicateKeyError as error:
        raise UserError(f"{file}: the key {error} appears twice in one object") from None
    except ValueError as error:
        raise UserError(f"{file}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: a profile is a JSON object, but this is a {type(values).__name__}")
    if "rvqvae" not in values:
        raise UserError(f"{file}: rvqvae: missing; a profile is a DeepSpeed config with this object added")
    overrides = list(overrides)
    for override in overrides:
        _set(values, override)
    source = str(file) if not overrides else f"{file} with {' '.join(overrides)}"
    return profile_from_dict(values, source)


def profile_from_dict(values: dict[str, Any], source: str = "profile") -> Profile:
    """Validates a profile's JSON objects; `source` names them in errors."""
    return _validated(Profile, (), values, source)


def model_config_from_dict(values: Any, source: str) -> ModelConfig:
    """Validates the `rvqvae.model` object that a tokenizer keeps; raises UserError that names `source`."""
    return _validated(ModelConfig, ("rvqvae", "model"), values, source)


_Section = TypeVar("_Section", bound=BaseModel)


def _validated(section: type[_Section], path: Sequence[str], values: Any, source: str) -> _Section:
    """Validates `values` as the section at `path` of a profile; raises UserError that names `source`."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{source}: {_explain(error, path)}") from None


class _DuplicateKeyError(ValueError):
    pass


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise _DuplicateKeyError(key)
    return dict(pairs)


def _set(values: dict[str, Any], override: str) -> None:
    """Sets one `path.to.key=value` in place."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"--set {override}: write it as path.to.key=value, for example rvqvae.model.width=256")
    try:
        value = parse_json(text)
    except ValueError:
        value = text
    for key in keys[:-1]:
        if values.get(key) is None:
            values[key] = {}
        if not isinstance(values[key], dict):
            raise UserError(f"--set {override}: {key} is not an object")
        values = values[key]
    values[keys[-1]] = value


def _explain(error: ValidationError, path: Sequence[str]) -> str:
    """Returns one line for the first of pydantic's errors about the object at `path`, and how many more there are."""
    complaints = error.errors(include_url=False)
    first = complaints[0]
    location = [*path, *(part for part in first["loc"] if part != "$schema")]
    key = ".".join(str(part) for part in location)
    kind = first["type"]
    if kind == "extra_forbidden":
        instead = why_not_used(key)
        text = f"{key}: unknown key{_nearest(location)}" if instead is None else f"{key}: unknown key here: {instead}"
    elif kind == "missing":
        text = f"{key}: missing"
    elif kind == "value_error":
        text = str(first["ctx"]["error"])
    else:
        text = f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}, not {json.dumps(first['input'], default=str)}"
    return text if len(complaints) == 1 else f"{text} (and {len(complaints) - 1} more)"


def _nearest(location: Sequence[int | str]) -> str:
    section = section_at(location[:-1])
    known = [field.alias or name for name, field in section.model_fields.items()] if section else []
    near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]}?"
    elsewhere = [path for path in _paths(Profile) if path.split(".")[-1] == location[-1]]
    return f"; did you mean {' or '.join(elsewhere)}?" if elsewhere else f"; known here: {', '.join(known)}"


def _paths(section: type[BaseModel], above: str = "") -> Iterator[str]:
    """Yields the JSON paths of all keys below a section, including sections."""
    for name, field in section.model_fields.items():
        yield f"{above}{name}"
        below = _section_of(field.annotation)
        if below is not None:
            yield from _paths(below, f"{above}{name}.")


def section_at(location: Sequence[int | str]) -> type[BaseModel] | None:
    """Returns the class of the object at a JSON path of the profile."""
    section: type[BaseModel] | None = Profile
    for key in location:
        field = section.model_fields.get(str(key)) if section else None
        section = _section_of(field.annotation) if field else None
    return section


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next(filter(None, map(_section_of, typing.get_args(annotation))), None)
    return None


def json_schema() -> dict[str, Any]:
    """Returns the JSON schema of profiles, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Profile.model_json_schema(by_alias=True)}
