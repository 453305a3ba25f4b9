"""The notebook `examples/tour.ipynb`: its cells run, and its page is as it was run, small and of no machine."""

import base64
import io

import pytest
from PIL import Image

from tests.examples.conftest import EXAMPLES, TINY
from tests.examples.notebook import read_notebook, run_cells

MOST_BYTES = 1_500_000


@pytest.mark.processes
def test_every_cell_runs(example_folder):
    notebook = read_notebook(EXAMPLES / "tour.ipynb")
    settings = f"MOTION, FOLDER, STEPS, NETS = None, Path('runs/example'), 3, '{TINY} {_of_the_run()}'"
    outputs = run_cells(notebook, {0: f"from pathlib import Path\n{settings}"})
    printed = "".join(line for cell in outputs for output in cell for line in output.get("text", []))
    assert "3 steps, loss" in printed and "-> codes (" in printed and printed.count("$ ds-rvqvae ") == 5
    pictures = [output["data"] for cell in outputs for output in cell if "data" in output]
    assert [*map(list, pictures)] == [["image/png"]] * 5 + [["image/gif"]]
    assert [_kinds(cell) for cell in outputs] == [_kinds(cell["outputs"]) for cell in _code(notebook)]


def test_the_page_shows_what_was_run():
    notebook = read_notebook(EXAMPLES / "tour.ipynb")
    assert [cell["execution_count"] for cell in _code(notebook)] == [*range(1, len(_code(notebook)) + 1)]
    for cell in _code(notebook):
        for output in cell["outputs"]:
            for kind, content in output.get("data", {}).items():
                with Image.open(io.BytesIO(base64.b64decode(content))) as image:
                    assert image.format.lower() == kind.removeprefix("image/") and min(image.size) > 200


def test_the_page_is_small_and_names_no_machine():
    text = (EXAMPLES / "tour.ipynb").read_text(encoding="utf-8")
    assert len(text) < MOST_BYTES
    cells = _code(read_notebook(EXAMPLES / "tour.ipynb"))
    printed = "".join(line for cell in cells for output in cell["outputs"] for line in output.get("text", []))
    assert " /" not in printed and "~" not in printed and "\\" not in printed


def _of_the_run() -> str:
    """The settings of `train_on_bvh.py` that a resume may not change."""
    from train_on_bvh import SMALL

    own = {flag.split("=")[0] for flag in TINY.split()}
    return " ".join(flag for flag in SMALL.split() if flag.split("=")[0] not in own)


def _code(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def _kinds(outputs):
    return [[output["output_type"], *output.get("data", {})] for output in outputs]
