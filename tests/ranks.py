"""Several real processes over gloo, started as the launcher does."""

import atexit
import contextlib
import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

ROOT = Path(__file__).resolve().parent.parent
CPU_KIND = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "DS_RVQVAE_CPU_BF16")
"""Variables that simulate another processor."""
_RANKS_IMPORT = [
    *("ds_rvqvae.train.rank", "ds_rvqvae.train.trainer", "deepspeed.runtime.zero.muon.muon_optimizer"),
    *("torch._dynamo", "torch._inductor.compile_fx", "torch.utils.tensorboard", "safetensors.torch"),
    *("ds_rvqvae.viz.reconstruction", "ds_rvqvae.runs.event_files"),
]
"""Modules that every rank imports: half of the time of a small training."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def marked_processes(variable: str, mark: str) -> list[psutil.Process]:
    """Returns the living processes in whose environment a variable has this value: all that a marked one started."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(variable) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def bare_environment(folder: Path, **more: str) -> dict[str, str]:
    """The environment of a user who has just logged in, with a home and a cache in `folder`."""
    (folder / "home").mkdir(exist_ok=True)
    kind = {name: os.environ[name] for name in CPU_KIND if name in os.environ}
    plain = {"PATH": os.environ["PATH"], "HOME": str(folder / "home"), "DS_RVQVAE_CACHE": str(folder / "cache")}
    return {**plain, **kind, "PYTHONPATH": str(ROOT), **more}


_OF_A_START = (*CPU_KIND, "OMP_NUM_THREADS", "DS_ACCELERATOR", "LD_LIBRARY_PATH")
"""Variables that are read when a program starts or imports; a rank that has others needs a new interpreter."""
_SHARED = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
_started: dict[str, str] = {}
"""The environment of the process that ranks are forked from, once there is one."""


class Rank:
    """A process that runs `python COMMAND`, forked from one that has imported the modules of all ranks.

    Unlike a new interpreter, it hashes strings as the other ranks do, does not run `atexit`, and says nothing of its
    imports; tests of each kind run ranks in new interpreters too. It has the methods of `subprocess.Popen` that the
    tests use.
    """

    alive: weakref.WeakSet["Rank"] = weakref.WeakSet()

    def __init__(self, command: list[str], environment: dict[str, str]):
        said, name = tempfile.mkstemp(prefix="rank-")
        os.close(said)
        self._said = Path(name)
        context = multiprocessing.get_context("forkserver")
        if not _started:
            context.set_forkserver_preload(_RANKS_IMPORT)
            _started.update({**os.environ, **_SHARED})
            with mock.patch.dict(os.environ, _SHARED):
                forkserver.ensure_running()
        self._process: ForkServerProcess = context.Process(
            target=_run_rank, args=(command, environment, str(Path.cwd()), name)
        )
        self._process.start()
        self.pid = self._process.pid
        self.returncode: int | None = None
        self.alive.add(self)

    def poll(self) -> int | None:
        self.returncode = self._process.exitcode
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.poll() is None:
            self.kill()
            raise subprocess.TimeoutExpired(f"rank {self.pid}", timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def said(self) -> str:
        """Returns its output so far."""
        return self._said.read_text()

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        self.wait(timeout)
        return self.said(), None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            assert self.pid is not None
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __del__(self) -> None:
        self._said.unlink(missing_ok=True)


@atexit.register
def _end_ranks() -> None:
    """Before multiprocessing waits for them."""
    for rank in Rank.alive:
        rank.kill()


def _run_rank(command: list[str], environment: dict[str, str], folder: str, said: str) -> None:
    """Becomes what `python COMMAND` would be."""
    output = os.open(said, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    time.tzset()
    flag, what, *arguments = command
    sys.argv = [what if flag == "-m" else flag, *arguments]
    if flag == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<rank>", "exec"), {"__name__": "__main__"})


def _new_interpreter(command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    line = [sys.executable, *command]
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def start_ranks(
    world_size: int, command: list[str], new_interpreters: bool = False
) -> list[Rank | subprocess.Popen[str]]:
    """Starts `python command` as `world_size` ranks on this machine's CPUs.

    Args:
        new_interpreters: rather than forked ranks; also where the environment needs them.
    """
    shared = {
        "WORLD_SIZE": str(world_size),
        "LOCAL_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        **_SHARED,
    }
    environment = {**os.environ, **shared}
    if _started and any(environment.get(name) != _started.get(name) for name in _OF_A_START):
        new_interpreters = True
    start = _new_interpreter if new_interpreters else Rank
    return [start(command, {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(world_size)]


def finish(ranks: list[Rank | subprocess.Popen[str]], seconds: float = 300) -> list[str]:
    """Waits for all ranks and returns what each printed; fails if one did not exit with 0."""
    try:
        printed = [rank.communicate(timeout=seconds)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for index, rank in enumerate(ranks):
        assert rank.returncode == 0, f"rank {index}: status {rank.returncode}\n{printed[index]}"
    return printed


def train_ranks(world_size: int, *flags: str, new_interpreters: bool = False) -> list[str]:
    """Runs `python -m ds_rvqvae.train` on `world_size` ranks."""
    return finish(start_ranks(world_size, ["-m", "ds_rvqvae.train", *flags], new_interpreters))


def run_ranks(
    world_size: int,
    function: Callable[..., Any],
    results: Path,
    /,
    **arguments: Any,
) -> list[Any]:
    """Runs a top-level function on `world_size` ranks and returns what each returned, through JSON."""
    code = (
        "import importlib, json, os, sys, pathlib\n"
        "module, name, folder, arguments = sys.argv[1:]\n"
        "result = getattr(importlib.import_module(module), name)(**json.loads(arguments))\n"
        "pathlib.Path(folder, f'rank{os.environ[\"RANK\"]}.json').write_text(json.dumps(result))\n"
        "import torch.distributed as dist\n"
        "dist.barrier()\n"
    )
    results.mkdir(parents=True, exist_ok=True)
    module = Path(sys.modules[function.__module__].__file__).resolve().relative_to(ROOT).with_suffix("")
    name = ".".join(module.parts)
    command = ["-c", code, name, function.__name__, str(results), json.dumps(arguments)]
    finish(start_ranks(world_size, command))
    return [json.loads((results / f"rank{rank}.json").read_text()) for rank in range(world_size)]
