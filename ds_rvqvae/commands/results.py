"""Results for people and for programs."""

import argparse
import json
from pathlib import Path
from typing import Any

from ds_rvqvae.errors import UserError

Verbs = argparse._SubParsersAction
"""What a verb adds its parser to."""


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--json [FILE]`."""
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="results as JSON, to FILE or standard output"
    )


def print_result(args: argparse.Namespace, result: Any, text: str) -> None:
    """Text for people; with `--json` the same for programs, alone on standard output where no file is named."""
    if args.json == "-":
        print(json.dumps(result, indent=2))
        return
    print(text)
    if args.json:
        try:
            Path(args.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"--json {args.json}: cannot be written: {error.strerror}") from None
