"""Commands that are killed and repeated: their output is complete at any moment, and ends as without kills."""

import hashlib
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ds_rvqvae.data.demo import write_demo_motion
from ds_rvqvae.data.store.store import open_store
from ds_rvqvae.errors import ExitStatus, UserError
from ds_rvqvae.tokenizer.codes import read_codes
from ds_rvqvae.tokenizer.folder import is_tokenizer
from ds_rvqvae.tokenizer.tokenizer import MotionTokenizer
from tests.ranks import bare_environment

CLI = [sys.executable, "-m", "ds_rvqvae.cli"]
REPLACE = (
    "import sys; from ds_rvqvae.tokenizer.tokenizer import MotionTokenizer\n"
    "MotionTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])"
)
_EXPORT = ("export", "run", "--checkpoint", "latest", "--out", "out")
CLIPS, FRAMES = 24, 900
MOST_STARTS = 100
"""The largest number of starts of one command until it completes."""


@dataclass(frozen=True)
class Task:
    """A command, whose folder is a copy of `template`, and the checks of that folder.

    Attributes:
        outputs: its files and folders, compared byte for byte with those of an undisturbed start.
        faults: returns the faults of a folder after a kill.
    """

    name: str
    command: list[str]
    outputs: tuple[str, ...]
    faults: Callable[[Path], list[str]]


@dataclass
class Account:
    """The results of one task."""

    name: str
    kills: int = 0
    completed: int = 0
    seconds: float = 0.0
    """Duration of an undisturbed start."""
    faults: list[str] = field(default_factory=list)


