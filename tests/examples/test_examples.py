"""The scripts of `examples/`, each run on made motion, with one tiny tokenizer, which the first of them trains."""

import importlib
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from ds_rvqvae import MotionTokenizer, read_codes
from ds_rvqvae.data import open_store
from tests.examples.conftest import EXAMPLES

pytestmark = pytest.mark.processes


def _run(name: str, *arguments: str) -> None:
    importlib.import_module(name).main([*arguments])


def test_a_tokenizer_is_trained_on_bvh_files_and_scored(example_folder):
    tokenizer = MotionTokenizer.from_pretrained("runs/example/run/tokenizer")
    assert len(tokenizer.mean) == 17 * 6 + 3 and tokenizer.fps == 30
    report = json.loads(Path("runs/example/store/report.json").read_text())
    assert (
        report["clips"] == 16 and report["splits"]["val"]["clips"] and "by the body's height" in report["readings"][0]
    )
    assert json.loads(Path("runs/example/scores.json").read_text())["angle_error_deg"] > 0


def test_codes_are_padded_and_masked_in_a_dataloader(example_folder, capsys):
    _run("codes_in_a_dataloader")
    files = sorted(Path("runs/example/codes").rglob("*.npz"))
    clips = [read_codes(file).codes for file in files]
    lines = re.findall(r"codes \[4, (\d+), 2\], (\d+) of them real", capsys.readouterr().out)
    assert len(clips) == 16 and len({len(clip) for clip in clips}) > 1
    assert sum(int(real) for _, real in lines) == sum(map(len, clips)) < sum(4 * int(longest) for longest, _ in lines)


def test_a_stream_gives_the_codes_of_one_pass(example_folder, capsys):
    _run("stream", "--clip", "clip_03")
    frames = len(open_store("runs/example/store").clip("clip_03"))
    said = capsys.readouterr().out
    assert f"{-(-frames // 4)} codes of {frames} frames, equal to those of one pass" in said
    latency, waiting = re.search(r"latency (\d+) frames", said), re.search(r"without a code yet: (\d+) at most", said)
    assert int(waiting[1]) <= int(latency[1]) + 4 + 5  # a code's own frames, and a piece


def test_a_second_stage_learns_and_its_codes_are_decoded(example_folder, capsys):
    _run("second_stage", "--steps", "41")
    said = capsys.readouterr().out
    first, *_, last = [float(loss) for loss in re.findall(r"loss ([\d.]+)", said)]
    assert last < 0.9 * first and re.search(r"motion of \d+ codes and \d+ predicted ones: \[\d+, 105\]", said)
    assert Path("runs/example/second_stage.pt").is_file()


def test_two_tokenizers_are_compared(example_folder, capsys):
    _run("compare_two_tokenizers")
    said = capsys.readouterr().out
    assert "global_step1" in said and "global_step3" in said and "lowest angle error" in said
    pictures = sorted(Path("runs/example/comparison").glob("*.png"))
    assert pictures and all(str(picture) in said for picture in pictures)
    for picture in pictures:
        with Image.open(picture) as image:
            assert min(image.size) > 200


def test_every_script_is_in_the_table():
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for script in EXAMPLES.glob("*.py"):
        assert f"[{script.name}]({script.name})" in table
        assert f"python examples/{script.name}" in script.read_text(encoding="utf-8")
