"""Disturbs a run by harmless events, one after another; the result must be that of an undisturbed run.

    python -m tests.e2e.disturbances --count 20 --steps 400 --seed 0

A seed chooses the events and their steps. If an event ends the run with status 75, `--resume` continues it. In the end
the losses and the weights must equal, bit for bit, those of an undisturbed run.
"""

import argparse
import fcntl
import os
import pty
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from ds_rvqvae.data.demo import write_demo_motion
from ds_rvqvae.errors import ExitStatus
from ds_rvqvae.runs.folder import RANK_LAUNCHER
from tests.e2e.chaos.compare import numbers, of_weights
from tests.ranks import ROOT, bare_environment, marked_processes
from tests.train.small import SMALL

LAUNCHER = ROOT / "launch" / "train_8x4090.py"
MARK = "DS_RVQVAE_DISTURBED"
"""Environment variable by which all processes of a start are known."""
STEP_LIMIT = 120.0
"""Seconds within which a run must finish another step, or end if it should end."""


class WrongError(Exception):
    """A harmless event did harm."""


class Start:
    """One start of the run's command, on a terminal of its own or behind a pipe.

    Args:
        on_terminal: the run leads the terminal's session, as a shell's foreground job does.
    """

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str], on_terminal: bool) -> None:
        self.on_terminal, self.mark = on_terminal, f"{os.getpid()}-{time.monotonic_ns()}"
        self._said, self._reads, self.is_read = bytearray(), True, True
        self._reading, writing = pty.openpty() if on_terminal else os.pipe()
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, MARK: self.mark},
            stdin=writing if on_terminal else subprocess.DEVNULL,
            stdout=writing,
            stderr=writing,
            start_new_session=True,
            preexec_fn=(lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)) if on_terminal else None,
        )
        os.close(writing)
        self._reader = threading.Thread(target=self._read_on, daemon=True)
        self._reader.start()

    def _read_on(self) -> None:
        # The reading thread closes it, because a file on which a thread waits stays open.
        with suppress(OSError):
            while self.is_read:
                if self._reads and select.select([self._reading], [], [], 0.05)[0]:
                    if not (text := os.read(self._reading, 4096)):
                        break
                    self._said += text
                elif not self._reads:
                    time.sleep(0.05)
        os.close(self._reading)

    def said(self) -> str:
        """Returns its last lines of output."""
        lines = self._said.decode(errors="replace").replace("\r", "\n").splitlines()
        return " / ".join(line for line in lines[-12:] if line.strip())

    def stop_reading(self) -> None:
        """Makes the reader stop reading."""
        self._reads = False

    def close_reader(self) -> None:
        """Makes the reader end: a broken pipe, or a terminal that hangs up."""
        self.is_read = False
        self._reader.join()

    def processes(self) -> list[psutil.Process]:
        """Returns all its living processes, the launcher first."""
        return sorted(marked_processes(MARK, self.mark), key=lambda process: process.pid != self.process.pid)

    def ranks(self) -> list[psutil.Process]:
        found = []
        for process in self.processes():
            with suppress(psutil.Error):
                parent = process.parent()
                if parent is not None and RANK_LAUNCHER in parent.cmdline():
                    found.append(process)
        return found

    def signal(self, number: int, to: str) -> None:
        """Sends a signal to the `launcher`, its process `group`, `all` processes or one `rank`."""
        if to == "launcher":
            self.process.send_signal(number)
        elif to == "group":
            os.killpg(self.process.pid, number)
        else:
            targets = self.processes()
            if to == "rank":
                targets = self.ranks()[-1:]
            for target in targets:
                with suppress(psutil.Error):
                    target.send_signal(number)


