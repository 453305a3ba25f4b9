"""Every table on a terminal of 80 columns, with colour and without, and in a pipe."""

import io
import re
import sys

import pytest
from rich.cells import cell_len

from ds_rvqvae import cli
from ds_rvqvae.cli.bench import bench_table
from ds_rvqvae.config.profile import load_profile
from ds_rvqvae.gpu.cards import CARDS
from ds_rvqvae.gpu.plan import make_plan
from ds_rvqvae.gpu.plan_table import plan_table
from ds_rvqvae.process.terminal import PLAIN, Terminal
from ds_rvqvae.tokenizer.scores.tables import comparison_table, score_table
from ds_rvqvae.train.readings import Peaks
from ds_rvqvae.train.summary import plan_of, summary_text
from tests.cli.test_bench import RESULT

CODES = re.compile(r"\x1b\[[\d;]*m")
DRAWN = re.compile(r"[─-▟]")
LEVELS = 6
SCORES = {
    "split": "val", "clips": 1234, "frames": 1_234_567, "usage": [0.875] * LEVELS, "perplexity": [312.5] * 5 + [1.0],
    "by_levels": [
        {"levels": level, "bits_per_second": 12345.6, "l1": 0.1234, "angle_error_deg": 12.3456,
         "velocity_error": 0.1234, "mpjpe_mm": 123.45}
        for level in range(1, LEVELS + 1)
    ],
    "l1": 0.1234, "angle_error_deg": 12.3456, "velocity_error": 0.1234, "bits_per_second": 12345.6, "code_rate": 7.5,
    "entropy_bits_per_second": 321.5, "jitter": 0.1234, "jitter_truth": 0.1234, "mpjpe_mm": 123.45, "mpjpe_joints": 55,
    "skeleton": "built-in", "root_error_mm": 123.4, "foot_sliding": 1.23, "foot_sliding_truth": 1.23, "frechet": 12.34,
    "frechet_samples": 1234, "frechet_dimensions": 512, "frechet_window": 64,
}  # fmt: skip
PEAKS = Peaks(
    step_allocated_gib=12, allocated_gib=13, reserved_gib=13.5, used_gib=23.5, card_memory_gib=24, energy_wh=36_000,
    seconds=360_000, allocation_retries=3,
)  # fmt: skip
RANKS = [PEAKS] * 8
"""On GPUs that are nearly full."""


def scored(name, l1):
    facts = {"parameter_count": 230_822_606, "num_quantizers": LEVELS, "data_path": "x", "normalised_by": "a"}
    return {"name": name, **SCORES, **facts, "l1": l1, "angle_error_deg": 10 * l1, "frechet": None if l1 > 0.2 else l1}


RESULTS = [scored("a", 0.125), scored("best-bandai1-upper-with-a-long-name/checkpoints/best", 0.25), scored("c", 0.5)]
TABLES = {
    "scores": lambda terminal: score_table(SCORES, terminal=terminal),
    "what training changed": lambda terminal: score_table(SCORES, {**SCORES, "l1": 0.5}, terminal),
    "comparison": lambda terminal: comparison_table(RESULTS, ["val: 1,234 clips"], terminal),
    "plan": lambda terminal: plan_table(plan(), terminal),
    "memory by rank": lambda terminal: summary_text(RANKS, plan_of(load_profile("large"), 78, RANKS), terminal),
    "measurements": lambda terminal: bench_table(RESULT, terminal),
}  # fmt: skip


def plan(*overrides):
    return make_plan(load_profile("large", overrides), 78, 7, CARDS["4090"])


def check(piped, plain, coloured, columns=80):
    """The text for a pipe is complete; the terminal's lines fit, and none of their words is broken."""
    assert not CODES.search(piped) and not DRAWN.search(piped) and not CODES.search(plain)
    assert CODES.sub("", coloured) == plain and CODES.search(coloured)
    assert max(map(cell_len, plain.splitlines())) <= columns
    words = {word for word in DRAWN.sub("", plain).split() if "…" not in word}
    assert words <= set(piped.split()), words - set(piped.split())
    # Numbers are never shortened.
    assert {word for word in piped.split() if re.fullmatch(r"[\d.,]+", word)} <= set(plain.split())


