"""Runs a notebook's cells in this process, and writes what they print and show into it.

    python -m tests.examples.notebook examples/tour.ipynb

It stands in for Jupyter, which would bring a kernel, sockets and some thirty packages: cells are plain Python, and all
that a cell shows is an `IPython.display.Image` of a file as its last expression. It runs in a temporary folder.
"""

import ast
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

_TYPES = {".png": "image/png", ".gif": "image/gif"}


class Image:
    """Stands in for `IPython.display.Image`.

    Args:
        file: a PNG or a GIF.
        width: pixels on the page.
    """

    def __init__(self, file: str | Path, width: int | None = None) -> None:
        self.type, self.content, self.width = _TYPES[Path(file).suffix], Path(file).read_bytes(), width


def read_notebook(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def run_cells(notebook: dict[str, Any], replaced: dict[int, str] | None = None) -> list[list[dict[str, Any]]]:
    """Runs the code cells one after another and returns the outputs of each.

    Args:
        replaced: other sources for code cells, by number.
    """
    shown, ipython = ModuleType("IPython.display"), ModuleType("IPython")
    shown.Image, ipython.version_info = Image, (9, 0)  # matplotlib reads the version
    names: dict[str, Any] = {"__name__": "__main__"}
    outputs = []
    with mock.patch.dict(sys.modules, {"IPython": ipython, "IPython.display": shown}):
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        for number, cell in enumerate(cells):
            source = (replaced or {}).get(number, "".join(cell["source"]))
            outputs.append(_run(source, names, f"cell {number}"))
    return outputs


def _run(source: str, names: dict[str, Any], where: str) -> list[dict[str, Any]]:
    tree, printed, value = ast.parse(source), io.StringIO(), None
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, where, "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), where, "eval"), names)
    outputs: list[dict[str, Any]] = []
    if text := printed.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)})
    if value is not None:
        assert isinstance(value, Image), f"{where} shows a {type(value).__name__}"
        size = {} if value.width is None else {value.type: {"width": value.width}}
        data = {value.type: base64.b64encode(value.content).decode() + "\n"}
        outputs.append({"data": data, "execution_count": None, "metadata": size, "output_type": "execute_result"})
    return outputs


def write_outputs(file: Path) -> None:
    """Runs a notebook as it stands and writes its outputs into it."""
    notebook, file = read_notebook(file), file.resolve()
    sys.path.insert(0, str(file.parent))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        outputs = run_cells(notebook)
        os.chdir(file.parent)
    cells = (cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    for number, (cell, own) in enumerate(zip(cells, outputs, strict=True), start=1):
        for output in own:
            if "execution_count" in output:
                output["execution_count"] = number
        cell.update(outputs=own, execution_count=number)
    file.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_outputs(Path(sys.argv[1]))
