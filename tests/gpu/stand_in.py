"""The machine for tests of the monitor: GPUs simulated by `nvml_stand_in.c`, which the real pynvml loads."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GPU_IS_LOST, NOT_SUPPORTED, NO_PERMISSION, VERSION_MISMATCH = 15, 3, 4, 18
"""NVML's error numbers."""


def command(*flags: object) -> list[str]:
    """The monitor's command line."""
    return [sys.executable, str(ROOT / "launch" / "monitor_gpu.py"), *map(str, flags)]


def compile_library(folder: Path) -> Path | None:
    """The stand-in for NVIDIA's NVML library, built by the system's C compiler; None without a compiler."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
    if compiler is None:
        return None
    library = folder / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("nvml_stand_in.c")
    subprocess.run([compiler, "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


@dataclass
class StandIn:
    """The library, and the file that lists its simulated GPUs."""

    library: Path
    file: Path

    def play(self, *lines: str) -> None:
        """Simulates, from the next call on, eight idle RTX 4090s changed by `lines` (see nvml_stand_in.c)."""
        unfinished = self.file.with_suffix(".unfinished")
        unfinished.write_bytes("".join(f"{line}\n" for line in lines).encode(errors="surrogateescape"))
        unfinished.replace(self.file)

    @property
    def environment(self) -> dict[str, str]:
        hidden = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        added = {"LD_LIBRARY_PATH": str(self.library.parent), "NVML_STAND_IN": str(self.file), "TERM": "xterm-256color"}
        return {**environment, **added}

    def python(self, code: str) -> str:
        """Runs a Python program that has these GPUs; returns its output."""
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=self.environment, check=True, text=True, capture_output=True).stdout
