"""The plan of the package: allowed imports between rooms, and sizes of rooms, files and functions."""

import ast
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ds_rvqvae"
ORDER = (
    *("errors", "files", "locks", "host", "text"),
    *("process", "config", "motion", "data/formats", "data/store", "data"),
    *("model", "gpu", "tokenizer/saved", "tokenizer", "tokenizer/foreign", "viz"),
    *("runs", "train", "launch", "bench", "cli"),
)
"""A room imports only rooms above it, and itself. The first are modules at the package's root."""
NEVER = {
    "model": {"deepspeed", "pathlib", "os", "io", "shutil", "json", "safetensors"},
    "process": {"torch", "deepspeed", "numpy"},
    "gpu": {"torch", "deepspeed"},
    "config": {"torch", "deepspeed", "numpy"},
    "data": {"torch", "deepspeed"},
    "launch": {"torch", "deepspeed"},
    "tokenizer": {"deepspeed"},
}
"""Modules that a room's modules must not import when they are imported."""
MOST_AT_THE_ROOT, MOST_MODULES, MOST_LINES, MOST_LINES_OF_A_FUNCTION = 5, 14, 400, 60

FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in FILES}


def room_of(module):
    """The longest entry of ORDER that contains a module; None for the package itself."""
    place = "/".join(module.split(".")[1:])
    found = [room for room in ORDER if place == room or place.startswith(f"{room}/")]
    return max(found, key=len, default=None)


def imports_of(file, late=True):
    """Dotted names that a file imports; without `late`, those that its own import brings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if late else outside_functions(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{file}: imports are written out"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module


def outside_functions(node):
    """The code that runs when a module is imported, without the code only for type checkers."""
    for child in ast.iter_child_nodes(node):
        typing_only = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if not typing_only and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from outside_functions(child)


def arrows():
    return [(module, name) for module, file in MODULES.items() for name in imports_of(file) if name in MODULES]


def test_every_module_is_in_a_room():
    known = {"ds_rvqvae"} | {module for module in MODULES if room_of(module)}
    assert sorted(set(MODULES) - known) == []
    assert [room for room in ORDER if not any(room_of(module) == room for module in MODULES)] == []


def test_no_room_imports_one_below_it():
    against = [
        f"{module} imports {name}"
        for module, name in arrows()
        if room_of(module) and room_of(name) and ORDER.index(room_of(name)) > ORDER.index(room_of(module))
    ]
    # `ds_rvqvae/__init__.py` loads public names late and is imported by nobody for them.
    assert against == []


def test_no_imports_go_in_a_circle():
    below = defaultdict(set)
    for module, name in arrows():
        if name not in ("ds_rvqvae", module) and not module.startswith(f"{name}."):
            below[module].add(name)
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            path.append(module)
            for name in sorted(below[module]):
                visit(name)
            path.pop()
            done.add(module)

    for module in MODULES:
        visit(module)


@pytest.mark.parametrize("room", NEVER)
def test_rooms_stay_free_of(room):
    found = [
        f"{module} imports {name}"
        for module, file in MODULES.items()
        if (room_of(module) or "").split("/")[0] == room
        for name in imports_of(file, late=room == "model")
        if name.split(".")[0] in NEVER[room]
    ]
    assert found == []


def test_the_launcher_comes_up_without_torch():
    rooms = ", ".join(f"ds_rvqvae.launch.{name}" for name in ("main", "check", "body", "command", "demo", "supervise"))
    code = f"import {rooms}, json, sys; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert "ds_rvqvae.launch.check" in loaded
    assert not {"torch", "deepspeed", "matplotlib", "scipy"} & set(loaded)


def test_rooms_are_small():
    modules = defaultdict(list)
    for file in FILES:
        if file.name != "__init__.py":
            modules[file.parent.relative_to(PACKAGE).as_posix()].append(file.name)
    assert len(modules.pop(".")) <= MOST_AT_THE_ROOT
    assert {room: len(names) for room, names in modules.items() if len(names) > MOST_MODULES} == {}


def test_files_and_functions_are_short():
    lines = {file.relative_to(ROOT).as_posix(): len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}
    long = [
        f"{file.relative_to(ROOT)}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno + 1 > MOST_LINES_OF_A_FUNCTION
    ]
    assert long == []