class Commands:
    """The commands in `work`, and their kills.

    Args:
        run: a finished run, whose tokenizer and checkpoints are used.
        say: called with a line about every task.
    """

    def __init__(self, work: Path, run: Path, say: Callable[[str], None] = print):
        self.work, self.say, self.here = work.absolute(), say, work.absolute() / "here"
        self.template = self.work / "template"
        self.template.mkdir(parents=True)
        for name, clips, seed in (("first", 4, 1), ("second", CLIPS, 2)):
            write_demo_motion(self.template / name, clips=clips, frames=FRAMES, seed=seed)
        # Otherwise the two data sets would have clips of the same names.
        for file in sorted((self.template / "second" / "smplxflame_30").iterdir()):
            file.rename(file.with_name(file.name.replace("_", "_more_", 1)))
        (self.template / "second" / "train_test_split.csv").unlink()
        shutil.copytree(run, self.template / "run")
        shutil.copytree(run / "tokenizer", self.template / "other")
        self._start(self.template, [*CLI, "prepare", "first", "--out", "store"]).wait()
        other = MotionTokenizer.from_pretrained(run / "tokenizer")
        moved = MotionTokenizer(other.model, other.mean + 1, other.std, other.layout, other.fps, other.details)
        moved.save_pretrained(self.template / "other")
        self._store = _clips(self.template / "store")
        self._fingerprints = {other.fingerprint, moved.fingerprint}

    def tasks(self) -> list[Task]:
        """Returns all tasks."""
        return [
            Task("prepare", [*CLI, "prepare", "second", "--out", "new"], ("new",), self._of_new_store),
            Task("append", [*CLI, "prepare", "second", "--out", "store", "--append"], ("store",), self._of_store),
            Task("encode", [*CLI, "encode", "run", "second", "--out", "codes"], ("codes",), _of_codes),
            Task("export", [*CLI, *_EXPORT], ("out",), self._of_export),
            Task("replace", [sys.executable, "-c", REPLACE, "run/tokenizer", "other"], ("other",), self._of_replaced),
        ]

    def hurt(self, task: Task, kills: int, rng: random.Random) -> Account:
        """Kills a task `kills` times, and begins it anew as often as needed for that."""
        account = Account(task.name)
        began = time.monotonic()
        expected = self._undisturbed(task)
        account.seconds = time.monotonic() - began
        while account.kills < kills:
            self._fresh()
            for _ in range(MOST_STARTS):
                process = self._start(self.here, task.command)
                hurt = account.kills < kills and rng.random() < 0.9
                with suppress(subprocess.TimeoutExpired):
                    process.wait(rng.uniform(0.2, 1.05) * account.seconds if hurt else 600)
                if process.poll() is not None:
                    break
                process.kill()
                process.wait()
                account.kills += 1
                account.faults += [f"after kill {account.kills}: {fault}" for fault in task.faults(self.here)]
            account.completed += 1
            self._compare(task, expected, process.returncode, account)
        self.say(f"{task.name}: {account.kills} kills, {account.completed} completed, {account.faults or 'no fault'}")
        return account

    def _compare(self, task: Task, expected: dict[str, str], status: int, account: Account) -> None:
        said = (self.work / "said").read_text(errors="replace").strip().splitlines()
        # An export that was killed after its last write has made its folder, which the next one does not overwrite.
        done = status == ExitStatus.DONE or (task.name == "export" and (self.here / "out").is_dir())
        if not done:
            account.faults.append(f"ended with {status}: {said[-1:]}")
        found = self._outputs(task)
        unequal = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        if unequal:
            account.faults.append(f"unlike an undisturbed start: {unequal[:5]}")

    def _undisturbed(self, task: Task) -> dict[str, str]:
        self._fresh()
        status = self._start(self.here, task.command).wait()
        if status != ExitStatus.DONE:
            raise RuntimeError(f"{task.name} ended with {status}: {(self.work / 'said').read_text()[-2000:]}")
        return self._outputs(task)

    def _outputs(self, task: Task) -> dict[str, str]:
        hashes: dict[str, str] = {}
        for name in task.outputs:
            hashes |= file_hashes(self.here / name)
        return hashes

    def _fresh(self) -> None:
        """Copies the template anew, always to the same path, because outputs may contain the path."""
        shutil.rmtree(self.here, ignore_errors=True)
        shutil.copytree(self.template, self.here)

    def _start(self, folder: Path, command: list[str]) -> subprocess.Popen[bytes]:
        environment = bare_environment(self.work, DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
        with (self.work / "said").open("w") as said:
            return subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=said)

    def _of_store(self, folder: Path) -> list[str]:
        try:
            now = _clips(folder / "store")
        except (UserError, OSError, ValueError) as error:
            return [f"the store cannot be opened: {error}"]
        lost = [name for name, digest in self._store.items() if now.get(name) != digest]
        whole = len(now) in (len(self._store), len(self._store) + CLIPS)
        return [f"lost {lost}"] * bool(lost) + [f"{len(now)} clips"] * (not whole)

    def _of_new_store(self, folder: Path) -> list[str]:
        if not (folder / "new").exists():
            return []
        try:
            return [] if len(_clips(folder / "new")) == CLIPS else ["not all clips"]
        except (UserError, OSError, ValueError) as error:
            return [f"the store cannot be opened: {error}"]

    def _of_export(self, folder: Path) -> list[str]:
        return self._of_tokenizer(folder / "out") if (folder / "out").exists() else []

    def _of_replaced(self, folder: Path) -> list[str]:
        return self._of_tokenizer(folder / "other")

    def _of_tokenizer(self, folder: Path) -> list[str]:
        try:
            fingerprint = MotionTokenizer.from_pretrained(folder).fingerprint if is_tokenizer(folder) else None
        except (UserError, OSError) as error:
            return [f"cannot be loaded: {error}"]
        return [] if fingerprint in self._fingerprints else [f"another tokenizer: {fingerprint}"]


def _of_codes(folder: Path) -> list[str]:
    faults = []
    for file in (folder / "codes").rglob("*.npz") if (folder / "codes").is_dir() else ():
        try:
            read_codes(file)
        except UserError as error:
            faults.append(str(error))
    return faults


def _clips(store_folder: Path) -> dict[str, str]:
    store = open_store(store_folder)
    return {name: hashlib.sha256(np.ascontiguousarray(store.clip(name))).hexdigest() for name in store.clip_names}


def file_hashes(folder: Path) -> dict[str, str]:
    """Returns the sha256 of every file below a folder, by its path there."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
