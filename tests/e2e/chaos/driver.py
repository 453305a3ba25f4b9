"""Starts runs, kills their processes, starts them again, and records what happened."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import psutil

from ds_rvqvae.data.demo import write_demo_motion
from ds_rvqvae.errors import ExitStatus
from ds_rvqvae.runs.checkpoints import UNFINISHED, is_tag
from ds_rvqvae.runs.folder import RANK_LAUNCHER
from tests.e2e.chaos.compare import damaged, differences
from tests.e2e.chaos.plan import KILLS_A_RUN, Kill
from tests.ranks import ROOT, bare_environment, marked_processes
from tests.train.small import SMALL

LAUNCHER = ROOT / "launch" / "train_8x4090.py"
FLAGS = [
    *SMALL,
    # Wide enough that writing, hashing and syncing its checkpoint can be hit.
    *("--width=256", "--nb_code=64", "--mixed_precision=bf16", "--batch_size=4", "--gradient_accumulation_steps=2"),
    *("--quantize_dropout_prob=0.5", "--save_every=3", "--include=localhost:0,1"),
]
MARK = "DS_RVQVAE_CHAOS"
"""Environment variable by which all processes of a run are known, whoever their parent is."""
START_LIMIT = 180.0
"""Seconds to the first step, on a busy machine."""
RUN_LIMIT = 400.0
GONE_LIMIT = 30.0
"""Seconds after a kill within which every other process of the run must have ended."""


NOT_SAID = "killed before it said so"


@dataclass
class Round:
    """A kill, and its consequences."""

    run: int
    kill: Kill
    step: int = 0
    """The last logged step."""
    in_save: bool = False
    left_unfinished: list[str] = field(default_factory=list)
    """Names of the files that the interrupted save left in `checkpoints/`."""
    status: int | None = None
    gone_seconds: float = 0.0
    resumed: str = ""
    """The next start's line about where it continues."""
    seconds: float = 0.0
    """From the start to the last process gone."""


@dataclass
class RunRecord:
    """A run from its first start to its comparison."""

    number: int
    rounds: list[Round] = field(default_factory=list)
    starts: int = 0
    seconds: float = 0.0
    compared_equal: bool = False
    faults: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"run-{self.number:03d}"


class RunFailedError(Exception):
    """A start of a run that neither trained nor ended as it should."""


class Life:
    """One start of a run's command, up to its end or its killing."""

    def __init__(self, command: list[str], folder: Path, run_folder: Path, said: Path, mark: str):
        self.metrics, self.saved = run_folder / "metrics.jsonl", run_folder / "checkpoints"
        self._metrics_before = _modified(self.metrics)
        self.said_file, self._mark = said, mark
        self._stale = {path.name for path in _unfinished(self.saved)}
        self.started = time.time()
        with said.open("w") as output:
            self.launcher = subprocess.Popen(
                command, cwd=folder, env=_environment(folder, mark), stdout=output, stderr=output
            )

    def said(self) -> str:
        return self.said_file.read_text(encoding="utf-8", errors="replace")

    def resumed(self) -> str:
        """Returns its line about where it continues, without folders."""
        found = re.search(r"going on from \S+|\S+ has no checkpoint yet.*|step \S+ is at or past .*", self.said())
        return re.sub(r"\S*/", "", found[0]) if found else ""

    def step(self) -> int:
        """Returns the step of the last complete line of `metrics.jsonl`."""
        text = self.metrics.read_text(encoding="utf-8") if self.metrics.is_file() else ""
        steps = re.findall(r'^\{"step": (\d+),.*\n', text, re.MULTILINE)
        return int(steps[-1]) if steps else 0

    def has_trained(self) -> bool:
        """Returns whether it has logged a step; lines that an earlier life wrote after its checkpoint do not count."""
        if not self.resumed() or _modified(self.metrics) == self._metrics_before:
            return False
        found = re.search(r"global_step(\d+)", self.resumed())
        return self.step() > (int(found[1]) if found else 0)

    def unfinished(self) -> list[str]:
        """Returns what this life is writing in `checkpoints/`, without leftovers of earlier ones."""
        return [path.name for path in _unfinished(self.saved) if path.name not in self._stale or self._writes(path)]

    def saving(self) -> set[str]:
        """Returns the temporary name of the checkpoint that it is writing."""
        return {name for name in self.unfinished() if is_tag(name.removeprefix(UNFINISHED))}

    def _writes(self, path: Path) -> bool:
        with suppress(FileNotFoundError):
            files = list(path.iterdir()) if path.is_dir() else [path]
            return any(file.stat().st_mtime > self.started for file in files)
        return False

    def wait_until(self, true: Callable[[], object], seconds: float, pause: float = 0.02) -> bool:
        """Waits for a condition; returns False if the launcher ended first, raises RunFailedError after `seconds`."""
        deadline = time.monotonic() + seconds
        while not true():
            if self.launcher.poll() is not None:
                return False
            if time.monotonic() > deadline:
                raise RunFailedError(f"waited {seconds:.0f} s in vain")
            time.sleep(pause)
        return True

    def processes(self) -> list[psutil.Process]:
        """Returns all its living processes, found by their environment."""
        return marked_processes(MARK, self._mark)

    def find(self, target: str) -> psutil.Process | None:
        """Returns the process that a kill names, or None as long as it does not exist."""
        if target == "launcher":
            return psutil.Process(self.launcher.pid)
        for process in self.processes():
            with suppress(psutil.Error):
                if target == "launch.py" and RANK_LAUNCHER in process.cmdline():
                    return process
                number = f"--local_rank={target.removeprefix('rank ')}"
                parent = process.parent()
                if number in process.cmdline() and parent is not None and RANK_LAUNCHER in parent.cmdline():
                    return process
        return None

    def wait_until_gone(self) -> list[str]:
        """Waits until all processes have ended; kills those left after the limit, and returns their names."""
        deadline = time.monotonic() + GONE_LIMIT
        while (left := self.processes()) and time.monotonic() < deadline:
            self.launcher.poll()
            time.sleep(0.1)
        names = [f"{process.pid} {' '.join(process.cmdline())[:100]}" for process in left]
        self.kill_all()
        return names

    def kill_all(self) -> None:
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.launcher.wait()