@pytest.mark.parametrize("name", TABLES)
def test_tables_fit(name):
    table = TABLES[name]
    check(table(PLAIN), table(Terminal(80)), table(Terminal(80, colour=True)))


def test_colour_tells_the_best_the_worst_the_dead_and_the_full():
    def styled(text, style):
        return [CODES.sub("", part).strip() for part in re.findall(rf"\x1b\[{style}m(.*?)\x1b\[0m", text)]

    colour = Terminal(200, colour=True)
    compared = comparison_table(RESULTS, (), colour)
    assert styled(compared, "1;32") == ["0.1250", "1.250"] and styled(compared, "31") == ["0.5000", "5.000"]
    assert styled(score_table(SCORES, terminal=colour), "31") == ["87.5%", "1.0"]
    assert styled(score_table(SCORES, {**SCORES, "l1": 0.5, "velocity_error": 0.1}, colour), "32") == ["0.1234"]
    assert styled(score_table(SCORES, {**SCORES, "l1": 0.5, "velocity_error": 0.1}, colour), "31")[0] == "0.1234"
    assert styled(summary_text([PEAKS], None, colour), "33") == ["0.50 GiB", "3"]
    assert styled(plan_table(plan(), colour), "1;32")[0].startswith("fits: ")
    small = make_plan(load_profile("large"), 78, 7, CARDS["4090"].with_memory(1 << 30))
    assert [line[:7] for line in styled(plan_table(small, colour), "1;31")] == ["DOES NO", "not eve"]


class Played(io.StringIO):
    """Standard output, on a terminal or not."""

    is_terminal = False

    def isatty(self):
        return self.is_terminal


@pytest.fixture
def printed(monkeypatch):
    """Returns a command's output to a pipe, to a terminal, and to one with colour."""

    def run(*arguments):
        monkeypatch.setenv("COLUMNS", "80")
        texts = []
        for is_terminal, variables in ((False, {}), (True, {"NO_COLOR": "1"}), (True, {"TERM": "xterm"})):
            with monkeypatch.context() as patch:
                for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
                    patch.delenv(name, raising=False)
                for name, value in variables.items():
                    patch.setenv(name, value)
                stream = Played()
                stream.is_terminal = is_terminal
                patch.setattr(sys, "stdout", stream)
                assert cli.main([*map(str, arguments)]) in (0, 1)
            texts.append(re.sub(r"in \d+\.\d s|at [\d.:]+", "", stream.getvalue()))
        return texts

    return run


@pytest.mark.parametrize(
    "arguments",
    [
        ("profile", "diff", "baseline", "best"),
        ("profile", "validate", "baseline"),
        ("plan", "best", "--in_features", "78"),
    ],
)
def test_commands_fit(printed, arguments):
    check(*printed(*arguments))


def test_long_paths_of_stores_stand_on_lines_of_their_own(printed, demo_folder, tmp_path):
    store = tmp_path / "a store with a long name, in a folder of its own" / "as it was on the first of the month"
    for arguments in (("prepare", demo_folder, "--out", store, "--workers", "1"), ("store", "show", store, "--clips")):
        piped, plain, coloured = printed(*arguments)
        assert not CODES.search(piped) and not DRAWN.search(piped) and CODES.sub("", coloured).count(str(store)) == 1
        assert CODES.search(coloured) and not CODES.search(plain)
        long = [line.strip() for line in plain.splitlines() if cell_len(line) > 80]
        assert long and all(line.startswith(str(store)) and len(line) <= len(str(store)) + 1 for line in long)
    assert max(map(len, piped.splitlines())) > 80 and plain.splitlines()[-1].split()[-1] in ("train", "val", "test")
