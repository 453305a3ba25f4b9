"""Benchmarks are run by hand, but what they import from the package must exist."""

import ast
from importlib import import_module

import pytest

from tests.ranks import ROOT

BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("file", BENCHMARKS, ids=lambda file: file.stem)
def test_what_a_benchmark_imports_is_there(file):
    nodes = ast.walk(ast.parse(file.read_text()))
    taken = [node for node in nodes if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ds_rvqvae")]
    missing = [
        f"{node.module}.{name.name}"
        for node in taken
        for name in node.names
        if not hasattr(import_module(node.module), name.name)
    ]
    assert not missing


def test_there_are_benchmarks():
    assert len(BENCHMARKS) > 5
