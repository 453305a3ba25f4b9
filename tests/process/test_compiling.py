"""The compiler that torch.compile will need, tried before a run starts."""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

from ds_rvqvae.errors import UserError
from ds_rvqvae.process import compiling
from ds_rvqvae.process.compiling import CACHE_VARIABLE, cache_folder, check_compiler

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folder of compiled code; the PATH and the compilers of the environment are empty."""
    for name in ("CXX", "CC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "compiled"))
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def program(place, name, *lines):
    file = place / name
    file.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    file.chmod(0o755)
    return file


@needs_compiler
def test_a_real_compiler_makes_a_library_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "compiled"))
    assert check_compiler(on_cpu=True) == f"{shutil.which('g++')}, compiled code in {tmp_path / 'compiled'}"
    assert list((tmp_path / "compiled").iterdir()) == []


def test_without_a_compiler_the_package_is_named(place):
    with pytest.raises(UserError, match=r"--compile: there is no C\+\+ compiler \(g\+\+\) on the PATH: apt install g"):
        check_compiler(on_cpu=True)


def test_for_a_gpu_it_is_a_c_compiler_and_triton(place, monkeypatch):
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"triton, which compiles for GPUs, is not installed in .*: pip install triton"):
        check_compiler(on_cpu=False)
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UserError, match=r"there is no C compiler \(gcc or clang\) on the PATH: apt install gcc"):
        check_compiler(on_cpu=False)
    program(place, "clang", "echo 'sample.c:2:10: fatal error: stdio.h: No such file or directory' >&2", "exit 1")
    with pytest.raises(UserError, match=r"/clang cannot compile: .*stdio\.h.*; apt install gcc libc6-dev"):
        check_compiler(on_cpu=False)


def test_a_compiler_of_the_environment_that_is_not_there_is_named(place, monkeypatch):
    monkeypatch.setenv("CXX", "my-g++")
    with pytest.raises(UserError, match=r"CXX=my-g\+\+ in the environment is not a program on the PATH"):
        check_compiler(on_cpu=True)


def test_missing_headers_of_python_are_named_with_their_package(place):
    program(place, "g++", "echo 'sample.cpp:1:10: fatal error: Python.h: No such file or directory' >&2", "exit 1")
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}-dev"
    with pytest.raises(UserError) as refused:
        check_compiler(on_cpu=True)
    assert f"Python's headers are not in {sysconfig.get_path('include')}: apt install {version}" in str(refused.value)


@needs_compiler
def test_headers_are_looked_for_where_this_python_has_them(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(compiling.sysconfig, "get_path", lambda name, scheme: str(tmp_path / "nowhere"))
    monkeypatch.delenv("CPATH", raising=False)
    if Path("/usr/include/Python.h").exists():
        pytest.skip("the compiler finds a Python.h by itself")
    with pytest.raises(UserError, match=f"Python's headers are not in {tmp_path / 'nowhere'}"):
        check_compiler(on_cpu=True)


@pytest.mark.parametrize("full", [True, False])
def test_a_folder_that_is_full_or_cannot_be_made_is_named(place, full):
    program(place, "g++", "echo 'as: No space left on device' >&2", "exit 1")
    if not full:
        (place / "compiled").write_text("")
    reason = "no space is left" if full else "File exists"
    with pytest.raises(
        UserError, match=f"cannot be kept in {place / 'compiled'}: {reason}; name another folder in TOR"
    ):
        check_compiler(on_cpu=True)


def test_a_library_that_cannot_be_loaded_is_the_folders_fault(place):
    program(place, "g++", 'while [ "$1" != -o ]; do shift; done', 'echo no library > "$2"')
    with pytest.raises(UserError, match=r"a library there cannot be loaded \(.*\); name another folder in"):
        check_compiler(on_cpu=True)


def test_the_folder_is_torchs_own(monkeypatch, tmp_path):
    from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    assert str(cache_folder()) == default_cache_dir()
    monkeypatch.setenv(CACHE_VARIABLE, os.path.relpath(tmp_path / "mine"))
    assert str(cache_folder()) == cache_dir() == str(tmp_path / "mine")
