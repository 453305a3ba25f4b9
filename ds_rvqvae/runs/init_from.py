"""Start a run from a tokenizer with `--init_from`, and check that it fits. Needs torch only for a checkpoint.

Weights and codebooks work only with the normalisation that they were trained with: with another one the encoder would
get shifted and scaled inputs, and the first scores would not be the tokenizer's. So the run also takes mean and std
from the tokenizer. They are kept in the run's folder, since a resume does not read the tokenizer again, and go into its
checkpoints, its fingerprint of the motion and the tokenizer that it exports.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.facts import fixed_keys
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.config.profile import Profile
from ds_rvqvae.config.request import Start
from ds_rvqvae.data.dataset import MotionData
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import read_json, whole_file
from ds_rvqvae.motion.layout import feature_layout
from ds_rvqvae.runs.checkpoints import has_begun, whole_checkpoint
from ds_rvqvae.runs.folder import NORMALISATION, copy_in_checkpoint
from ds_rvqvae.runs.references import Kind, find_reference
from ds_rvqvae.tokenizer.folder import (
    TokenizerConfig,
    assumed_at_import,
    read_body,
    read_config,
    reading_of,
    statistics_from,
)


@dataclass(frozen=True, eq=False)
class Initial(TokenizerConfig):
    """The tokenizer that a run starts from, without its weights."""

    notes: tuple[str, ...] = ()
    """Notes on a name that may stand for another tokenizer than the user wants."""

    def check_columns(self, data: MotionData) -> None:
        """Raises UserError if the run's columns are not the tokenizer's."""
        if len(self.mean) != data.in_features:
            part = f" for body part {data.body_part}" if data.body_part else ""
            raise UserError(
                f"--init_from {self.folder}: takes {len(self.mean)} columns, but {data.config.path} has "
                f"{data.in_features}{part}"
            )
        # If nothing is known about the columns, only their number can be compared.
        if feature_layout(data.in_features) not in (self.layout, data.layout):
            for theirs, ours in zip(self.layout, data.layout, strict=False):
                if theirs != ours:
                    raise UserError(
                        f"--init_from {self.folder}: its column {theirs.start} is {theirs.name}, that of "
                        f"{data.config.path} is {ours.name}; check --body_part"
                    )

    def warnings(self, data: MotionData) -> list[str]:
        """Returns warnings about differences that are allowed but may be unintended."""
        found = list(self.notes)
        if self.fps != data.fps:
            found.append(f"trained at {self.fps:g} fps, this motion is at {data.fps:g} fps")
        if (assumed := assumed_at_import(self.details)) is not None:
            found.append(assumed)
        theirs, ours = self.details["reading"], reading_of(data.store.settings)
        if theirs != ours:
            found.append(f"its motion was read with {json.dumps(theirs)}, this one is with {json.dumps(ours)}")
        return [f"--init_from {self.folder}: {text}" for text in found]


def find_initial(run_folder: Path, profile: Profile, start: Start) -> Initial | None:
    """Returns the tokenizer that a run starts from; None if it starts from random weights or from a checkpoint.

    Raises:
        UserError: the tokenizer cannot be read, or its nets are not the profile's: names the first key that differs.
    """
    training = profile.rvqvae.training
    if training.init_from is None or _goes_on(run_folder, start):
        return None
    initial = read_initial(training.init_from, profile.rvqvae.data.body_part)
    for key in fixed_keys(ModelConfig):
        there, here = (json.dumps(getattr(model, key)) for model in (initial.model, profile.rvqvae.model))
        if there != here:
            raise UserError(
                f"--init_from {initial.folder}: rvqvae.model.{key} is {there} there and {here} in the profile; "
                f"give --set rvqvae.model.{key}={there}"
            )
    return initial


def take_start(run_folder: Path, profile: Profile, data: MotionData, start: Start) -> Initial | None:
    """Returns the result of `find_initial`, and sets the normalisation of `data` to that of the run's first weights.

    Raises:
        UserError: as in `find_initial`; or the tokenizer takes other columns.
    """
    if _goes_on(run_folder, start) and (kept := _kept_normalisation(run_folder)) is not None:
        data.use_normalisation(*kept)
    initial = find_initial(run_folder, profile, start)
    if initial is not None:
        initial.check_columns(data)
        data.use_normalisation(initial.mean, initial.std)
    return initial


def _goes_on(run_folder: Path, start: Start) -> bool:
    return start.resumes and has_begun(run_folder / "checkpoints")


def read_initial(name: str, body_part: str) -> Initial:
    """Reads a tokenizer, without its weights.

    Args:
        name: any name that `find_reference` takes.
        body_part: the part to take from a body's tokenizer.

    Raises:
        UserError: names the folder or file and the problem.
    """
    try:
        # The checkpoint is read completely later, when its weights are loaded.
        reference = find_reference(name, thorough=False)
        if reference.is_checkpoint:
            # Late: reading a checkpoint needs torch, and a launcher needs it for nothing else.
            from ds_rvqvae.runs.tokenizers import config_of_checkpoint

            return Initial(**vars(config_of_checkpoint(reference.folder)), notes=reference.notes)
        folder = reference.folder
        if reference.kind is Kind.BODY:
            if body_part not in (parts := read_body(folder)[0]):
                raise UserError(f"{folder}: this body has no part {body_part}; it has {', '.join(parts)}")
            folder /= body_part
        return Initial(**vars(read_config(folder)), notes=reference.notes)
    except UserError as error:
        raise UserError(f"--init_from {error}") from None


def keep_normalisation(run_folder: Path, initial: Initial | None) -> None:
    """Writes the normalisation that a run started with into its folder, and removes that of an earlier start."""
    if initial is None:
        (run_folder / NORMALISATION).unlink(missing_ok=True)
    else:
        _write_normalisation(run_folder, initial.mean, initial.std)


def mend_normalisation(run_folder: Path, data: MotionData) -> list[str]:
    """Restores a damaged normalisation file of a resumed run; returns notes.

    Args:
        data: as `take_start` left it.
    """
    file = run_folder / NORMALISATION
    places = (file, copy_in_checkpoint(run_folder, NORMALISATION))
    if _statistics_in(file) is not None or not any(place is not None and place.is_file() for place in places):
        return []
    _write_normalisation(run_folder, data.mean, data.std)
    return [f"{file}: missing or damaged; restored from the run's checkpoint"]


def _write_normalisation(run_folder: Path, mean: NDArray[np.float32], std: NDArray[np.float32]) -> None:
    with whole_file(run_folder / NORMALISATION, synced=True) as content:
        content.write(json.dumps({"mean": mean.tolist(), "std": std.tolist()}).encode() + b"\n")


def _kept_normalisation(run_folder: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Returns the normalisation that a run started with, or that of its newest checkpoint if the file is damaged.

    None if the run uses the normalisation of its own motion.
    """
    file, copy = run_folder / NORMALISATION, copy_in_checkpoint(run_folder, NORMALISATION)
    for place in (file, copy):
        if place is not None and (found := _statistics_in(place)) is not None:
            return found
    if not file.is_file():
        return None
    checkpoint, _ = whole_checkpoint(run_folder / "checkpoints", thorough=False)
    if checkpoint is None:
        raise UserError(f"--resume: {file}: is damaged, and no checkpoint is complete; give another --name")
    # Late: versions up to 0.3 kept no copy, and the rest of a checkpoint needs torch.
    from ds_rvqvae.runs.tokenizers import config_of_checkpoint

    config = config_of_checkpoint(checkpoint)
    return config.mean, config.std


def _statistics_in(file: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    try:
        return statistics_from(read_json(file))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
