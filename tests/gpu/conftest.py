"""A stand-in for NVIDIA's NVML library, compiled with the system's C compiler."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.gpu.stand_in import StandIn


@pytest.fixture(scope="session")
def stand_in_library(tmp_path_factory) -> Path:
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
    if compiler is None:
        pytest.skip("no C compiler for the stand-in of NVML")
    library = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("nvml_stand_in.c")
    subprocess.run([compiler, "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


@pytest.fixture
def stand_in(stand_in_library, tmp_path) -> StandIn:
    played = StandIn(stand_in_library, tmp_path / "cards.txt")
    played.play()
    return played
