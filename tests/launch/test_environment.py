"""The shell part of the launcher, up to where it would install."""

import os
import re
import shutil
import subprocess
import sys
import time

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
    variables = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "CONDA_PREFIX")}
    environment = {**variables, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    *said, last = ended.stderr.splitlines()
    assert (ended.returncode, last.partition("; ")[0]) == (2, "environment: needs Python 3.10, 3.11 or 3.12")
    line = (
        f"environment: {tmp_path} cannot be locked (Function not implemented); let one start finish its install before"
    )
    assert said == ([f"{line} the next one"] if refused else [])


PYTHON = """#!/bin/sh
# Makes environments of itself, at once.
if [ "$1" = -I ]; then shift; fi
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi
if [ "$2" = --say ]; then places=$(readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2); echo "$places" >"$3"; fi
"""


def copy_of_the_launcher(folder):
    """A copy of the files that the shell part reads, and the variables of a machine whose only Python is PYTHON."""
    for name in ("launch/environment.sh", "launch/train_8x4090.sh", "pyproject.toml", "setup.py", "constraints.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    make_python(folder / "bin" / "python3")
    variables = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "CONDA_PREFIX")}
    return {**variables, "PATH": f"{folder}/bin:{os.environ['PATH']}"}


def make_python(file, text=PYTHON):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)


def python_chosen(folder, environment):
    """Returns the interpreter that a start uses, and the lines that it prints."""
    line = ["bash", "-euo", "pipefail", "-c", 'source launch/environment.sh; echo "$PYTHON"']
    ended = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip(), ended.stderr.splitlines()


def test_an_active_environment_that_has_the_package_is_used_conda_after_virtualenv(tmp_path):
    environment = copy_of_the_launcher(tmp_path)
    conda, without = tmp_path / "conda base", tmp_path / "without"
    make_python(conda / "bin" / "python")
    make_python(without / "bin" / "python", "#!/bin/sh\nexit 1\n")
    chosen, said = python_chosen(tmp_path, {**environment, "CONDA_PREFIX": str(conda)})
    assert chosen == f"{conda}/bin/python" and said == [f"environment: using {conda}, which is active (CONDA_PREFIX)"]
    both = {**environment, "VIRTUAL_ENV": str(without), "CONDA_PREFIX": str(conda)}
    assert python_chosen(tmp_path, both)[0] == f"{conda}/bin/python"
    make_python(without / "bin" / "python")
    assert python_chosen(tmp_path, both)[0] == f"{without}/bin/python"
    assert not (tmp_path / ".venv").exists()
    make_python(conda / "bin" / "python", "#!/bin/sh\nexit 1\n")
    chosen, said = python_chosen(tmp_path, {**environment, "CONDA_PREFIX": str(conda)})
    assert chosen == f"{tmp_path}/.venv/bin/python"
    assert said[0] == f"environment: {conda}, which is active, lacks one of ds_rvqvae torch deepspeed"
    # The project's own goes before conda's where it is the one that is active.
    make_python(conda / "bin" / "python")
    own = {**environment, "VIRTUAL_ENV": f"{tmp_path}/.venv", "CONDA_PREFIX": str(conda)}
    assert python_chosen(tmp_path, own) == (f"{tmp_path}/.venv/bin/python", [])


SLOW_PIP = """
if [ "$1 $2" = "-m pip" ]; then
  mkdir -p .venv/lib/python3.11/site-packages/numpy-2.dist-info
  echo "Installing collected packages: numpy, torch, deepspeed"; sleep 8.5
fi
"""


