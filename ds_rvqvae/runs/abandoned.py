"""Keep a run's folder to one history: that of the checkpoint which the run resumes from. Needs torch only for
checkpoints of versions up to 0.3.

Files of other histories are put aside into `checkpoints/abandoned`, and come back when a resume names a checkpoint of
their history. Nothing is deleted:

| file or folder there | holds |
|---|---|
| `global_step40-1f2e3d4c5b6a` | a checkpoint, with the first digits of its fingerprint; `…_universal` beside it |
| `history-1f2e3d4c5b6a.json` | the history that ends in this checkpoint: earlier checkpoints, TensorBoard files |
| `metrics-1f2e3d4c5b6a.jsonl` | all lines of metrics of that history |
| `tensorboard/` | TensorBoard files of other histories |
| `tokenizer-…/`, `eval-…/`, `memory-….json` | files made from that checkpoint |
| `eval-unsaved/` | the last scores of a run that died before it saved a checkpoint for them |

Each change is one rename or one complete file, in an order that lets the next resume continue after a kill: until all
is done, the file `resuming` says which checkpoint the run resumes from.
"""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from ds_rvqvae.errors import UserError
from ds_rvqvae.files import sync
from ds_rvqvae.locks import LOCK_FILE
from ds_rvqvae.runs.checkpoints import (
    ABANDONED,
    BEST,
    LATEST,
    RESUMING,
    Mark,
    ancestors_of,
    checkpoints,
    damage_of,
    digits_of,
    head_of,
    is_resuming,
    keeps,
    mark_in,
    mark_of,
    named_by,
    point,
    read_manifest,
    remove,
    resumed_from,
    step_of,
    sweep,
    tag_of,
    universal_of,
    write_synced,
)
from ds_rvqvae.runs.history import best_before, marks_before, old_state, put_aside
from ds_rvqvae.runs.pieces import carry, copy, dict_of, free_name, move, short, write_json
from ds_rvqvae.text import size
from ds_rvqvae.tokenizer.folder import CARD, CONFIG, FILES, TOKENIZER, WEIGHTS

SCORES = "scores.json"
"""File in a run's `eval`: the scores of the last evaluation of its history."""
_PICTURES = ("reconstruction_*.png", "rate_distortion_*.png", "comparison_*.png")
_METRICS, _BOARD, _MEMORY = "metrics.jsonl", "tensorboard", "memory.json"