@dataclass
class Run:
    """The run and its surroundings."""

    work: Path
    steps: int
    environment: dict[str, str]
    rng: random.Random
    starts: list[Start] = field(default_factory=list)
    begun_at: int = 0
    """The last step before the newest start."""

    @property
    def folder(self) -> Path:
        return self.work / "runs" / "one"

    @property
    def tmp(self) -> Path:
        return self.work / "tmp"

    @property
    def now(self) -> Start:
        """The newest start."""
        return self.starts[-1]

    def command(self, name: str = "one") -> list[str]:
        return [
            *(sys.executable, str(LAUNCHER), *SMALL, f"--data_path={self.work / 'motion'}", f"--name={name}"),
            *("--width=192", "--gradient_accumulation_steps=2"),  # slow enough for a second start to take few steps
            *("--include=localhost:0,1", "--batch_size=4", "--mixed_precision=no", f"--total_iter={self.steps}"),
            *("--save_every=50", f"--eval_every={self.steps // 2}", "--resume", f"--out={self.work / 'runs'}"),
        ]

    def start(self) -> None:
        self.begun_at = self.step()
        self.starts.append(Start(self.command(), self.work, self.environment, self.rng.random() < 0.5))

    def step(self) -> int:
        """Returns the last logged step."""
        with suppress(OSError):
            lines = (self.folder / "metrics.jsonl").read_bytes().split(b"\n")
            return len(lines) - 1  # every step is logged
        return 0

    def is_far_from_end(self) -> bool:
        """Returns whether the run's own disk may be full for a second: only its last save must not fail."""
        return self.work.is_mount() and self.steps - self.step() > 100

    def wait(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + STEP_LIMIT
        while not condition():
            if self.now.process.poll() is not None:
                raise WrongError(f"{what}: the run ended with {self.now.process.returncode}: {self.now.said()}")
            if time.monotonic() > deadline:
                raise WrongError(f"{what}: waited in vain: {self.now.said()}")
            time.sleep(0.01)

    def wait_for_step(self, step: int, what: str) -> None:
        self.wait(lambda: self.step() >= step, what)

    def check_end(self, status: int, what: str) -> None:
        """Waits for the end of the newest start; no process of it may be left."""
        try:
            ended = self.now.process.wait(STEP_LIMIT)
        except subprocess.TimeoutExpired:
            raise WrongError(f"{what}: it does not end: {self.now.said()}") from None
        left = self.now.processes()
        if ended != status or left:
            raise WrongError(f"{what}: status {ended}, left {left}: {self.now.said()}")

    def close(self) -> None:
        for start in self.starts:
            for process in start.processes():
                with suppress(psutil.Error):
                    process.kill()
            start.process.wait()


@dataclass(frozen=True)
class Disturbance:
    """An event that disturbs a run; `happen` returns whether the run must end by it, with status 75."""

    name: str
    happen: Callable[[Run], bool]
    needs: Callable[[Run], bool] = lambda run: True
    """Returns whether it can happen now."""


def _signalled(number: signal.Signals, to: str, ends: bool) -> Disturbance:
    def happen(run: Run) -> bool:
        run.now.signal(number, to)
        return ends

    return Disturbance(f"{number.name} to {to if to in ('all', 'rank') else f'the {to}'}", happen)


def _reader_goes(run: Run) -> bool:
    run.now.close_reader()
    return False


def _reader_stalls(run: Run) -> bool:
    run.now.stop_reading()
    return False


def _terminal_hangs_up(run: Run) -> bool:
    run.now.close_reader()
    return True


def _tee_is_interrupted(run: Run) -> bool:
    """Sends Ctrl-C to `launcher | tee log`."""
    run.now.signal(signal.SIGINT, "group")
    run.now.close_reader()
    return True


def _launcher_is_suspended(run: Run) -> bool:
    run.now.process.send_signal(signal.SIGSTOP)
    time.sleep(run.rng.uniform(0.5, 2))
    run.now.process.send_signal(signal.SIGCONT)
    return False


def _started_twice(run: Run) -> bool:
    second = subprocess.run(run.command(), cwd=run.work, env=run.environment, capture_output=True, text=True)
    if second.returncode != ExitStatus.BAD_INPUT:
        raise WrongError(f"a second start: status {second.returncode}: {second.stderr[-500:]}")
    return False


def _disk_is_full(run: Run) -> bool:
    filler = run.folder / "filler"
    _fill(filler)
    time.sleep(run.rng.uniform(0.2, 1))
    filler.unlink()
    return False


def _temporary_folder_fills(run: Run) -> bool:
    _fill(run.tmp / "filler")
    return False


def _temporary_folder_is_cleaned(run: Run) -> bool:
    for entry in run.tmp.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return False


def _removed(name: str) -> Callable[[Run], bool]:
    def happen(run: Run) -> bool:
        shutil.rmtree(run.folder / name, ignore_errors=True)
        return False

    return happen


def _fill(file: Path) -> None:
    with suppress(OSError), file.open("wb", buffering=0) as content:
        for size in (1 << 16, 1):
            with suppress(OSError):
                while True:
                    content.write(b"x" * size)


DISTURBANCES = (
    *(
        _signalled(number, to, ends=True)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        for to in ("launcher", "group", "all", "rank")
    ),
    *(_signalled(signal.SIGUSR1, to, ends=False) for to in ("launcher", "group", "all", "rank")),
    *(_signalled(signal.SIGUSR2, to, ends=False) for to in ("launcher", "all")),
    _signalled(signal.SIGWINCH, "all", ends=False),
    Disturbance("the pipe's reader goes", _reader_goes, lambda run: not run.now.on_terminal and run.now.is_read),
    Disturbance("the pipe's reader stands still", _reader_stalls, lambda run: not run.now.on_terminal),
    Disturbance(
        "Ctrl-C at the run and its tee", _tee_is_interrupted, lambda run: not run.now.on_terminal and run.now.is_read
    ),
    Disturbance("the terminal hangs up", _terminal_hangs_up, lambda run: run.now.on_terminal),
    Disturbance("the launcher is suspended", _launcher_is_suspended),
    Disturbance("it is started twice", _started_twice),
    Disturbance("the run's disk is full for a while", _disk_is_full, lambda run: run.is_far_from_end()),
    Disturbance("the temporary folder fills up", _temporary_folder_fills, lambda run: run.tmp.is_mount()),
    Disturbance("the temporary folder is cleaned", _temporary_folder_is_cleaned),
    Disturbance("TensorBoard's folder is removed", _removed("tensorboard")),
    Disturbance("the folder of scores is removed", _removed("eval")),
)


@contextmanager
def small_disks(work: Path) -> Iterator[None]:
    """Gives runs and temporary files disks of their own, if this process may mount them."""
    mounted = []
    for folder, size in ((work, "400m"), (work / "tmp", "512k")):
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if not subprocess.run(command, capture_output=True).returncode:
            mounted.append(folder)
    try:
        yield
    finally:
        for folder in reversed(mounted):
            subprocess.run(["umount", "-l", str(folder)], check=True)


def disturb(work: Path, steps: int, count: int, seed: int, only: str = "", say: Callable[[str], None] = print) -> None:
    """Disturbs a run `count` times; raises WrongError if that does harm.

    Args:
        work: an empty folder.
        only: choose among disturbances whose names contain this.
    """
    rng = random.Random(seed)
    write_demo_motion(work / "motion", clips=6, frames=160)
    environment = bare_environment(
        work, TMPDIR=str(work / "tmp"), DS_ACCELERATOR="cpu", LOCAL_SIZE="2", OMP_NUM_THREADS="1"
    )
    run = Run(work, steps, environment, rng)
    reference = subprocess.run(run.command("reference"), cwd=work, env=environment, capture_output=True, text=True)
    if reference.returncode:
        raise WrongError(f"the undisturbed run: status {reference.returncode}: {reference.stderr[-2000:]}")
    planned = sorted(rng.sample(range(3, steps - steps // 8), count))
    known = [one for one in DISTURBANCES if only in one.name]
    left: list[Disturbance] = []
    try:
        run.start()
        for number, step in enumerate(planned, 1):
            left = left or rng.sample(known, len(known))
            run.wait_for_step(max(step, run.begun_at + 1), f"before disturbance {number}")
            chosen = next((one for one in left if one.needs(run)), None) or rng.choice(known[:1])
            if chosen in left:
                left.remove(chosen)
            _happens(run, chosen, f"{number} of {count}", say)
        run.check_end(ExitStatus.DONE, "after all")
        found = of_weights(*(work / "runs" / name / "tokenizer" / "model.safetensors" for name in ("one", "reference")))
        lines, expected = numbers(work / "runs" / "one"), numbers(work / "runs" / "reference")
        found += [f"{len(lines)} lines of {len(expected)}"] * (len(lines) != len(expected))
        found += [f"{a} is not {b}" for a, b in zip(lines, expected, strict=False) if a != b][:1]
        if found:
            raise WrongError(f"unlike the undisturbed run: {found}")
        say(f"{count} disturbances, {len(run.starts)} starts, {len(lines)} steps: losses and weights equal bit for bit")
    finally:
        run.close()


def _happens(run: Run, chosen: Disturbance, number: str, say: Callable[[str], None]) -> None:
    step, began = run.step(), time.monotonic()
    where = "on a terminal" if run.now.on_terminal else "behind a pipe"
    what = f"{number}, at step {step}, {where}: {chosen.name}"
    if chosen.happen(run):
        run.check_end(ExitStatus.STOPPED, what)
        seconds = time.monotonic() - began
        say(f"{what}: ended with 75 after {seconds:.1f} s, at step {run.step()}")
        run.start()
        return
    run.wait_for_step(min(step + 2, run.steps), what)
    say(f"{what}: goes on")


def main(argv: list[str]) -> int:
    """Returns 0 if no event did harm."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.disturbances", description="Disturbs a training run.")
    parser.add_argument("--count", type=int, default=20, help="disturbances")
    parser.add_argument("--steps", type=int, default=400, help="steps of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="choose among those whose name contains this")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="disturbed-") as folder, small_disks(Path(folder)):
        try:
            disturb(Path(folder), args.steps, args.count, args.seed, args.only, lambda text: print(text, flush=True))
        except WrongError as error:
            print(f"WRONG: {error}", flush=True)
            return 1
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    sys.exit(main(sys.argv[1:]))
