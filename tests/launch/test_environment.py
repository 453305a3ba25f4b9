"""The shell part of the launcher, up to where it would install."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.ranks import ROOT
from tests.without_locks import can_refuse


@pytest.mark.skipif(not can_refuse(), reason="the kernel lets no process be refused its locks")
@pytest.mark.skipif(not shutil.which("flock"), reason="no flock command")
@pytest.mark.parametrize("refused", [False, True])
def test_where_the_file_system_refuses_flock_it_goes_on_with_a_line(tmp_path, refused):
    (tmp_path / "launch").mkdir()
    for name in ("launch/environment.sh", "pyproject.toml", "setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    for name in ("python3", "python3.12", "python3.11", "python3.10"):  # too old, so that nothing is installed
        (tmp_path / "bin" / name).write_text("#!/bin/sh\necho Python 3.8.1; exit 1\n")
        (tmp_path / "bin" / name).chmod(0o755)
    command = ["bash", "-euo", "pipefail", "-c", f"source {tmp_path}/launch/environment.sh; echo ready"]
    if refused:
        command = [sys.executable, "-m", "tests.without_locks", "flock", *command]
    variables = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    environment = {**variables, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    *said, last = ended.stderr.splitlines()
    assert (ended.returncode, last.partition("; ")[0]) == (2, "environment: needs Python 3.10, 3.11 or 3.12")
    line = f"environment: {tmp_path} cannot be locked (Function not implemented); let one start end its install before"
    assert said == ([f"{line} the next"] if refused else [])


PYTHON = """#!/bin/sh
# Makes environments of itself, at once.
if [ "$1" = -I ]; then shift; fi
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi
if [ "$2" = --say ]; then places=$(readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2); echo "$places" >"$3"; fi
"""


@pytest.mark.parametrize("streams", ["", ">/dev/full 2>&1", "0<&- 1>&- 2>&-", "2>&1 | true"])
def test_messages_that_cannot_be_printed_end_no_start(tmp_path, streams):
    for name in ("launch/environment.sh", "launch/train_8x4090.sh", "pyproject.toml", "setup.py", "constraints.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text(PYTHON)
    (tmp_path / "bin" / "python3").chmod(0o755)
    variables = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    environment = {**variables, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    command = f"set -o pipefail; bash launch/train_8x4090.sh --say {tmp_path}/said {streams}"
    ended = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0
    assert ended.stderr.count("environment: ") == (0 if streams else 2)
    assert (tmp_path / ".venv" / "installed").exists()
    places = (tmp_path / "said").read_text().split()
    assert len(places) == 3 and (places == ["/dev/null"] * 3) is ("1>&-" in streams)


def test_a_clone_for_windows_has_scripts_that_run_here(tmp_path):
    cloned = subprocess.run(
        ["git", "clone", "-q", "-c", "core.autocrlf=true", str(ROOT), str(tmp_path / "a clone")], capture_output=True
    )
    if cloned.returncode:
        pytest.skip("the project is no git repository")
    line = ["bash", tmp_path / "a clone" / "launch" / "train_8x4090.sh", "--help"]
    variables = {**os.environ, "VIRTUAL_ENV": sys.prefix, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(line, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0 and "--require_idle" in ran.stdout, ran.stderr
