"""Runs that tests make without training: each start writes its files, with words as weights."""

import json
import math
import shutil
from pathlib import Path

import torch

from ds_rvqvae import RVQVAE, MotionTokenizer
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.config.profile import load_profile
from ds_rvqvae.config.request import Start
from ds_rvqvae.motion.layout import feature_layout
from ds_rvqvae.runs.abandoned import go_on_from
from ds_rvqvae.runs.checkpoints import (
    MANIFEST,
    MODEL_FILE,
    checkpoints,
    digest_of,
    mark_of,
    point,
    prune,
    read_manifest,
    seal,
    tag_of,
)
from ds_rvqvae.runs.history import best_before, marks_before
from ds_rvqvae.runs.start import find_resume
from tests.settings import SMALL

RECORD = {"motion": "motion"}


class MadeRun:
    """A run of which each start trains in its own way, so that its checkpoints say which start they are of.

    Args:
        folder: of the run.
        old: its checkpoints are like those of versions up to 0.3, which do not know their past.
    """

    def __init__(self, folder: Path, old: bool = False):
        self.folder, self.saved, self.old = folder, folder / "checkpoints", old
        if folder.exists():
            return
        for part in ("checkpoints", "eval", "tensorboard"):
            (folder / part).mkdir(parents=True)
        profile = load_profile("demo", ["train_micro_batch_size_per_gpu=16"]).with_values({"rvqvae.model": SMALL})
        (folder / "profile.json").write_text(json.dumps(profile.to_dict()))

    def start(self, name, scores, resume=None, keep=99, finish=True):
        """One start: goes on from a checkpoint, and saves at each of some steps.

        Args:
            name: of the start; its weights are `NAME STEP`.
            scores: L1 by step; None: saved and not scored.
            resume: what `--resume` was given; None: a new run.
            finish: export the tokenizer of the last step.

        Returns:
            its notes.
        """
        notes, parent, lines = [], None, []
        if resume is not None:
            notes, parent = self.resume(resume)
            lines = [line for line in self.metrics() if line["step"] <= read_manifest(parent)["step"]]
        self._write_metrics(lines)
        (self.folder / "tensorboard" / f"events-{name}").write_text(name)
        last = read_manifest(parent).get("scores") if parent else None
        for step, l1 in scores.items():
            self._write_metrics([*self.metrics(), {"step": step, "start": name}])
            if l1 is not None:
                last = {"step": step, "l1": l1}
            parent = self._save(name, step, parent, last, keep)
            if l1 is not None:
                mark = mark_of(read_manifest(parent))
                self._write("eval/scores.json", {**last, "checkpoint": mark.fingerprint})
                (self.folder / "eval" / "reconstruction_val.png").write_text(f"{name} {step}")
        if finish:
            self._finish(name, parent)
        return notes

    def resume(self, which):
        """Returns the notes of `--resume WHICH` and the checkpoint that it resumes from."""
        profile = load_profile(self.folder / "profile.json")
        found = find_resume(self.folder, profile, 1, RECORD, start=Start.of(which))
        checkpoint, notes = go_on_from(self.folder, found.checkpoint)
        return [*found.notes, *notes], checkpoint

    def copy(self, folder: Path):
        """Copies the run to another folder."""
        return MadeRun(shutil.copytree(self.folder, folder), self.old)

    def metrics(self):
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def checkpoints(self):
        """The weights of all checkpoints there, by name."""
        return {path.name: (path / "model.pt").read_text() for path in checkpoints(self.saved)}

    def board(self):
        return sorted(path.name for path in (self.folder / "tensorboard").iterdir())

    def damage(self, step):
        (self.saved / tag_of(step) / "model.pt").write_text("")

    def _save(self, name, step, parent, last, keep):
        checkpoint = self.saved / tag_of(step)
        checkpoint.mkdir()
        (checkpoint / "model.pt").write_text(f"{name} {step}")
        best = best_before(parent) if parent else None
        own = last["l1"] if last and last["step"] == step else None
        is_best = own is not None and (best is None or own < best.l1)
        known = {"step": step, "fingerprint": None, "l1": own} if is_best else None
        if best and not is_best:
            known = {**best.mark._asdict(), "l1": best.l1}
        manifest = {"step": step, "world_size": 1, "global_batch": 16, **RECORD}
        manifest["files"] = {"model.pt": digest_of(checkpoint / "model.pt")}
        if self.old:
            scores = {"step": step, "l1": own}
            state = {"scores": None if own is None else scores, "best_l1": (known or {"l1": math.inf})["l1"]}
            torch.save({"rvqvae": state}, checkpoint / MODEL_FILE)
        else:
            mark = mark_of(read_manifest(parent)) if parent else None
            ancestors = [*marks_before(parent), mark] if parent else []
            manifest |= {"parent": mark, "ancestors": ancestors, "scores": last, "best": known}
        (checkpoint / MANIFEST).write_text(json.dumps(seal(manifest)))
        for pointer in ("best", "latest") if is_best else ("latest",):
            point(self.saved, pointer, checkpoint)
        prune(checkpoint, keep)
        return checkpoint

    def _finish(self, name, checkpoint):
        manifest = read_manifest(checkpoint)
        mark = mark_of(manifest)
        named = {} if self.old else {"checkpoint": mark.fingerprint}
        net = RVQVAE(5, ModelConfig(width=8, depth=1, code_dim=4, nb_code=8, num_quantizers=2))
        details = {"training_step": mark.step, **named, "made_of": f"{name} {mark.step}"}
        tokenizer = MotionTokenizer(net, torch.zeros(5), torch.ones(5), feature_layout(5), 30.0, details)
        tokenizer.save_pretrained(self.folder / "tokenizer")
        self._write("memory.json", {"last_step": mark.step, **named})

    def _write(self, name, values):
        (self.folder / name).write_text(json.dumps(values, indent=2) + "\n")

    def _write_metrics(self, lines):
        (self.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
