"""Find the tokenizer that a name stands for, and its weights. Without torch.

A command takes a tokenizer by any of these names:

| name | stands for |
|---|---|
| `RUN` | a run's folder: its exported tokenizer if that is of the newest checkpoint, else that checkpoint |
| `RUN/checkpoints/global_step5000`, `…/latest`, `…/best` | that checkpoint of the run |
| a folder with `config.json` and `model.safetensors` | an exported or imported tokenizer |
| a folder with `body.json`, or the folder of a body's runs | the tokenizer of a body, which has several parts |
| `owner/name`, if there is no such folder | a tokenizer on the Hugging Face hub |
"""

from collections.abc import Mapping, Sequence
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
"""Maximum number of names that an error proposes."""


class Kind(Enum):
    """The kinds of things that a name can stand for, in words."""

    RUN = "a run"
    CHECKPOINT = "a checkpoint"
    TOKENIZER = "a tokenizer"
    BODY = "a body's tokenizer"
    REPOSITORY = "a tokenizer of the hub"


@dataclass(frozen=True)
class Reference:
    """A tokenizer's name, and where its files are."""

    name: str
    """The name as given."""
    kind: Kind
    folder: Path
    """The folder to load: a tokenizer's, a body's, or a checkpoint's."""
    run: Path | None = None
    """The folder of its run, if known; the run's profile says how its motion is read."""
    notes: tuple[str, ...] = ()
    """Notes for the user, such as weights that are not the newest of their run."""

    @property
    def is_checkpoint(self) -> bool:
        """Whether the weights are in a checkpoint, which needs torch and DeepSpeed to read."""
        return self.kind is Kind.CHECKPOINT or (self.kind is Kind.RUN and is_tag(self.folder.name))

    def parts(self) -> "list[Reference]":
        """Returns the parts of a body, each as a tokenizer; for anything else the reference itself."""
        if self.kind is not Kind.BODY:
            return [self]
        folders = [self.folder / part for part in read_body(self.folder)[0]]
        return [Reference(str(folder), Kind.TOKENIZER, folder, _run_of(folder)) for folder in folders]


