"""Several real processes over gloo, as the launcher would start them."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_ranks(world_size: int, command: list[str]) -> list[subprocess.Popen]:
    """Starts `python command` as `world_size` ranks on this machine's CPUs."""
    shared = {
        "WORLD_SIZE": str(world_size),
        "LOCAL_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]


def finish(ranks: list[subprocess.Popen], seconds: float = 300) -> list[str]:
    """Waits for all ranks and gives what each printed; fails where one did not exit with 0."""
    try:
        printed = [rank.communicate(timeout=seconds)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for index, rank in enumerate(ranks):
        assert rank.returncode == 0, f"rank {index}: status {rank.returncode}\n{printed[index]}"
    return printed


def train_ranks(world_size: int, *flags: str) -> list[str]:
    """Runs `python -m ds_rvqvae.train` on `world_size` ranks."""
    return finish(start_ranks(world_size, ["-m", "ds_rvqvae.train", *flags]))


def run_ranks(world_size: int, function: Callable[..., Any], results: Path, /, **arguments: Any) -> list[Any]:
    """Runs a top-level function on `world_size` ranks and gives what each returned; all of it as JSON."""
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
    finish(start_ranks(world_size, ["-c", code, name, function.__name__, str(results), json.dumps(arguments)]))
    return [json.loads((results / f"rank{rank}.json").read_text()) for rank in range(world_size)]