class Driver:
    """The driver of runs in `work`, which compares each with the one of `reference()`.

    Args:
        total_iter: steps per run.
        say: called with a line about every kill and run.
        ranks: number of ranks of every start.
        base: a run's folder; each run begins as a copy of it and continues from there.
    """

    def __init__(
        self,
        work: Path,
        total_iter: int,
        say: Callable[[str], None] = print,
        *,
        ranks: int = 2,
        base: Path | None = None,
    ):
        self.work, self.say, self.save_seconds = work.absolute(), say, 0.0
        self._ranks, self._base = ranks, base
        for part in ("said", "home", "tmp"):
            (self.work / part).mkdir(parents=True, exist_ok=True)
        motion = write_demo_motion(self.work / "motion", clips=6, frames=160)
        self.flags = [*FLAGS, f"--total_iter={total_iter}", f"--eval_every={total_iter // 2}", "--resume"]
        self.flags += [f"--include=localhost:{','.join(map(str, range(ranks)))}"]
        self._motion = f"--data_path={motion}"

    def reference(self) -> None:
        """Does the undisturbed run, and times its saves."""
        life = self._start("reference", 1)
        first_seen, last_seen = {}, {}
        try:
            while life.launcher.poll() is None:
                for name in life.saving():
                    last_seen[name] = time.perf_counter()
                    first_seen.setdefault(name, last_seen[name])
                time.sleep(0.001)
            if life.launcher.returncode != ExitStatus.DONE:
                raise RunFailedError(f"the reference run ended with {life.launcher.returncode}:\n{life.said()[-2000:]}")
        finally:
            life.kill_all()
        self.save_seconds = median(last_seen[name] - first_seen[name] for name in last_seen)
        self.say(f"reference: {time.time() - life.started:.1f} s, {len(last_seen)} saves of {self.save_seconds:.3f} s")

    def rounds(self, kills: list[Kill], seed: int) -> Iterator[RunRecord]:
        """Does run after run until all kills are done; kills that come after a run's end are left to the next run."""
        rng, number = random.Random(seed), 0
        while kills:
            number += 1
            wanted = [self._possible(kill) for kill in kills[: rng.randint(*KILLS_A_RUN)]]
            record = self.hurt_run(number, wanted)
            kills = kills[max(len(record.rounds), 1) :]
            yield record

    def hurt_run(self, number: int, kills: list[Kill]) -> RunRecord:
        """Starts a run, does all its kills, lets it complete and compares it."""
        record, began = RunRecord(number), time.monotonic()
        life = None
        try:
            for kill in [*kills, None]:
                record.starts += 1
                life = self._start(record.name, record.starts)
                if kill is None or not self._killed(life, kill, record):
                    life.wait_until(lambda: False, RUN_LIMIT)
                    _note_resume(record, life)
                    self._check_end(life, record)
                    break
        except RunFailedError as failure:
            record.faults.append(f"start {record.starts}: {failure}; it said: {_tail(life.said())}")
        finally:
            if life is not None:
                life.kill_all()
        record.seconds = time.monotonic() - began
        equal = "equal" if record.compared_equal else "NOT EQUAL"
        self.say(f"run {number}: {len(record.rounds)} kills, {record.seconds:.0f} s, {equal} {record.faults or ''}")
        return record

    def _possible(self, kill: Kill) -> Kill:
        """Returns the kill, with rank 0 in place of a rank that does not exist."""
        is_one_too_many = kill.target.startswith("rank") and int(kill.target.removeprefix("rank ")) >= self._ranks
        return replace(kill, target="rank 0") if is_one_too_many else kill

    def _start(self, name: str, number: int) -> Life:
        if self._base is not None and number == 1:
            shutil.copytree(self._base, self.work / "runs" / name)
        said = self.work / "said" / f"{name}-{number}.txt"
        mark = f"{os.getpid()}-{name}-{number}"
        command = [sys.executable, str(LAUNCHER), *self.flags, self._motion, f"--name={name}"]
        return Life(command, self.work, self.work / "runs" / name, said, mark)

    def _killed(self, life: Life, kill: Kill, record: RunRecord) -> bool:
        """Kills at the planned moment; returns False if the run ended before."""
        if kill.moment == "any":
            time.sleep(kill.seconds)
        elif not life.wait_until(life.has_trained, START_LIMIT):
            return False
        if not life.wait_until(lambda: life.find(kill.target), START_LIMIT):
            return False
        victim = life.find(kill.target)
        if kill.moment == "training":
            time.sleep(kill.seconds)
        elif kill.moment == "save" and not self._wait_for_save(life, kill):
            return False
        done = Round(record.number, kill, in_save=bool(life.unfinished()) and life.has_trained())
        if victim is None or life.launcher.poll() is not None:
            return False
        with suppress(psutil.NoSuchProcess):
            victim.kill()
        self._account(life, done, record)
        return True

    def _wait_for_save(self, life: Life, kill: Kill) -> bool:
        seen = life.saving()
        for _ in range(kill.saves_before + 1):
            if not life.wait_until(lambda: life.saving() - seen, START_LIMIT, 0.001):
                return False
            seen.update(life.saving())
        time.sleep(kill.fraction * self.save_seconds)
        return True

    def _account(self, life: Life, done: Round, record: RunRecord) -> None:
        """Waits for the end of a killed life and notes what it left."""
        kill, killed = done.kill, time.monotonic()
        where = f"start {record.starts}, {kill.target} killed"
        left = life.wait_until_gone()
        done.gone_seconds = time.monotonic() - killed
        record.faults += [f"{where}: left after {GONE_LIMIT:.0f} s: {name}" for name in left]
        done.step, done.status, done.left_unfinished = life.step(), life.launcher.returncode, life.unfinished()
        expected = -signal.SIGKILL if kill.target == "launcher" else ExitStatus.FAILED
        if done.status != expected:
            record.faults.append(f"{where}: exit status {done.status}, not {int(expected)}")
        for text in damaged(self.work / "runs" / record.name):
            if not any(text in fault for fault in record.faults):  # damage that stays until the next save is one fault
                record.faults.append(f"{where}: on disk then: {text}")
        _note_resume(record, life)
        done.seconds = time.time() - life.started
        record.rounds.append(done)
        inside = "in a save" if done.in_save else "between saves"
        self.say(
            f"  run {record.number}, {where} at step {done.step}, {inside}; {kill}; "
            f"it had said: {life.resumed() or 'nothing'}; "
            f"status {done.status}, gone in {done.gone_seconds:.1f} s, left {done.left_unfinished}"
        )

    def _check_end(self, life: Life, record: RunRecord) -> None:
        status = life.launcher.returncode
        if status != ExitStatus.DONE:
            raise RunFailedError(f"ended by itself with status {status}")
        record.faults += [f"left after the end: {process}" for process in life.processes()]
        found = differences(self.work / "runs" / record.name, self.work / "runs" / "reference")
        record.compared_equal = not found
        record.faults += found


def _note_resume(record: RunRecord, life: Life) -> None:
    """Records a start's line about where it continues with the kill before it."""
    if record.rounds and not record.rounds[-1].resumed:
        record.rounds[-1].resumed = life.resumed() or NOT_SAID


def _unfinished(folder: Path) -> list[Path]:
    return list(folder.glob(f"{UNFINISHED}*"))


def _modified(file: Path) -> int | None:
    return file.stat().st_mtime_ns if file.is_file() else None


def _tail(text: str) -> str:
    return " / ".join(line for line in text.replace("\r", "\n").splitlines()[-8:] if line.strip())


def _environment(folder: Path, mark: str) -> dict[str, str]:
    # A killed launcher leaves its temporary folder in it.
    temporary = str(folder / "tmp")
    return bare_environment(folder, TMPDIR=temporary, DS_ACCELERATOR="cpu", LOCAL_SIZE="2", **{MARK: mark})
