"""Sends every signal to every process of a run: on a terminal, after the terminal has gone, and behind `tee`.

`python -m tests.e2e.signals` prints one row per signal and fails if one is not as it should be. The next row continues
a run that a signal has stopped, so every row also shows that `--resume` works after the row before.
"""

import argparse
import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from ds_rvqvae.data.demo import write_demo_motion
from ds_rvqvae.runs.checkpoints import damage_of
from ds_rvqvae.runs.folder import RANK_LAUNCHER
from tests.ranks import bare_environment, marked_processes
from tests.train.small import EXACT, SMALL, read_metrics

LAUNCHER = Path(__file__).resolve().parents[2] / "launch" / "train_8x4090.py"
MARK = "DS_RVQVAE_SIGNALS"
"""Environment variable by which all processes of a run are known, whoever their parent is."""
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
HARMLESS = (signal.SIGUSR1, signal.SIGUSR2)
TARGETS = ("launcher", "process group", "all processes", "one rank", "runner", "launch.py")
SAVING_TARGETS = TARGETS[:4]
"""Targets where SIGUSR1 saves; sent to deepspeed's own processes, it does nothing."""
SURROUNDINGS = ("terminal", "terminal gone", "tee")
START_LIMIT, TRAINING_LIMIT, END_LIMIT = 240.0, 900.0, 60.0
"""Seconds that are allowed, on a busy machine."""
FLAGS = [*SMALL, *EXACT, "--batch_size=4", "--resume", "--keep_checkpoints=9"]


@dataclass
class Row:
    """The result of one signal."""

    number: int
    target: str
    around: str
    status: int | None = None
    """Exit status of the launcher; None if the run continued."""
    at_step: int = 0
    """The last step that was logged when the signal was sent."""
    checkpoint: int | None = None
    """The newest checkpoint's step, if the signal made one."""
    seconds: float = 0.0
    """Time to the end, or to the checkpoint."""
    orphans: int = 0
    faults: list[str] = field(default_factory=list)

    def cells(self) -> list[str]:
        status = "goes on" if self.status is None else str(self.status)
        checkpoint = "none" if self.checkpoint is None else f"step {self.checkpoint}"
        number = signal.Signals(self.number).name
        told = [status, str(self.at_step), checkpoint, f"{self.seconds:.1f}", str(self.orphans)]
        return [number, self.target, self.around, *told, "; ".join(self.faults) or "as it should be"]


HEADINGS = ["signal", "to", "output", "status", "sent at step", "checkpoint", "seconds", "orphans", ""]


