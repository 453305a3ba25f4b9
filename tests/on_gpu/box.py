"""The machine that is proved: its GPUs or CPU ranks, its time, and the commands that a check runs on it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from ds_rvqvae.data.demo import write_demo_motion
from ds_rvqvae.files import read_json
from ds_rvqvae.launch.slots import format_include
from tests.on_gpu.claims import CheckError
from tests.on_gpu.rehearsal import Rehearsal
from tests.ranks import ROOT, free_port, marked_processes
from tests.train.small import SMALL

FAULTS = Path(__file__).with_name("faults")
"""A folder whose `sitecustomize.py` gives a rank a fault."""
MARK = "DS_RVQVAE_ON_GPU"
"""Environment variable by which all processes of a command are known."""


UNSET = (
    "DS_ACCELERATOR", "LOCAL_SIZE", "CUDA_VISIBLE_DEVICES", "RANK", "LOCAL_RANK", "WORLD_SIZE", "NCCL_P2P_DISABLE",
    "NCCL_DEBUG", "CUDA_LAUNCH_BLOCKING", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF",
)  # fmt: skip
"""Variables of the caller that would change places, figures or what is printed."""


class OutOfTimeError(Exception):
    """The time of a check, or of all checks, is over."""


@dataclass
class Ran:
    """A command that has ended."""

    status: int
    out: str
    err: str
    seconds: float
    left: list[str] = field(default_factory=list)
    """Processes of it that were still there after it had ended."""

    @property
    def said(self) -> list[str]:
        """Lines on standard output and standard error."""
        return [*self.out.splitlines(), *self.err.splitlines()]

    def reason(self) -> str:
        """Returns the line that says why it failed."""
        errors = [line for line in self.err.splitlines() if line.startswith(("error:", "training failed:"))]
        return (errors or [line for line in self.said if line.strip()] or ["it said nothing"])[-1][:300]


class Running:
    """A command that runs, in a session of its own."""

    def __init__(self, box: "Box", command: Sequence[str], environment: dict[str, str]) -> None:
        box.count += 1
        self.box, self.mark, self.began = box, f"{os.getpid()}-{box.count}", time.monotonic()
        log = box.logs / f"{box.count:03}-{box.current}"
        self.out, self.err = log.with_suffix(".out.txt"), log.with_suffix(".err.txt")
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [*command],
                cwd=box.work,
                env={**environment, MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        box.running.append(self)

    def processes(self) -> list[psutil.Process]:
        """Returns all processes that belong to the command and are alive."""
        return marked_processes(MARK, self.mark)

    def ranks(self) -> list[psutil.Process]:
        """Returns its ranks in their order, as far as they run."""
        found = {}
        for process in self.processes():
            with suppress(psutil.Error):
                local = [word.partition("=")[2] for word in process.cmdline() if word.startswith("--local_rank=")]
                parent = process.parent()
                # Workers that load data have the command line of their rank.
                if local and parent is not None and "deepspeed.launcher.launch" in parent.cmdline():
                    found[int(local[0])] = process
        return [found[rank] for rank in sorted(found)]

    def said(self) -> str:
        return self.err.read_text(errors="replace")

    def wait_until(self, condition: Callable[[], Any], what: str) -> None:
        """Waits for a condition while the command runs.

        Raises:
            CheckError: it ended before.
            OutOfTimeError: the check's time is over.
        """
        while not condition():
            if self.process.poll() is not None:
                raise CheckError(f"ended with {self.process.returncode} before {what}: {self.wait().reason()}")
            self.box.check_time()
            time.sleep(0.05)

    def wait_after(self, words: str) -> tuple[Ran, float]:
        """Waits for its end; returns it with the seconds from its first line with these words to its end."""
        said_at = None
        while self.process.poll() is None:
            if said_at is None and words in self.said():
                said_at = time.monotonic()
            self.box.check_time()
            time.sleep(0.05)
        ended = time.monotonic()
        return self.wait(), ended - (said_at or ended)

    def wait(self) -> Ran:
        """Waits for its end; raises OutOfTimeError if the check's time is over before."""
        try:
            self.process.wait(max(0.0, self.box.until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()
            raise OutOfTimeError from None
        seconds = time.monotonic() - self.began
        left = self.processes()
        if left:  # a process that is just ending is none that stays
            left = psutil.wait_procs(left, timeout=5)[1]
        names = []
        for process in left:
            with suppress(psutil.Error):
                names.append(f"{process.pid} {process.name()}")
        self.kill()
        return Ran(self.process.returncode, self.out.read_text(errors="replace"), self.said(), seconds, names)

    def kill(self) -> None:
        """Ends every process of the command at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for process in self.processes():
            with suppress(psutil.Error):
                process.kill()
        with suppress(subprocess.TimeoutExpired):  # a process that hangs in a driver does not end
            self.process.wait(10)
        if self in self.box.running:
            self.box.running.remove(self)


@dataclass
class Box:
    """The machine, the settings of the checks, and what earlier checks have left for later ones."""

    slots: list[int]
    work: Path
    """A folder for motion, runs and caches."""
    logs: Path
    """A folder for what the commands print."""
    rehearsal: Rehearsal | None = None
    until: float = 0.0
    """When the present check's time is over, by the monotonic clock."""
    current: str = "start"
    count: int = 0
    running: list[Running] = field(default_factory=list)
    kept: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    """Added to the environment of all commands from here on."""

    @property
    def on_gpu(self) -> bool:
        return self.rehearsal is None

    def steps(self, on_gpu: int, on_cpu: int) -> int:
        return on_gpu if self.on_gpu else on_cpu

    def include(self, slots: Sequence[int] | None = None) -> str:
        return f"--include={format_include(self.slots if slots is None else slots)}"

    @property
    def motion(self) -> Path:
        """Made motion, as large as the checks need."""
        folder = self.work / "motion"
        if not folder.exists():
            clips, frames = (24, 2000) if self.on_gpu else (6, 160)
            write_demo_motion(self.work / "motion.unfinished", clips, frames)
            (self.work / "motion.unfinished").rename(folder)
        return folder

    @property
    def environment(self) -> dict[str, str]:
        """Variables of all commands."""
        kept = {name: value for name, value in os.environ.items() if name not in UNSET}
        path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH")]))
        own = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "DS_RVQVAE_CACHE": str(self.work / "cache")}
        order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if self.on_gpu else {}
        return {**kept, **own, **order, **self.variables, **(self.rehearsal.environment if self.rehearsal else {})}

    def start(self, *command: str, **variables: str) -> Running:
        """Starts any command with the variables of all commands and some more."""
        self.check_time()
        return Running(self, command, {**self.environment, **variables})

    def command(self, *words: str) -> list[str]:
        """Returns a `ds-rvqvae` command."""
        return [sys.executable, "-m", "ds_rvqvae.cli", *words]

    def ds(self, *words: str, **variables: str) -> Ran:
        """Runs a `ds-rvqvae` command to its end."""
        return self.start(*self.command(*words), **variables).wait()

    def json_of(self, *words: str, **variables: str) -> Any:
        """Runs a `ds-rvqvae` command that prints JSON; raises CheckError if it fails."""
        ran = self.ds(*words, **variables)
        if ran.status != 0:
            raise CheckError(f"ds-rvqvae {' '.join(words[:2])}: status {ran.status}: {ran.reason()}")
        return json.loads(ran.out)

    def settings(self, *flags: str) -> list[str]:
        """Returns the training flags of the checks' own size; later flags win."""
        size = (
            ["--profile=baseline", "--window_stride=8", "--eval_every=100000", "--save_every=100000"]
            if self.on_gpu
            else SMALL
        )
        batch = [] if self.on_gpu else ["--batch_size=4"]
        return [*size, *batch, f"--data_path={self.motion}", *flags]

    def training(self, name: str, *flags: str, slots: Sequence[int] | None = None) -> list[str]:
        """Returns the command of a run."""
        return [
            *self.command("train", self.include(slots)),
            *self.settings(f"--out={self.runs}", f"--name={name}", "--log_every=1", *flags),
        ]

    @property
    def runs(self) -> Path:
        return self.work / "runs"

    def train(self, name: str, *flags: str, slots: Sequence[int] | None = None, **variables: str) -> Ran:
        """Trains to the end, through the launcher."""
        return self.start(*self.training(name, *flags, slots=slots), **variables).wait()

    def trained(self, name: str, *flags: str, slots: Sequence[int] | None = None, **variables: str) -> list[dict]:
        """Trains and returns the lines of metrics.jsonl; raises CheckError if it fails."""
        ran = self.train(name, *flags, slots=slots, **variables)
        if ran.status != 0:
            raise CheckError(f"the run {name}: status {ran.status}: {ran.reason()}")
        return self.metrics(name)

    def metrics(self, name: str) -> list[dict]:
        """The lines of a run's metrics.jsonl so far; a line that is being written is left out."""
        file = self.runs / name / "metrics.jsonl"
        lines = file.read_text().split("\n")[:-1] if file.is_file() else []
        return [json.loads(line) for line in lines]

    def summary(self, name: str) -> dict[str, Any]:
        """A run's memory.json."""
        found: dict[str, Any] = read_json(self.runs / name / "memory.json")
        return found

    def seconds(self) -> float:
        """The monotonic clock."""
        return time.monotonic()

    def probe(
        self,
        name: str,
        *,
        slots: Sequence[int] | None = None,
        sees: Sequence[int] | None = None,
        variables: dict[str, str] | None = None,
        **arguments: Any,
    ) -> list[Any]:
        """Runs a function of tests.on_gpu.probes, one process per slot; returns what each process found.

        Args:
            slots: the first of the box by default.
            sees: the GPUs that CUDA shows to every process; `slots` by default.
            variables: added to the environment.
            arguments: those of the function.
        """
        ranks = self.start_probe(name, slots or self.slots[:1], arguments, variables, sees)
        found = []
        for rank, file in ranks:
            ran = rank.wait()
            if ran.status != 0:
                for other, _ in ranks:
                    other.kill()
                raise CheckError(f"the probe {name}: status {ran.status}: {ran.reason()}")
            found.append(json.loads(file.read_text()))
        return found

    def start_probe(
        self,
        name: str,
        slots: Sequence[int],
        arguments: dict[str, Any],
        variables: dict[str, str] | None = None,
        sees: Sequence[int] | None = None,
    ) -> list[tuple[Running, Path]]:
        """Starts the processes of a probe; each will write its result into its file."""
        shared = {"WORLD_SIZE": str(len(slots)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        if self.on_gpu:
            shared["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, sees or slots))
        else:
            shared["LOCAL_SIZE"] = str(len(slots))
        started = []
        for rank in range(len(slots)):
            file = self.work / f"probe-{self.count}.json"
            command = [sys.executable, "-m", "tests.on_gpu.probes", name, json.dumps(arguments), str(file)]
            own = {**shared, **(variables or {}), "RANK": str(rank), "LOCAL_RANK": str(rank)}
            started.append((self.start(*command, **own), file))
        return started

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Returns what `make` returned, or raises what it raised, when it was first called with this name."""
        if name not in self.kept:
            try:
                self.kept[name] = make()
            except CheckError as error:
                self.kept[name] = error
            except OutOfTimeError:
                self.kept[name] = CheckError(f"the {name} did not end within its time in the check {self.current}")
                raise
        if isinstance(self.kept[name], CheckError):
            raise self.kept[name]
        return self.kept[name]

    def check_time(self) -> None:
        """Raises OutOfTimeError if the present check's time is over."""
        if time.monotonic() >= self.until:
            raise OutOfTimeError

    def end_all(self) -> None:
        """Ends every process that is left."""
        for running in list(self.running):
            running.kill()
