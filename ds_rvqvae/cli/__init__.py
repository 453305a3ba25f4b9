"""`ds-rvqvae VERB`. A module for each verb, imported where its verb is asked for, whose own imports are late: help and
profiles answer at once."""

import argparse
import sys
from collections.abc import Callable
from importlib import import_module

from ds_rvqvae import __version__
from ds_rvqvae.config.parser import FlagParser
from ds_rvqvae.process.command import exit_status_of

_VERBS = {
    "prepare": ("prepare", "pack motion files into a store that training reads"),
    "store": ("store", "show or verify a prepared store"),
    "data": ("data", "look at motion before it is trained on"),
    "encode": ("encode", "turn motion files into codes"),
    "decode": ("encode", "turn codes back into motion files"),
    "evaluate": ("evaluate", "score tokenizers on a split of their data, or of other data"),
    "export": ("export", "write a run's tokenizer: safetensors and JSON, or as others read"),
    "render": ("render", "a video of truth, reconstruction and difference as stick figures"),
    "import": ("import_", "make a tokenizer of a checkpoint of MoMask, GestureLSM or T2M-GPT"),
    "bench": ("bench", "time training steps, part by part, beside a plain PyTorch loop"),
    "plan": ("plan", "memory, arithmetic and traffic of a profile on given cards, before any starts"),
    "profile": ("profile", "show, validate or compare profiles"),
}
"""The module of each, whose `add_VERB` fills its parser, and what it does in a line."""


def main(argv: list[str] | None = None) -> int:
    """Runs one verb and gives its exit status (see `ExitStatus`).

    Args:
        argv: of a caller that goes on afterwards; None: the program's own, which ends with it.
    """
    return exit_status_of(lambda: _run(sys.argv[1:] if argv is None else argv), is_program=argv is None)


def _run(argv: list[str]) -> int:
    parser = FlagParser(prog="ds-rvqvae", description="Tools round the training of motion tokenizers.")
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for verb, (module, words) in _VERBS.items():
        verbs.add_parser(verb, help=words, fill=_filler(verb, module))
    args = parser.parse_args(argv)
    status: int = args.verb(args)
    return status


def _filler(verb: str, module: str) -> "Callable[[argparse.ArgumentParser], None]":
    def fill(parser: argparse.ArgumentParser) -> None:
        getattr(import_module(f"ds_rvqvae.cli.{module}"), f"add_{verb}")(parser)

    return fill
