"""What the name of a tokenizer stands for, and where its weights lie. Without torch.

A command takes a tokenizer by any of these names:

| name | stands for |
|---|---|
| `RUN` | the folder of a run: its exported tokenizer where that is of the newest checkpoint, else that checkpoint |
| `RUN/checkpoints/global_step5000`, `…/latest`, `…/best` | that checkpoint of the run |
| a folder with `config.json` and `model.safetensors` | an exported or imported tokenizer |
| a folder with `body.json`, or the folder of a body's runs | the tokenizer of a body, which has several parts |
| `owner/name`, where there is no such folder | a tokenizer on the Hugging Face hub |
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from ds_rvqvae.config.profile import PROFILE_FILE
from ds_rvqvae.config.request import TAG, is_abandoned_tag, is_tag
from ds_rvqvae.config.training import is_repository
from ds_rvqvae.errors import UserError
from ds_rvqvae.runs.checkpoints import (
    ABANDONED,
    BEST,
    LATEST,
    checkpoints,
    is_resuming,
    latest,
    manifest_in,
    mark_in,
    named_by,
    named_checkpoint,
    step_of,
    tag_of,
    whole_checkpoint,
)
from ds_rvqvae.runs.folder import is_run
from ds_rvqvae.tokenizer.folder import BODY, CONFIG, FILES, TOKENIZER, WEIGHTS, hint_of, read_body, read_config
from ds_rvqvae.tokenizer.hub import download

_CHECKPOINTS = "checkpoints"
_SHOWN = 3
"""Names that a refusal proposes at most."""


class Kind(Enum):
    """What a name stands for, in words."""

    RUN = "a run"
    CHECKPOINT = "a checkpoint"
    TOKENIZER = "a tokenizer"
    BODY = "a body's tokenizer"
    REPOSITORY = "a tokenizer of the hub"


@dataclass(frozen=True)
class Reference:
    """A tokenizer that was named, and where it lies."""

    name: str
    """As it was given."""
    kind: Kind
    folder: Path
    """What is to be loaded: a tokenizer's folder, a body's, or a checkpoint's."""
    run: Path | None = None
    """The folder of the run that it comes from, whose profile says how its motion is read, where that is known."""
    notes: tuple[str, ...] = ()
    """What may not be meant: weights that are not the newest of their run."""

    @property
    def is_checkpoint(self) -> bool:
        """Whether the weights are those of a checkpoint, which takes torch and DeepSpeed to read."""
        return self.kind is Kind.CHECKPOINT or (self.kind is Kind.RUN and is_tag(self.folder.name))

    def parts(self) -> "list[Reference]":
        """The parts of a body, each as a tokenizer; of anything else the reference itself."""
        if self.kind is not Kind.BODY:
            return [self]
        folders = [self.folder / part for part in read_body(self.folder)[0]]
        return [Reference(str(folder), Kind.TOKENIZER, folder, _run_of(folder)) for folder in folders]


def find_reference(name: str | Path, checkpoint: str | None = None, *, thorough: bool = True) -> Reference:
    """Finds what a name stands for. A repository of the hub is downloaded; nothing else is changed or loaded.

    Args:
        name: one of the names in the module's table; a `Path` is never that of a repository.
        checkpoint: of a run, `latest`, `best` or `global_stepN`.
        thorough: read every file of a checkpoint to know that it is whole; otherwise names and sizes are compared.

    Raises:
        UserError: it stands for nothing, has no such checkpoint or a damaged one, or is not to be had from the hub.
    """
    folder = Path(name)
    if is_repository(name):
        _refuse_checkpoint(checkpoint, name, Kind.TOKENIZER)
        return Reference(str(name), Kind.REPOSITORY, download(str(name), None, FILES))
    body = folder if (folder / BODY).is_file() else folder / TOKENIZER
    is_tokenizer = (folder / CONFIG).is_file() or (folder / WEIGHTS).is_file()
    if body == folder:
        _refuse_checkpoint(checkpoint, name, Kind.BODY)
        return _body_reference(name, folder)
    if is_tokenizer:
        _refuse_checkpoint(checkpoint, name, Kind.TOKENIZER)
        return Reference(str(name), Kind.TOKENIZER, folder, _run_of(folder))
    if is_run(folder):
        weights, notes = _weights_of_run(folder, checkpoint, thorough)
        return Reference(str(name), Kind.RUN, weights, folder, notes)
    if (body / BODY).is_file():
        _refuse_checkpoint(checkpoint, name, Kind.BODY)
        return _body_reference(name, body)
    is_checkpoint = is_tag(folder.name) or is_abandoned_tag(folder.name)
    if is_checkpoint or (folder.name in (LATEST, BEST) and folder.parent.name == _CHECKPOINTS):
        place = folder.absolute().parent
        run = place.parent.parent if place.name == ABANDONED else place.parent
        if checkpoint is not None:
            raise UserError(f"--checkpoint: {name} is a checkpoint itself; leave it out, or name the run {run}")
        found = _checkpoint(folder.parent, folder.name, folder.parent, thorough)
        notes = _notes_on_best(found) if folder.name == BEST else ()
        return Reference(str(name), Kind.CHECKPOINT, found, run if is_run(run) else None, notes)
    raise UserError(
        f"{folder}: not a run's folder (no {PROFILE_FILE}), and not a tokenizer's folder: {CONFIG} is missing"
        f"{hint_of(folder) or _hint(folder)}"
    )


