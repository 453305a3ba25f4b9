"""Facts about this machine: the bf16 arithmetic of its processor."""

import subprocess
import sys

import pytest

from ds_rvqvae import host
from ds_rvqvae.errors import UserError

WITH = {"flags": "fpu avx2 avx512f avx512_bf16"}
WITHOUT = {"flags": "fpu avx2 avx512f avx_vnni"}


@pytest.fixture(autouse=True)
def nothing_forced(monkeypatch):
    for name in ("DS_RVQVAE_CPU_BF16", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (WITH, True),
        ({"flags": "avx2 amx_bf16"}, True),
        ({"Features": "fp asimd bf16"}, True),
        (WITHOUT, False),
        ({"Features": "fp asimd"}, False),
        ({}, False),
    ],
)
def test_the_processor_tells(monkeypatch, processor, expected):
    monkeypatch.setattr(host, "_processor", lambda: processor)
    assert host.has_bf16_arithmetic() is expected
    assert ("native" in host.bf16_arithmetic_text()) is expected


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_onednn_can_be_kept_from_it(monkeypatch, name):
    monkeypatch.setattr(host, "_processor", lambda: WITH)
    for value, expected in {"AVX2": False, "avx512_core": False, "AVX512_CORE_BF16": True, "ALL": True}.items():
        monkeypatch.setenv(name, value)
        assert host.has_bf16_arithmetic() is expected, value
        assert (f"({name}={value})" in host.bf16_arithmetic_text()) is not expected


def test_it_can_be_forced_either_way(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setenv("DS_RVQVAE_CPU_BF16", "native")
    assert host.has_bf16_arithmetic()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "ALL")
    monkeypatch.setenv("DS_RVQVAE_CPU_BF16", "none")
    assert not host.has_bf16_arithmetic()
    assert "none (forced by DS_RVQVAE_CPU_BF16)" in host.bf16_arithmetic_text()


def test_another_value_is_refused(monkeypatch):
    monkeypatch.setenv("DS_RVQVAE_CPU_BF16", "yes")
    with pytest.raises(UserError, match="DS_RVQVAE_CPU_BF16=yes: give native or none"):
        host.has_bf16_arithmetic()


@pytest.mark.parametrize("command", [["plan", "baseline"], ["bench", "demo"], ["encode", "nothing", "--out", "o"]])
def test_commands_refuse_it_in_one_line(monkeypatch, tmp_path, command):
    monkeypatch.setenv("DS_RVQVAE_CPU_BF16", "yes")
    done = subprocess.run(
        [sys.executable, "-m", "ds_rvqvae.cli", *command], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