class Played:
    """A launcher with ranks on this machine's CPUs, on a terminal or behind a pipe.

    Args:
        around: one of `SURROUNDINGS`. In `terminal gone` the terminal of the run is closed after its first steps; the
            run gets no SIGHUP unless it is `attached`.
        attached: the launcher leads the terminal's session, as after `exec` in a login shell.
        ignoring: signals that the launcher ignores from its start.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        around: str,
        *flags: str,
        ranks: int = 2,
        attached: bool = False,
        ignoring: Sequence[int] = (),
    ) -> None:
        self.run, self.around, self.number_of_ranks = folder / "runs" / name, around, ranks
        self._said, self.tee, self._master, self._hung_up = bytearray(), None, None, False
        motion = folder / "motion"
        if not motion.is_dir():
            write_demo_motion(motion, clips=6, frames=160)
        self._mark = f"{os.getpid()}-{time.monotonic_ns()}"
        environment = bare_environment(folder, DS_ACCELERATOR="cpu", LOCAL_SIZE=str(ranks), OMP_NUM_THREADS="1")
        self._environment = {**environment, MARK: self._mark}
        command = [sys.executable, str(LAUNCHER), *FLAGS, f"--data_path={motion}", f"--name={name}", *flags]
        command += [f"--include=localhost:{','.join(map(str, range(ranks)))}"]

        def prepare() -> None:
            for number in ignoring:
                signal.signal(number, signal.SIG_IGN)
            if around == "tee":
                os.setpgid(0, 0)  # a job of a shell, which `tee` joins
            else:
                os.setsid()
            if attached:
                fcntl.ioctl(1, termios.TIOCSCTTY, 0)

        if around == "tee":
            reader, output = os.pipe()
        else:
            self._master, output = pty.openpty()
            reader = self._master
        self.launcher = subprocess.Popen(
            command,
            cwd=folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=prepare,
        )
        os.close(output)
        if around == "tee":
            command = ["tee", str(folder / f"tee-{self._mark}")]
            group = self.launcher.pid
            self.tee = subprocess.Popen(
                command, stdin=reader, stdout=subprocess.PIPE, preexec_fn=lambda: os.setpgid(0, group)
            )
            os.close(reader)
            assert self.tee.stdout is not None
            reader = self.tee.stdout.fileno()
        self._reader = threading.Thread(target=self._read, args=(reader,), daemon=True)
        self._reader.start()

    def _read(self, reader: int) -> None:
        with contextlib.suppress(OSError):
            while not self._hung_up:
                if select.select([reader], [], [], 0.05)[0]:
                    text = os.read(reader, 4096)
                    if not text:
                        return
                    self._said += text

    def said(self) -> str:
        """Returns the text that the terminal, or `tee`, has shown."""
        return self._said.decode(errors="replace")

    def hang_up(self) -> None:
        """Closes the terminal."""
        assert self._master is not None
        self._hung_up = True
        self._reader.join()  # a waiting read would keep it open
        os.close(self._master)
        self._master = None

    def processes(self) -> list[psutil.Process]:
        """Returns all its living processes, found by their environment."""
        return marked_processes(MARK, self._mark)

    def ranks(self) -> list[psutil.Process]:
        """Returns the ranks, by number."""
        above = self.find("launch.py")
        return sorted(above.children(), key=lambda rank: int(rank.environ()["RANK"]))

    def find(self, target: str) -> psutil.Process:
        """Returns one process of the run."""
        if target == "launcher":
            return psutil.Process(self.launcher.pid)
        if target == "one rank":
            return self.ranks()[-1]
        (launcher,) = [process for process in self.processes() if RANK_LAUNCHER in process.cmdline()]
        if target == "launch.py":
            return launcher
        parent = launcher.parent()
        assert parent is not None and parent.pid != self.launcher.pid
        return parent

    def send(self, number: int, target: str) -> None:
        """Sends a signal to a target."""
        if target == "process group":
            os.killpg(self.launcher.pid, number)
        elif target == "all processes":
            for process in self.processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
        else:
            self.find(target).send_signal(number)

    def step(self) -> int:
        """Returns the last logged step."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(json.loads((self.run / "metrics.jsonl").read_text().splitlines()[-1])["step"])
        return 0

    def checkpoint(self) -> int:
        """Returns the newest checkpoint's step, or 0 if there is none."""
        with contextlib.suppress(OSError):
            return int((self.run / "checkpoints" / "latest").read_text().removeprefix("global_step"))
        return 0

    def wait_for(self, condition, seconds: float = START_LIMIT) -> bool:
        """Waits until a condition holds or the launcher has ended; returns whether it holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.launcher.poll() is not None or time.monotonic() > deadline:
                return bool(condition())
            time.sleep(0.05)
        return True

    def end(self) -> int:
        """Waits a moment, kills processes that an ended run should not leave, and returns their number."""
        deadline = time.monotonic() + 2.0
        while (left := self.processes()) and time.monotonic() < deadline:
            self.launcher.poll()
            time.sleep(0.1)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.launcher.wait()
        if self.tee is not None:
            self.tee.kill()
            self.tee.wait()
        if self._master is not None:
            self.hang_up()
        return len(left)


def play_stop(folder: Path, number: int, target: str, around: str, ranks: int = 2) -> Row:
    """Continues the run with `ranks` ranks and stops it by a signal."""
    row = Row(number, target, around)
    hangs_up = (number, target, around) == (signal.SIGHUP, "process group", "terminal gone")
    flags = ("--total_iter=100000",)
    played = Played(folder, f"stopped-{ranks}", around, *flags, ranks=ranks, attached=hangs_up)
    try:
        first = played.checkpoint() + 1
        if not played.wait_for(lambda: played.step() >= first + 3):
            row.faults.append(f"did not train: {played.said()[-300:]!r}")
            return row
        if around == "terminal gone" and not hangs_up:
            played.hang_up()
            played.wait_for(lambda: played.step() >= first + 6)
        row.at_step, began = played.step(), time.monotonic()
        if hangs_up:
            played.hang_up()
        else:
            played.send(number, target)
        with contextlib.suppress(subprocess.TimeoutExpired):
            row.status = played.launcher.wait(timeout=END_LIMIT)
        row.seconds, row.checkpoint = time.monotonic() - began, played.checkpoint()
    finally:
        row.orphans = played.end()
    row.faults += _faults_of_stop(row, played, first)
    return row


def _faults_of_stop(row: Row, played: Played, first: int) -> Iterator[str]:
    if row.status != 75:
        yield f"status {row.status}, not 75; it said {played.said()[-300:]!r}"
    steps = [line["step"] for line in read_metrics(played.run)]
    if steps != list(range(1, len(steps) + 1)):
        yield f"steps are missing or twice up to {len(steps)}, from {first} on"
    if row.checkpoint != steps[-1] or steps[-1] < row.at_step:
        yield f"checkpoint of step {row.checkpoint}, but trained to {steps[-1]}"
    elif damage := damage_of(played.run / "checkpoints" / f"global_step{row.checkpoint}"):
        yield damage
    if row.orphans:
        yield "orphans"


def play_harmless(played: Played, number: int, target: str) -> Row:
    """Sends a signal that does not end the run, which must continue."""
    row = Row(number, target, played.around, at_step=played.step())
    saved, began = played.checkpoint(), time.monotonic()
    played.send(number, target)
    saves = number == signal.SIGUSR1 and target in SAVING_TARGETS
    if saves and not played.wait_for(lambda: played.checkpoint() > saved, 30.0):
        row.faults.append("no checkpoint")
    row.seconds = time.monotonic() - began if saves else 0.0
    at = played.step()
    if not played.wait_for(lambda: played.step() > at + 3, 60.0):
        row.faults.append(f"did not go on: {played.said()[-300:]!r}")
    # The launcher passes the signal on, so ranks that also got it themselves may save a second time.
    time.sleep(0.6 if saves else 0.3)
    if played.checkpoint() > saved:
        row.checkpoint = played.checkpoint()
        if not saves:
            row.faults.append("saved unasked")
    row.status = played.launcher.poll()
    if len(played.ranks()) != played.number_of_ranks:
        row.faults.append("a rank is missing")
    return row


def play_all_harmless(folder: Path, around: str, numbers: Sequence[int], targets: Sequence[str]) -> list[Row]:
    """Sends one signal after another to a run of 400 steps, which must end with 0."""
    played = Played(folder, f"harmless-{around.replace(' ', '-')}", around, "--total_iter=400")
    rows: list[Row] = []
    try:
        played.wait_for(lambda: played.step() > 3)
        if around == "terminal gone":
            played.hang_up()
        rows = [play_harmless(played, number, target) for number in numbers for target in targets]
        status: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = played.launcher.wait(timeout=TRAINING_LIMIT)
    finally:
        orphans = played.end()
    if status != 0 or orphans or played.step() != 400:
        rows[-1].faults.append(f"ended with {status} at step {played.step()}, {orphans} orphans")
    return rows


def main(argv: Sequence[str]) -> int:
    """Plays all rows; returns 0 if every one is as it should be."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.signals", description=__doc__.partition("\n")[0])
    parser.add_argument("--numbers", default="SIGTERM,SIGINT,SIGHUP,SIGUSR1,SIGUSR2")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--around", default=",".join(SURROUNDINGS))
    parser.add_argument("--two", default="one rank", help="targets for which the run has two ranks, not one")
    parser.add_argument("--report", type=Path, help="Markdown file to append to")
    args = parser.parse_args(argv)
    numbers = [signal.Signals[name] for name in args.numbers.split(",")]
    targets, surroundings = args.targets.split(","), args.around.split(",")
    rows: list[Row] = []

    def note(row: Row) -> None:
        rows.append(row)
        line = f"| {' | '.join(row.cells())} |"
        print(line, flush=True)
        if args.report:
            with args.report.open("a") as report:
                report.write(f"{line}\n")

    print(f"| {' | '.join(HEADINGS)} |\n|{' --- |' * len(HEADINGS)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="signals-") as folder:
        for around in surroundings:
            harmless = [number for number in numbers if number in HARMLESS]
            for row in play_all_harmless(Path(folder), around, harmless, targets) if harmless else []:
                note(row)
            for number in numbers:
                for target in targets if number in STOPS else []:
                    note(play_stop(Path(folder), number, target, around, ranks=2 if target in args.two else 1))
    wrong = sum(bool(row.faults) for row in rows)
    print(f"{len(rows)} rows, {wrong} not as they should be")
    return 1 if wrong else 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    sys.exit(main(sys.argv[1:]))
