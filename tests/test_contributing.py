"""The map in CONTRIBUTING.md: every place that it names is there."""

import ast
import re

import pytest

from tests.test_rooms import ORDER, ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PLACES = sorted(set(re.findall(r"`([\w/.]+\.py): ([\w.]+)`", TEXT)))


def names_of(file):
    """Returns the top-level names of a module, and methods and attributes of its classes as dotted names."""
    found = set()
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        found |= own_names(node)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{name}" for child in node.body for name in own_names(child)}
    return found


def own_names(node):
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


@pytest.mark.parametrize(("file", "name"), PLACES)
def test_a_place_on_the_map_is_there(file, name):
    assert (ROOT / file).is_file()
    assert name in names_of(file)


def test_files_that_are_named_exist():
    named = set(re.findall(r"`((?:ds_rvqvae|tests|docs|benchmarks|launch|ds_configs)/[\w./]+)`", TEXT))
    assert len(named) > 4
    # NAME stands for what is to be added.
    assert sorted(name for name in named if "NAME" not in name and not (ROOT / name).exists()) == []


def test_every_room_is_on_the_map():
    rows = re.findall(r"^\| (`.+?`) \|", TEXT, re.MULTILINE)
    rooms = [room.rstrip("/").removesuffix(".py") for row in rows for room in re.findall(r"`([\w/.]+)`", row)]
    assert rooms == list(ORDER)
