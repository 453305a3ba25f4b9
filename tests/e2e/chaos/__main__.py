import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.e2e.chaos.driver import Driver
from tests.e2e.chaos.plan import plan_kills
from tests.e2e.chaos.report import write_report

TOTAL_ITER = 60


def main(argv: list[str]) -> int:
    """Hurts runs for as many rounds as asked; 0 where every one resumed and ended equal to the reference."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.e2e.chaos", description="Kills training runs, compares them."
    )
    parser.add_argument("--rounds", type=int, required=True, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, help="Markdown file to write")
    parser.add_argument("--work", type=Path, help="folder for the runs, kept (default: a temporary one, removed)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        driver = Driver(args.work or Path(temporary), TOTAL_ITER, lambda text: print(text, flush=True))
        driver.reference()
        records, began = [], time.monotonic()
        for record in driver.rounds(plan_kills(args.rounds, args.seed), args.seed):
            records.append(record)
            if args.report:
                arguments = f"--rounds {args.rounds} --seed {args.seed}"
                write_report(args.report, arguments, driver, records, time.monotonic() - began)
    faults = sum(len(record.faults) for record in records)
    print(f"{sum(len(record.rounds) for record in records)} kills, {len(records)} runs, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