class _Move:
    """The change of a run's folder to the history of one checkpoint."""

    def __init__(self, run: Path, checkpoint: Path) -> None:
        self.run, self.folder = run, run / "checkpoints"
        self.aside = self.folder / ABANDONED
        self.manifest = read_manifest(checkpoint)
        self.mark = mark_of(self.manifest)
        self.target = self.folder / tag_of(self.mark.step)
        self.ancestors = ancestors_of(self.manifest)
        if self.ancestors is None and checkpoint.parent == self.aside:
            noted = [Mark(*mark) for mark in self._journal().get("ancestors", [])]
            self.ancestors = [mark for mark in noted if mark.step < self.mark.step] or None
        # The change that an interrupted resume began, to this checkpoint or to another.
        self.pending = dict_of(self.folder / RESUMING)
        here = checkpoints(self.folder)
        there = {mark_in(path) for path in here}
        aside = [path for path in put_aside(self.folder) if self.is_own(path, known=True)]
        self.returning = [path for path in aside if mark_in(path) not in there]
        # An unreadable checkpoint counts by its step, unless another of that step comes back.
        places = {tag_of(step_of(path)) for path in self.returning}
        self.leaving = [path for path in here if not self.is_own(path) or path.name in places][::-1]
        left = _as_mark(self.pending.get("from"))
        spoilt = is_resuming(self.folder) and resumed_from(self.folder) is None
        if not self.pending and head_of(self.folder) in self.leaving:
            left = next((mark for path in self.leaving if (mark := mark_in(path))), None)
        self.left = left if left and left not in [self.mark, *(self.ancestors or [])] else None
        """The newest readable checkpoint of the history that is put aside."""
        self.returns = bool(self.pending.get("returns")) or checkpoint.parent == self.aside
        if spoilt and self._journal():
            self.returns = True  # the interrupted resume may have been the one to this history
        self.notes: list[str] = []

    def is_own(self, path: Path, known: bool = False) -> bool:
        """Returns whether a checkpoint is the one resumed from, or an earlier one of its history.

        Args:
            known: return True only if that is certain.
        """
        mark = mark_in(path)
        if mark == self.mark:
            return True
        if self.ancestors is None:
            return not known and step_of(path) < self.mark.step
        if mark is None:
            return not known and step_of(path) in dict(self.ancestors)
        return mark in self.ancestors

    def is_ours(self, fingerprint: Any, step: Any) -> bool:
        """Returns whether a file made from this checkpoint belongs to this history; without a fingerprint, the step
        decides."""
        if self.ancestors is None or not isinstance(fingerprint, str):
            return not isinstance(step, int) or step <= self.mark.step
        return fingerprint in {mark.fingerprint for mark in [*self.ancestors, self.mark]}

    def make(self) -> None:
        """Makes the change, or completes an interrupted one."""
        sweep(self.aside)
        moves = bool(self.leaving or self.returning) or is_resuming(self.folder)
        if moves:
            self.aside.mkdir(exist_ok=True)
            values = {"to": self.mark, "from": self.left, "returns": self.returns}
            write_synced(self.folder / RESUMING, json.dumps(values))
            self._note_history()
        self._tokenizer()
        self._memory()
        if moves:
            self._put_aside()
            self._bring_back()
            if self.returns:
                self._bring_back_metrics()
        self._scores()
        self._point()
        if moves:
            (self.folder / RESUMING).unlink()
            sync(self.folder)

    def _note_history(self) -> None:
        """Writes the journal of the history that is put aside, unless an earlier resume wrote it."""
        if self.left is None:
            return
        head = next((path for path in self.leaving if mark_in(path) == self.left), None)
        journal = self.aside / f"history-{short(self.left.fingerprint)}.json"
        if journal.is_file() or head is None:
            return
        metrics = self.run / _METRICS
        if metrics.is_file():
            copy(metrics, self.aside / f"metrics-{short(self.left.fingerprint)}.jsonl")
        board = sorted(path.name for path in (self.run / _BOARD).glob("*") if path.is_file())
        write_synced(journal, json.dumps({"head": self.left, "ancestors": marks_before(head), _BOARD: board}))

    def _put_aside(self) -> None:
        """Puts checkpoints aside, the newest first, each after its universal form."""
        if not self.leaving:
            return
        taken = sum(file.stat().st_size for path in self.leaving for file in path.rglob("*") if file.is_file())
        places = []
        for path in self.leaving:
            place = free_name(self.aside, f"{path.name}-{digits_of(path)}")
            if universal_of(path).is_dir():
                remove(universal_of(place))
                universal_of(path).rename(universal_of(place))
            path.rename(place)
            places.append(place)
        sync(self.aside)
        sync(self.folder)
        names = ", ".join(path.name for path in reversed(self.leaving))
        way = next(
            (f"`--resume {place.name}` goes back to them; " for place in places if damage_of(place, False) is None), ""
        )
        self.notes.append(
            f"put aside, not deleted: {names} ({size(taken)}) and the files made from them, which do not belong to the "
            f"history of {self.target.name}, into {self.aside}; {way}to free the space, remove that folder"
        )

    def _bring_back(self) -> None:
        """Brings checkpoints back, the oldest first, so that each has those before it."""
        for path in self.returning:
            place = self.folder / tag_of(step_of(path))
            if universal_of(path).is_dir():
                remove(universal_of(place))
                universal_of(path).rename(universal_of(place))
            path.rename(place)
        sync(self.aside)
        sync(self.folder)
        if self.returning:
            self.notes.append(f"brought back: {', '.join(tag_of(step_of(path)) for path in self.returning)}")

    def _bring_back_metrics(self) -> None:
        """Brings back the metrics and the TensorBoard files of a history that was put aside."""
        journal, board = self._journal(), self.run / _BOARD
        names = journal.get(_BOARD, []) if journal else []
        away = self.aside / _BOARD
        carry(board, away, sorted(path.name for path in board.glob("*") if path.name not in names))
        carry(away, board, names)
        metrics = self.aside / f"metrics-{short(journal['head'][1])}.jsonl" if journal else None
        if metrics is not None and metrics.is_file():
            copy(metrics, self.run / _METRICS)
            return
        kept = keeps(self.target, _METRICS)
        if kept:
            copy(self.target / _METRICS, self.run / _METRICS)
        elif (self.run / _METRICS).is_file():
            write_synced(self.run / _METRICS, "")
        anew = [*([] if kept else [_METRICS]), *([] if journal else ["TensorBoard"])]
        if anew:
            self.notes.append(
                f"{' and '.join(anew)}: only from {self.target.name} on; the earlier part is no longer in {self.aside}"
            )

    def _journal(self) -> dict[str, Any]:
        """Returns the journal of the checkpoint's history; empty if there is none."""
        for file in sorted(self.aside.glob("history-*.json")):
            journal = dict_of(file)
            with suppress(KeyError, TypeError, ValueError):
                if self.mark in [Mark(*mark) for mark in [journal["head"], *journal["ancestors"]]]:
                    return journal
        return {}

    def _tokenizer(self) -> None:
        """Puts aside the tokenizer of another history.

        If the folder also has files of the user, it puts aside a copy and leaves ours: without our files the next
        tokenizer would not be written beside the user's.
        """
        folder = self.run / TOKENIZER
        config = dict_of(folder / CONFIG)
        fingerprint, step = config.get("checkpoint"), config.get("training_step")
        if config and not self.is_ours(fingerprint, step):
            place = self.aside / f"{TOKENIZER}-{short(fingerprint, folder / CONFIG)}"
            if {path.name for path in folder.iterdir()} <= {*FILES, LOCK_FILE}:
                carry(folder, place, (WEIGHTS, CARD, CONFIG))
            elif not (place / CONFIG).is_file():
                place.mkdir(parents=True, exist_ok=True)
                for name in (name for name in (WEIGHTS, CARD, CONFIG) if (folder / name).is_file()):
                    copy(folder / name, place / name)
            if (folder / CONFIG).is_file():
                self.notes.append(f"{folder} belongs to another history until the run's end: it has other files too")
        own = self.aside / f"{TOKENIZER}-{short(self.mark.fingerprint)}"
        if (own / CONFIG).is_file() and not (folder / CONFIG).is_file():
            carry(own, folder, (WEIGHTS, CARD, CONFIG))

    def _memory(self) -> None:
        """Puts aside the memory summary of another history, and brings back that of this one."""
        file = self.run / _MEMORY
        summary = dict_of(file)
        fingerprint, step = summary.get("checkpoint"), summary.get("last_step")
        if summary and not self.is_ours(fingerprint, step):
            self.aside.mkdir(exist_ok=True)
            move(file, self.aside / f"memory-{short(fingerprint, file)}.json")
        own = self.aside / f"memory-{short(self.mark.fingerprint)}.json"
        if own.is_file() and not file.exists():
            move(own, file)

    def _scores(self) -> None:
        """Writes the scores of this history's last evaluation; puts others aside, with their pictures."""
        folder, known = self.run / "eval", "scores" in self.manifest
        file = folder / SCORES
        there = dict_of(file)
        scores = self.manifest.get("scores") if known else old_state(self.target).get("scores")
        if scores:
            marks = dict([*(self.ancestors or []), self.mark])
            scores = {**scores, "checkpoint": marks.get(scores.get("step"))}
        elif not known and self.is_ours(None, there.get("step")):
            return  # from before the checkpoint, as far as is known
        if there and not _same(there, scores):
            pictures = [path.name for pattern in _PICTURES for path in folder.glob(pattern)]
            # The run died between an evaluation and the next save, and will make them again: one folder for all.
            died = not self.leaving and isinstance(there.get("step"), int) and there.get("checkpoint", 0) is None
            name = "unsaved" if died else short(there.get("checkpoint"), file)
            carry(folder, self.aside / f"eval-{name}", (*sorted(pictures), SCORES))
            if not self.leaving and not died:
                self.notes.append(f"put aside: the scores of step {there.get('step')}, which has no checkpoint")
        elif there and not known:
            return
        if scores and there != scores:
            own = self.aside / f"eval-{short(scores['checkpoint'] or 'none')}"
            carry(own, folder, (*sorted(path.name for path in own.glob("*.png")), SCORES))
            write_json(file, scores)

    def _point(self) -> None:
        """Sets `best` and then `latest`, and adds a note if the best checkpoint is gone."""
        best = best_before(self.target)
        was = self._best_then()
        if was is not None and (best is None or best.l1 > was):
            now = f"now the best is {tag_of(best.mark.step)} ({best.l1:.4g})" if best else "no other has scores"
            self.notes.append(f"the checkpoint that scored best (L1 {was:.4g}) is gone; {now}")
        if best is None:
            (self.folder / BEST).unlink(missing_ok=True)
        else:
            _point(self.folder, BEST, self.folder / tag_of(best.mark.step))
        _point(self.folder, LATEST, self.target)

    def _best_then(self) -> float | None:
        """Returns the lowest L1 up to the checkpoint, as it was saved in it."""
        if "best" in self.manifest:
            best = self.manifest["best"]
            return None if best is None else float(best["l1"])
        l1 = old_state(self.target).get("best_l1")
        return float(l1) if isinstance(l1, float) and l1 < float("inf") else None


