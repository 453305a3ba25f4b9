"""The installation: the wheel, the pinned versions, and the single version number."""

import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import ds_rvqvae
from ds_rvqvae.config.profile import shipped_profiles

ROOT = Path(__file__).resolve().parent.parent
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy so that nothing is written beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("ds_rvqvae", "ds_configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run(build, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_module_and_every_profile(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    assert {str(file.relative_to(ROOT)) for file in (ROOT / "ds_rvqvae").rglob("*.py")} <= names
    profiles = {f"ds_rvqvae/ds_configs/{file.name}" for file in (ROOT / "ds_configs").glob("*.json")}
    assert profiles <= names and "ds_rvqvae/ds_configs/profile.schema.json" in profiles
    assert "ds-rvqvae = ds_rvqvae.cli:main" in entry_points
    assert "ds_rvqvae/py.typed" in names
    assert not [name for name in names if name.startswith("tests")]


def test_an_installed_wheel_finds_its_profiles_and_trains_from_any_folder(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "from ds_rvqvae.config import profile as p; p.load_profile('large'); print(p.profile_file('large'))\n"
        "from ds_rvqvae.cli import main; raise SystemExit(main(['train', '--demo', '--dry_run']))"
    )
    (tmp_path / "here").mkdir()
    places = {"PYTHONPATH": str(tmp_path / "site"), "DS_RVQVAE_CACHE": str(tmp_path / "cache")}
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "here",
        env={**places, "DS_ACCELERATOR": "cpu", "PATH": "/usr/bin:/bin"},
        check=True,
        capture_output=True,
        text=True,
    )
    file, command = found.stdout.splitlines()
    assert Path(file) == tmp_path / "site" / "ds_rvqvae" / "ds_configs" / "large.json"
    assert "--module ds_rvqvae.train --profile demo" in command and list((tmp_path / "here").iterdir()) == []


def test_the_source_tree_finds_its_profiles():
    assert {path.parent for path in shipped_profiles().values()} == {ROOT / "ds_configs"}


def test_the_version_stands_in_one_place(wheel):
    assert wheel.name.startswith(f"ds_rvqvae-{ds_rvqvae.__version__}-")


def test_the_dev_extra_contains_all_others():
    requirements = [Requirement(text) for text in requires("ds_rvqvae")]
    extras = {}
    for extra in ("bvh", "hub", "render", "dev"):
        chosen = [item for item in requirements if item.marker and item.marker.evaluate({"extra": extra})]
        extras[extra] = {item.name for item in chosen}
    assert extras["hub"] | extras["bvh"] | extras["render"] <= extras["dev"]
    assert {"pytest", "ruff"} <= extras["dev"]


def test_everything_required_is_pinned_to_a_version_that_fits():
    pins = {re.sub(r"[-_.]+", "-", name).lower(): pin for name, pin in PINS.items()}
    for requirement in map(Requirement, requires("ds_rvqvae")):
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert requirement.specifier.contains(pins[name]), requirement
    assert pins["torch"] == "2.13.0"


def test_the_environment_of_the_tests_has_the_pinned_versions():
    for name in ("torch", "deepspeed", "numpy", "pydantic", "pytest"):
        assert version(name).partition("+")[0] == PINS[name], name
