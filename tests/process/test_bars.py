"""Progress bars keep their numbers on narrow terminals."""

import io
import re

import pytest

from ds_rvqvae.process.bars import Bar

TRAINING = {
    "prefix": "baseline-bandai1-upper",
    "unit": "step",
    "postfix": "loss=0.1234, samples/s=1234.5",
    "rate": 3.21,
}


def line(columns, done=12_345, total=200_000, **options):
    return Bar.format_meter(done, total, 3845.0, ncols=columns, **TRAINING | options)


@pytest.mark.parametrize("columns", [40, 50, 60, 80, 100, 120, 200])
def test_steps_rate_loss_and_the_time_that_is_left_are_always_there(columns):
    text = line(columns)
    assert len(text) <= columns and "12345/200000 " in text
    assert re.search(r"\b3\.21(step)?/s", text) and "loss=0.1234" in text and re.search("16:14:19|16h14m", text)
    assert line(columns, 123, 200, prefix="") and "123/200 " in line(columns, 123, 200, prefix="")


def test_the_bar_the_notes_and_the_name_go_where_there_is_no_room():
    assert line(140).startswith("baseline-bandai1-upper:   6%|") and "samples/s=1234.5]" in line(140)
    assert "▉" in line(100) and "samples" not in line(100)
    assert line(70).startswith("baselin…-upper: 12345/") and line(60).startswith("12345/200000 3.21/s ")
    assert line(80, prefix="demo-cmu").startswith("demo-cmu:   6%|")


def test_a_slow_step_and_a_rate_that_is_not_known_yet():
    assert line(60, 10, 2_000, rate=0.05).startswith("10/2000 20.00s/step loss=0.1234 11h03m")
    assert "?" in line(40, 0, rate=None) and line(40, 0, rate=None).startswith("0/200000 ?/s")


def test_the_line_does_not_jump_with_the_length_of_its_numbers():
    taken = {}
    speeds = ["9.8", "1234.5", "9.8", "12.6", "9.8"]
    shown = [line(82, prefix="x", postfix=f"loss=0.1, samples/s={speed}", taken=taken) for speed in speeds]
    assert ["samples/s" in text for text in shown] == [True, False, False, False, False]
    assert "samples/s" in line(120, prefix="x", postfix="loss=0.1, samples/s=1234.5", taken=taken)


def test_it_is_drawn_by_tqdm():
    stream = io.StringIO()
    with Bar(total=4, file=stream, ncols=40, desc="work", unit="clip") as bar:
        bar.set_postfix_str("{odd} 1")
        bar.update(4)
    shown = stream.getvalue().split("\r")[-1].rstrip()
    assert shown.startswith("work: ") or (shown.startswith("4/4 ") and len(shown) <= 40)
    assert "4/4 " in shown and "{odd} 1" in shown
