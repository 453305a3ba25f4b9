import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.e2e.chaos.commands import Account, Commands
from tests.e2e.chaos.driver import Driver, RunRecord
from tests.e2e.chaos.plan import plan_kills
from tests.e2e.chaos.report import write_report

TOTAL_ITER = 60


def main(argv: list[str]) -> int:
    """Kills runs for the given number of rounds; returns 0 if all resumed and ended equal to the reference."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.e2e.chaos", description="Kills training runs, compares them."
    )
    parser.add_argument("--rounds", type=int, required=True, help="kills of runs")
    parser.add_argument("--other_ranks", type=int, default=0, help="kills of runs that one rank continues")
    parser.add_argument("--commands", type=int, default=0, help="kills of commands, a fifth of them per command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, help="Markdown file to write")
    parser.add_argument("--work", type=Path, help="folder for the runs, kept (default: a temporary one, removed)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        driver = Driver(args.work or Path(temporary), TOTAL_ITER, _say)
        driver.reference()
        began, seed = time.monotonic(), args.seed
        accounts = _commands(driver.work, args.commands, seed)
        others = _other_ranks(driver.work, args.other_ranks, seed)
        records: list[RunRecord] = []
        for record in driver.rounds(plan_kills(args.rounds, seed), seed):
            records.append(record)
            if args.report:
                arguments = f"--rounds {args.rounds} --other_ranks {args.other_ranks} --commands {args.commands}"
                seconds = time.monotonic() - began
                write_report(args.report, f"{arguments} --seed {seed}", driver, records, others, accounts, seconds)
    faults = sum(len(record.faults) for record in [*records, *others, *accounts])
    kills = sum(len(record.rounds) for record in [*records, *others])
    kills_of_commands = sum(account.kills for account in accounts)
    print(f"{kills} kills of {len(records) + len(others)} runs, {kills_of_commands} of commands, {faults} faults")
    return 1 if faults else 0


def _say(text: str) -> None:
    print(text, flush=True)


def _other_ranks(work: Path, kills: int, seed: int) -> list[RunRecord]:
    """Kills runs that two ranks began and one rank continues."""
    if not kills:
        return []
    base = Driver(work / "two", TOTAL_ITER // 2, _say)
    base.reference()
    driver = Driver(work / "one", TOTAL_ITER, _say, ranks=1, base=base.work / "runs" / "reference")
    driver.reference()
    return list(driver.rounds(plan_kills(kills, seed), seed))


def _commands(work: Path, kills: int, seed: int) -> list[Account]:
    """Kills each command equally often."""
    if not kills:
        return []
    commands, rng = Commands(work / "commands", work / "runs" / "reference", _say), random.Random(seed)
    tasks = commands.tasks()
    return [commands.hurt(task, kills // len(tasks), rng) for task in tasks]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