def go_on_from(run: Path, checkpoint: Path) -> tuple[Path, list[str]]:
    """Changes a run's folder to the history of `checkpoint`, which is complete; the process holds the run's lock.

    Args:
        checkpoint: one of the run's `checkpoints`, or one that was put aside, which is brought back.

    Returns:
        the checkpoint's path now, and notes for the user.

    Raises:
        UserError: the folder cannot be changed; another resume will complete the change.
    """
    move = _Move(run, checkpoint)
    if move.ancestors is None:
        move.notes.append(
            f"{move.target.name} was saved by a version up to 0.3, whose checkpoints do not know their history: all up "
            "to its step count as earlier ones"
        )
    try:
        move.make()
    except OSError as error:
        where = error.filename or move.folder
        raise UserError(f"--resume: {where}: {error.strerror or error}; solve that and resume again") from None
    return move.target, move.notes


def put_one_aside(checkpoint: Path) -> Path:
    """Puts aside a checkpoint that is in the way of a new one of its step; returns its new path."""
    aside = checkpoint.parent / ABANDONED
    aside.mkdir(exist_ok=True)
    place = free_name(aside, f"{checkpoint.name}-{digits_of(checkpoint)}")
    remove(universal_of(checkpoint))
    checkpoint.rename(place)
    sync(aside)
    return place


def clear_damaged_tokenizer(run: Path) -> None:
    """Puts aside the files of a run's tokenizer whose `config.json` is missing or damaged, so that a new one is made.

    Raises:
        OSError: it cannot be moved.
    """
    folder, aside = run / TOKENIZER, run / "checkpoints" / ABANDONED
    if not dict_of(folder / CONFIG) and any((folder / name).is_file() for name in FILES):
        carry(folder, free_name(aside, f"{TOKENIZER}-damaged"), FILES)


def _as_mark(values: Any) -> Mark | None:
    return Mark(*values) if isinstance(values, list) and len(values) == 2 else None


def _same(there: dict[str, Any], scores: dict[str, Any] | None) -> bool:
    """Returns whether scores are equal, apart from their checkpoint; compared as text, where NaN equals NaN."""
    texts = [json.dumps({**values, "checkpoint": None}, sort_keys=True) for values in (there, scores or {})]
    return texts[0] == texts[1]


def _point(folder: Path, pointer: str, checkpoint: Path) -> None:
    """Calls `point` unless the pointer already names the checkpoint."""
    if named_by(folder / pointer) != checkpoint:
        point(folder, pointer, checkpoint)
