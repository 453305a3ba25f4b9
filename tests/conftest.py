"""Fixtures for all tests: a cache of their own, demo motion, real motion if available, simulated GPUs."""

import os
import signal
from pathlib import Path

import pytest

from ds_rvqvae.data.demo import write_demo_motion
from ds_rvqvae.data.store.store import Store
from tests.data.store.looked_at import make_store
from tests.gpu.stand_in import StandIn, compile_library

# Background processes of a shell ignore SIGINT, and processes under nohup SIGHUP; the tests' processes would inherit
# this.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """The cache folder of stores, empty for every test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("DS_RVQVAE_CACHE", str(folder))
    monkeypatch.delenv("DS_RVQVAE_DATA", raising=False)
    return folder


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory) -> Path:
    """Demo motion: six BEAT2 clips of 160 frames; not to be written to."""
    return write_demo_motion(tmp_path_factory.mktemp("motion") / "demo", clips=6, frames=160)


@pytest.fixture(scope="session")
def demo_store(tmp_path_factory, demo_folder) -> Store:
    """A store of the demo motion, with nothing cut; not to be written to."""
    return make_store(tmp_path_factory.mktemp("store"), demo_folder)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real motion; tests that use it are marked `real_data`."""
    folder = os.environ.get("DS_RVQVAE_TEST_DATA")
    if not folder:
        pytest.skip("DS_RVQVAE_TEST_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def stand_in_library(tmp_path_factory) -> Path:
    """A stand-in for NVIDIA's NVML library, compiled with the system's C compiler."""
    library = compile_library(tmp_path_factory.mktemp("nvml"))
    if library is None:
        pytest.skip("no C compiler for the stand-in of NVML")
    return library


@pytest.fixture
def stand_in(stand_in_library, tmp_path) -> StandIn:
    """Eight idle RTX 4090s, until told otherwise."""
    played = StandIn(stand_in_library, tmp_path / "cards.txt")
    played.play()
    return played