def _refuse_checkpoint(checkpoint: str | None, name: str | Path, kind: Kind) -> None:
    if checkpoint is not None:
        raise UserError(f"--checkpoint: {name} is {kind.value}, which has no checkpoints; leave it out")


def is_of(details: Mapping[str, Any], checkpoint: Path) -> bool:
    """Whether a tokenizer was made of a checkpoint; where either does not tell, as of versions up to 0.3, by its step.

    Args:
        details: of the tokenizer.
    """
    mark, fingerprint = mark_in(checkpoint), details.get("checkpoint")
    if mark is None or fingerprint is None:
        return bool(details.get("training_step") == step_of(checkpoint))
    return bool(fingerprint == mark.fingerprint)


def _weights_of_run(run: Path, which: str | None, thorough: bool) -> tuple[Path, tuple[str, ...]]:
    """The folder of the exported tokenizer, or of the checkpoint asked for or that training went on to; and notes."""
    folder, exported = run / _CHECKPOINTS, run / TOKENIZER
    if which is not None:
        found = _checkpoint(folder, which, run, thorough)
        return found, _notes_on_best(found) if which == BEST else ()
    newest, notes = latest(folder), []
    if newest is None and is_resuming(folder):
        return _checkpoint(folder, LATEST, run, thorough), ()  # which says so
    if exported.is_dir():
        try:
            details = read_config(exported).details
            # The checkpoint itself may have been removed since, which leaves its name in `latest`.
            named = named_by(folder / LATEST)
            gone = named is not None and not named.exists() and named.name == f"{TAG}{details.get('training_step')}"
            if newest is None or is_of(details, newest) or gone:
                return exported, ()
        except UserError as error:
            if newest is None:
                raise
            notes.append(f"{error}; its newest checkpoint is taken")
    whole, damaged = whole_checkpoint(folder, thorough)
    found = whole or _checkpoint(folder, LATEST, run, thorough)
    notes += [f"damaged, passed over: {text}" for text in damaged]
    notes += [f"{run}: {found.name} is taken, the newest whole checkpoint"] if damaged else []
    return found, tuple(notes)


def _notes_on_best(found: Path) -> tuple[str, ...]:
    """Says where the checkpoint that scored best is gone, so that another is the best of those that are left."""
    head = latest(found.parent)
    best = manifest_in(head).get("best") if head else None
    if not best or best["step"] == step_of(found):
        return ()
    return (f"{tag_of(best['step'])}, which scored best (L1 {best['l1']:.4g}), is gone; {found.name} is taken",)


def _body_reference(name: str | Path, folder: Path) -> Reference:
    """A body's tokenizer, with a note on each part whose run is elsewhere by now."""
    reference = Reference(str(name), Kind.BODY, folder)
    notes = []
    for part in reference.parts():
        newest = latest(part.run / _CHECKPOINTS) if part.run else None
        try:
            if newest is None or is_of(details := read_config(part.folder).details, newest):
                continue
        except UserError:
            continue  # said when it is opened
        notes.append(
            f"{part.folder}: of step {details.get('training_step')}, and its run {part.run} is at {newest.name} of its "
            "history now; the command that trained it, with --resume, makes the body's tokenizer anew"
        )
    return replace(reference, notes=tuple(notes))


def _checkpoint(folder: Path, which: str, place: Path, thorough: bool) -> Path:
    """A checkpoint in `folder`; `place` is what a refusal names."""
    try:
        return named_checkpoint(folder, which, thorough)
    except ValueError as error:
        raise UserError(f"{place}: {error}") from None


def _run_of(folder: Path) -> Path | None:
    """The run that an exported tokenizer lies in, by itself or as a part of a body; or whose profile lies in it."""
    folder = folder.resolve()
    places = [folder, folder.parent]
    if (folder.parent / BODY).is_file():
        places.append(folder.parent.parent / folder.name)
    return next((place for place in places if is_run(place)), None)


def _hint(folder: Path) -> str:
    """What may have been meant by a folder that holds runs or checkpoints."""
    runs = sorted(file.parent for file in folder.glob(f"*/{PROFILE_FILE}") if is_run(file.parent))
    found, what = (runs, "runs") if runs else (checkpoints(folder)[::-1], "checkpoints")
    if not found:
        return ""
    names = ", ".join(map(str, found[:_SHOWN])) + (", …" if len(found) > _SHOWN else "")
    return f"; it holds {what}, of which one can be named: {names}"
