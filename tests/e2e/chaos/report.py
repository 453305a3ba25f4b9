"""The driver's results as Markdown."""

import os
import platform
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import psutil

from tests.e2e.chaos.commands import Account
from tests.e2e.chaos.driver import NOT_SAID, Driver, Round, RunRecord
from tests.e2e.chaos.plan import TARGETS

_INTRODUCTION = """# Kill report

A run whose processes are killed, as recorded by `tests/e2e/chaos`. The driver starts real runs of two ranks through
`launch/train_8x4090.py`, ends one process with `kill -9` at a random moment, waits until every process of the run is
gone, and gives the same command again. It kills the run several times before it lets it complete. Then it compares the
result with an undisturbed run: weights and codebooks, each line of `metrics.jsonl` and TensorBoard's points must be
equal bit for bit (except for readings of the machine), nothing unfinished may be left, and the same checkpoints must be
there and complete.
"""
_MORE = """The driver does the same to runs that two ranks began and one resumes, and to `prepare`,
`prepare --append`, `encode`, `export`, and a tokenizer that is saved over another. After each kill every file is
complete, old or new, and in the end each one equals, byte for byte, that of an undisturbed command.
"""


def write_report(
    file: Path,
    arguments: str,
    driver: Driver,
    records: list[RunRecord],
    others: list[RunRecord],
    accounts: list[Account],
    seconds: float,
) -> None:
    """Writes the report.

    Args:
        arguments: the driver's command line.
        records: of runs with two ranks.
        others: of runs that one rank continues.
        accounts: of commands.
        seconds: total duration.
    """
    rounds = [done for record in records for done in record.rounds]
    faults = [f"run {record.number}: {fault}" for record in records for fault in record.faults]
    faults += [f"run {record.number} on other ranks: {fault}" for record in others for fault in record.faults]
    faults += [f"{account.name}: {fault}" for account in accounts for fault in account.faults]
    parts = [
        _INTRODUCTION,
        *((_MORE,) if others or accounts else ()),
        f"```text\npython -m tests.e2e.chaos {arguments}\n```\n",
        f"Machine: {_machine()}.\n",
        f"A save takes {driver.save_seconds * 1000:.0f} ms, the median of the undisturbed run. The command of a run:\n",
        f"```text\nexport DS_ACCELERATOR=cpu LOCAL_SIZE=2\n{_command(driver.flags)}\n```\n",
        "## Counts\n",
        _counts(records, rounds, seconds),
        "## Failures\n",
        "\n".join(f"- {fault}" for fault in faults) + "\n" if faults else "None.\n",
        "## Runs\n",
        _runs(records),
        *(("## Runs on other ranks\n", _runs(others)) if others else ()),
        *(("## Commands\n", _of_commands(accounts)) if accounts else ()),
        "## Kills\n",
        _kills(rounds),
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(parts), encoding="utf-8")


def _counts(records: list[RunRecord], rounds: list[Round], seconds: float) -> str:
    by_target = Counter(done.kill.target for done in rounds)
    in_save = Counter(done.kill.target for done in rounds if done.in_save)
    killed_before = sum(done.resumed == NOT_SAID for done in rounds)
    rows = [
        ("kills", len(rounds)),
        *((f"of them {target}", f"{by_target[target]} ({in_save[target]} within a save)") for target in TARGETS),
        ("within a save", sum(in_save.values())),
        (
            "of these with the interrupted save still on disk",
            sum(bool(done.left_unfinished) for done in rounds if done.in_save),
        ),
        ("before the first checkpoint", sum("no checkpoint" in done.resumed for done in rounds)),
        ("starts after a kill", len(rounds)),
        ("of them resumed", sum(done.resumed not in ("", NOT_SAID) for done in rounds)),
        ("of them killed, as planned, before they printed where they continue", killed_before),
        ("runs", len(records)),
        ("runs completed and equal to the undisturbed run", sum(record.compared_equal for record in records)),
        (
            "longest time from a kill to the last process gone",
            f"{max((d.gone_seconds for d in rounds), default=0):.1f} s",
        ),
        ("minutes in all", f"{seconds / 60:.1f}"),
    ]
    return _table(("", ""), rows)


def _runs(records: list[RunRecord]) -> str:
    rows = [
        (
            record.number,
            record.starts,
            len(record.rounds),
            sum(done.in_save for done in record.rounds),
            ", ".join(str(done.step) for done in record.rounds),
            f"{record.seconds:.0f}",
            "yes" if record.compared_equal else "**no**",
        )
        for record in records
    ]
    return _table(("run", "starts", "kills", "in a save", "killed at step", "seconds", "equal"), rows)


def _of_commands(accounts: list[Account]) -> str:
    rows = [
        (account.name, f"{account.seconds:.1f}", account.kills, account.completed, len(account.faults))
        for account in accounts
    ]
    return _table(("command", "seconds by itself", "kills", "completed and equal", "faults"), rows)


def _kills(rounds: list[Round]) -> str:
    rows = [
        (
            number,
            done.run,
            done.kill.target,
            done.step,
            "yes" if done.in_save else "",
            done.status,
            f"{done.gone_seconds:.1f}",
            done.resumed,
            f"{done.seconds:.1f}",
        )
        for number, done in enumerate(rounds, 1)
    ]
    head = ("round", "run", "killed", "step", "in a save", "exit", "gone after, s", "the next start said", "seconds")
    return _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines) + "\n"


def _command(flags: Sequence[str]) -> str:
    """Returns the launcher's command; of a flag that is given twice, it has the one that counts."""
    last = {flag.partition("=")[0]: flag for flag in flags}
    line = " ".join(["python launch/train_8x4090.py", *last.values(), "--data_path=DEMO", "--name=RUN"])
    return " \\\n    ".join(textwrap.wrap(line, 110, break_long_words=False, break_on_hyphens=False))


def _machine() -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("ds_rvqvae", "torch", "deepspeed"))
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{os.cpu_count()} cores, {platform.machine()}, {memory:.0f} GiB, {platform.system()} "
        f"{platform.release().partition('-')[0]}; Python {'.'.join(map(str, sys.version_info[:3]))}, {versions}"
    )