def test_an_install_says_how_far_it_is_and_how_its_commands_come_to_hand(tmp_path):
    folder = tmp_path / "a project"
    folder.mkdir()
    environment = copy_of_the_launcher(folder)
    make_python(folder / "bin" / "python3", PYTHON + SLOW_PIP)
    began = time.monotonic()
    chosen, said = python_chosen(folder, environment)
    assert chosen == f"{folder}/.venv/bin/python"
    installing, *progress, ready = said
    assert "installing into" in installing
    assert [re.sub(r"\d+ s", "N s", line) for line in progress] == ["environment: N s: installing torch (2 of 3)"]
    assert ready.endswith("s; for ds-rvqvae in your shell: source .venv/bin/activate")
    assert time.monotonic() - began < 30  # no more lines come
    line = ["bash", "-c", f"source '{folder}/launch/environment.sh'"]
    make_python(folder / "bin" / "python3")
    shutil.rmtree(folder / ".venv")
    ended = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.stderr.splitlines()[-1].endswith(f"source {tmp_path}/a\\ project/.venv/bin/activate")


@pytest.mark.parametrize("streams", ["", ">/dev/full 2>&1", "0<&- 1>&- 2>&-", "2>&1 | true"])
def test_messages_that_cannot_be_printed_end_no_start(tmp_path, streams):
    environment = copy_of_the_launcher(tmp_path)
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


RECORDING_PIP = """
if [ "$1 $2" = "-m pip" ]; then
  while [ "$1" != -c ]; do shift; done
  grep -E "^(torch|sympy)==" "$2" | xargs >>../asked
fi
"""


def test_another_torch_is_chosen_once_and_kept(tmp_path):
    folder = tmp_path / "a project"
    folder.mkdir()
    environment = copy_of_the_launcher(folder)
    make_python(folder / "bin" / "python3", PYTHON + RECORDING_PIP)
    (pinned,) = re.findall("(?m)^torch==(.*)$", (ROOT / "constraints.txt").read_text())
    chosen = {**environment, "DS_RVQVAE_TORCH": "2.10.0"}
    python_chosen(folder, environment)
    (folder / ".venv" / "of_the_former_torch").touch()
    installing, *_ = python_chosen(folder, chosen)[1]
    assert "with torch 2.10.0" in installing and not (folder / ".venv" / "of_the_former_torch").exists()
    # Later starts keep it, and so does the install that a newer version of the project needs.
    assert python_chosen(folder, environment)[1] == python_chosen(folder, chosen)[1] == []
    with (folder / "setup.py").open("a") as file:
        file.write("# newer\n")
    (folder / ".venv" / "kept").touch()
    assert "with torch 2.10.0" in python_chosen(folder, environment)[1][0] and (folder / ".venv" / "kept").exists()
    # An install that was stopped goes on with it too.
    (folder / ".venv" / "installed").unlink()
    (folder / ".venv" / "making").write_text("2.10.0\n")
    assert "with torch 2.10.0" in python_chosen(folder, environment)[1][0]
    back = {**environment, "DS_RVQVAE_TORCH": pinned}
    assert "with torch" not in python_chosen(folder, back)[1][0]
    assert python_chosen(folder, environment)[1] == python_chosen(folder, back)[1] == []
    asked = [line.split() for line in (tmp_path / "asked").read_text().splitlines()]
    assert [line[-1] for line in asked] == [f"torch=={pinned}", *3 * ["torch==2.10.0"], f"torch=={pinned}"]
    assert [len(line) for line in asked] == [2, 1, 1, 1, 2]  # sympy is free with another torch


@pytest.mark.parametrize(
    ("version", "words"), [("2.5.1", "needs torch 2.6 or newer"), ("cu126", "write a version of torch, such as 2.10.0")]
)
def test_a_torch_that_cannot_be_is_refused_before_anything_is_installed(tmp_path, version, words):
    environment = {**copy_of_the_launcher(tmp_path), "DS_RVQVAE_TORCH": version}
    line = ["bash", "-euo", "pipefail", "-c", "source launch/environment.sh"]
    ended = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith(f"environment: DS_RVQVAE_TORCH={version}: ") and words in ended.stderr
    assert not (tmp_path / ".venv").exists()
