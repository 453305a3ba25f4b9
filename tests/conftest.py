"""What all tests share: a cache of their own, demo motion, and the real motion where it is at hand."""

import os
from pathlib import Path

import pytest

from ds_rvqvae.data.demo import write_demo_motion


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
def real_data() -> Path:
    """The folder of real motion; tests that take it are marked `real_data`."""
    folder = os.environ.get("DS_RVQVAE_TEST_DATA")
    if not folder:
        pytest.skip("DS_RVQVAE_TEST_DATA is not set")
    return Path(folder)
