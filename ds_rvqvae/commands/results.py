"""What the verbs share: values of flags, and results for people and for programs."""

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

from ds_rvqvae.data.files import whole_file
from ds_rvqvae.errors import UserError, printable

Verbs = argparse._SubParsersAction
"""What a verb adds its parser to."""


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--json [FILE]`."""
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        type=_json_file,
        metavar="FILE",
        help="results as JSON, to FILE or standard output",
    )


def _json_file(text: str) -> str:
    """Refuses a file that cannot be written before any work is done."""
    file = Path(text)
    if text != "-" and (file.is_dir() or not os.access(file.parent, os.W_OK | os.X_OK)):
        reason = "is a folder" if file.is_dir() else f"{file.parent} is no folder that can be written to"
        raise argparse.ArgumentTypeError(f"{text}: cannot be written: {reason}")
    return text


def print_result(args: argparse.Namespace, result: Any, text: str) -> None:
    """Text for people; with `--json` the same for programs, alone on standard output where no file is named."""
    if args.json == "-":
        print(json.dumps(result, indent=2))
        return
    print("\n".join(map(printable, text.split("\n"))))
    if args.json:
        try:
            with whole_file(Path(args.json)) as content:
                content.write(json.dumps(result, indent=2).encode() + b"\n")
        except OSError as error:
            raise UserError(f"--json {args.json}: cannot be written: {error.strerror}") from None


def number(text: str) -> float:
    """A finite number, for a flag."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return value


def positive_number(text: str) -> float:
    """A finite number above 0, for a flag."""
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def count(text: str) -> int:
    """A whole number from 1, for a flag."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)
