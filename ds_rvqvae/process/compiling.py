"""The compiler that `torch.compile` calls during a run's first step, tried before the run starts."""

import ctypes
import getpass
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ds_rvqvae.errors import UserError

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""Environment variable with the folder of compiled code; its default is in the system's folder for temporary files."""
_LONGEST = 60.0
"""Seconds for compiling the sample."""


@dataclass(frozen=True)
class _Language:
    """The language that torch compiles to on a kind of device."""

    name: str
    variable: str
    """Environment variable with the compiler."""
    compilers: tuple[str, ...]
    """Those that are tried without the variable, the first that is there."""
    suffix: str
    sample: str
    flags: tuple[str, ...]
    packages: str


_CPP = _Language(
    "C++",
    "CXX",
    ("g++",),
    ".cpp",
    "#include <Python.h>\n#include <cmath>\n#include <omp.h>\n",
    ("-std=c++17", "-fopenmp"),
    "apt install g++ on Debian and Ubuntu, dnf install gcc-c++ on Fedora and Rocky",
)
"""Inductor's kernels for a CPU."""
_C = _Language(
    "C",
    "CC",
    ("gcc", "clang"),
    ".c",
    "#include <Python.h>\n#include <stdio.h>\n",
    (),
    "apt install gcc libc6-dev on Debian and Ubuntu, dnf install gcc on Fedora and Rocky",
)
"""Triton compiles its kernels for a GPU itself, and needs C for the code that starts them."""


def check_compiler(on_cpu: bool, flag: str = "--compile") -> str:
    """Tries what `torch.compile` will need, by making and loading a small library as torch does; takes about a second.

    Args:
        on_cpu: whether the nets run on CPUs; otherwise on NVIDIA's GPUs.
        flag: what asked for it, for the message.

    Returns:
        the compiler and the folder of compiled code, in words.

    Raises:
        UserError: no compiler, no headers of Python, no triton, or a folder that cannot be used.
    """
    language = _CPP if on_cpu else _C
    if not on_cpu and importlib.util.find_spec("triton") is None:
        raise UserError(
            f"{flag}: triton, which compiles for GPUs, is not installed in {sys.prefix}: pip install triton"
        )
    compiler = _find(language, flag)
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="sample-", dir=folder) as place:
            _make_library(language, compiler, Path(place), flag)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{flag}: compiled code cannot be kept in {folder}: {reason}; name another folder in {CACHE_VARIABLE}"
        ) from None
    return f"{compiler}, compiled code in {folder}"


def cache_folder() -> Path:
    """Returns the folder in which torch keeps compiled code, by the variable or torch's default."""
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(os.path.abspath(given))  # noqa: PTH100  # as torch writes it
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in containers
        user = f"uid_{os.getuid()}"
    return Path(tempfile.gettempdir()) / f"torchinductor_{re.sub(r'[^A-Za-z0-9_.-]', '_', user)}"


def _find(language: _Language, flag: str) -> str:
    """Returns the path of the compiler that torch will use."""
    named = os.environ.get(language.variable)
    for name in [named] if named else language.compilers:
        if found := shutil.which(name):
            return found
    if named:
        raise UserError(f"{flag}: {language.variable}={named} in the environment is not a program on the PATH")
    missing = " or ".join(language.compilers)
    raise UserError(f"{flag}: there is no {language.name} compiler ({missing}) on the PATH: {language.packages}")


def _make_library(language: _Language, compiler: str, place: Path, flag: str) -> None:
    """Compiles and loads the sample; raises OSError if the folder is at fault, UserError otherwise."""
    scheme = sysconfig.get_default_scheme()
    # Debian's own scheme names a folder of locally built packages.
    include = sysconfig.get_path("include", "posix_prefix" if scheme == "posix_local" else scheme)
    source, library = place / f"sample{language.suffix}", place / "sample.so"
    source.write_text(language.sample)
    command = [compiler, "-shared", "-fPIC", *language.flags, f"-I{include}", "-o", str(library), str(source)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_LONGEST, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"{flag}: {compiler} does not finish a small file in {_LONGEST:g} s") from None
    if done.returncode:
        if "No space left" in done.stderr:
            raise OSError("no space is left")
        if "Python.h" in done.stderr:
            version = f"{sys.version_info[0]}.{sys.version_info[1]}"
            raise UserError(
                f"{flag}: Python's headers are not in {include}: apt install python{version}-dev on Debian and Ubuntu, "
                "dnf install python3-devel on Fedora and Rocky, or a Python that brings them"
            )
        lines = done.stderr.strip().splitlines()
        reason = next((line for line in lines if "error" in line), lines[-1] if lines else "it says nothing")
        raise UserError(f"{flag}: {compiler} cannot compile: {reason}; {language.packages}")
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        raise OSError(f"a library there cannot be loaded ({str(error).rpartition(': ')[2]})") from None