def find_reference(name: str | Path, checkpoint: str | None = None, *, thorough: bool = True) -> Reference:
    """Finds the tokenizer that a name stands for. A repository on the hub is downloaded; nothing else is changed.

    Args:
        name: one of the names in the module's table; a `Path` never stands for a repository.
        checkpoint: the checkpoint of a run: `latest`, `best` or `global_stepN`.
        thorough: read every file of a checkpoint to check it; otherwise only names and sizes are compared.

    Raises:
        UserError: the name stands for nothing, has no such checkpoint or a damaged one, or cannot be downloaded.
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
    """Returns whether a tokenizer was made from a checkpoint; by its step if a version up to 0.3 made one of them.

    Args:
        details: of the tokenizer.
    """
    mark, fingerprint = mark_in(checkpoint), details.get("checkpoint")
    if mark is None or fingerprint is None:
        return bool(details.get("training_step") == step_of(checkpoint))
    return bool(fingerprint == mark.fingerprint)


def _weights_of_run(run: Path, which: str | None, thorough: bool) -> tuple[Path, tuple[str, ...]]:
    """Returns the folder of the weights, and notes: the checkpoint asked for, else the exported tokenizer if it is of
    the newest checkpoint, else that checkpoint."""
    folder, exported = run / _CHECKPOINTS, run / TOKENIZER
    if which is not None:
        found = _checkpoint(folder, which, run, thorough)
        return found, _notes_on_best(found) if which == BEST else ()
    newest, notes = latest(folder), []
    if newest is None and is_resuming(folder):
        return _checkpoint(folder, LATEST, run, thorough), ()  # raises with the reason
    if exported.is_dir():
        try:
            details = read_config(exported).details
            # The checkpoint may have been removed since; `latest` then still names it.
            named = named_by(folder / LATEST)
            gone = named is not None and not named.exists() and named.name == f"{TAG}{details.get('training_step')}"
            if newest is None or is_of(details, newest) or gone:
                return exported, ()
        except UserError as error:
            if newest is None:
                raise
            notes.append(f"{error}; the newest checkpoint is used instead")
    whole, damaged = whole_checkpoint(folder, thorough)
    found = whole or _checkpoint(folder, LATEST, run, thorough)
    notes += [f"damaged, skipped: {text}" for text in damaged]
    notes += [f"{run}: {found.name} is used, the newest complete checkpoint"] if damaged else []
    return found, tuple(notes)


def _notes_on_best(found: Path) -> tuple[str, ...]:
    """Returns a note if the checkpoint that scored best is gone, so that another is the best of those left."""
    head = latest(found.parent)
    best = manifest_in(head).get("best") if head else None
    if not best or best["step"] == step_of(found):
        return ()
    return (f"{tag_of(best['step'])}, which scored best (L1 {best['l1']:.4g}), is gone; {found.name} is used",)


def _body_reference(name: str | Path, folder: Path) -> Reference:
    """Returns a body's tokenizer, with a note on each part whose run now has a newer checkpoint or another history."""
    reference = Reference(str(name), Kind.BODY, folder)
    notes = []
    for part in reference.parts():
        newest = latest(part.run / _CHECKPOINTS) if part.run else None
        try:
            if newest is None or is_of(details := read_config(part.folder).details, newest):
                continue
        except UserError:
            continue  # reported when it is opened
        notes.append(
            f"{part.folder}: is of step {details.get('training_step')}, but its run {part.run} is now at {newest.name} "
            "of its history; the command that trained it, with --resume, makes the body's tokenizer again"
        )
    return replace(reference, notes=tuple(notes))


def _checkpoint(folder: Path, which: str, place: Path, thorough: bool) -> Path:
    """Returns a checkpoint in `folder`; an error names `place`."""
    try:
        return named_checkpoint(folder, which, thorough)
    except ValueError as error:
        raise UserError(f"{place}: {error}") from None


def _run_of(folder: Path) -> Path | None:
    """Returns the run of an exported tokenizer, which is in the run's folder, or a part of a body beside the run; or
    the folder itself if it has a profile."""
    folder = folder.resolve()
    places = [folder, folder.parent]
    if (folder.parent / BODY).is_file():
        places.append(folder.parent.parent / folder.name)
    return next((place for place in places if is_run(place)), None)


def _hint(folder: Path) -> str:
    """Returns a suggestion for a folder that holds runs or checkpoints."""
    runs = sorted(file.parent for file in folder.glob(f"*/{PROFILE_FILE}") if is_run(file.parent))
    found, what = (runs, "runs") if runs else (checkpoints(folder)[::-1], "checkpoints")
    if not found:
        return ""
    names = ", ".join(map(str, found[:_SHOWN])) + (", …" if len(found) > _SHOWN else "")
    return f"; it holds {what}, name one of them: {names}"


def distinct_names(references: Sequence[Reference]) -> list[str]:
    """Returns the shortest ends of the paths that differ; `…/RUN/tokenizer` is named by its run."""
    parts = [Path(reference.name).resolve().parts for reference in references]
    parts = [part[:-1] if part[-1] == "tokenizer" and len(part) > 2 else part for part in parts]
    parts = [(*part[:-2], part[-1]) if part[-2:-1] == ("checkpoints",) else part for part in parts]
    names = [""] * len(parts)
    for index, own in enumerate(parts):
        others = {other for other in parts if other != own}
        length = next(n for n in range(1, len(own) + 1) if all(other[-n:] != own[-n:] for other in others))
        name = "/".join(own[-length:]).replace("//", "/")
        earlier = parts[:index].count(own)
        names[index] = f"{name} ({earlier + 1})" if earlier else name
    return names
