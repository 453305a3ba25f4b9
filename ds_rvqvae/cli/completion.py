"""`ds-rvqvae completion`: what lets a shell complete commands, flags and their values. Nothing runs at a TAB."""

import argparse
from typing import TYPE_CHECKING

from ds_rvqvae.process.command import print_out

if TYPE_CHECKING:
    from ds_rvqvae.config.parser import FlagParser

SHELLS = ("bash", "zsh", "fish", "tcsh")


def add_completion(parser: "FlagParser") -> None:
    """Fills the parser of `ds-rvqvae completion`."""
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=f"{', '.join(SHELLS)}")
    parser.epilog = "What is printed is of this version: after an update, print it again."
    parser.examples = (
        ("bash > ~/.local/share/bash-completion/completions/ds-rvqvae", "bash, from the next shell on"),
        ("zsh > ~/.zsh/completions/_ds-rvqvae", "zsh, where that folder is in fpath"),
        ("fish > ~/.config/fish/completions/ds-rvqvae.fish", "fish"),
    )
    parser.set_defaults(verb=_complete)


def _complete(args: argparse.Namespace) -> int:
    import shtab

    from ds_rvqvae import cli

    parser = cli.make_parser()
    _prepare(parser)
    print_out(shtab.complete(parser, shell=args.shell) + "\n")
    return 0


def _prepare(parser: "FlagParser") -> None:
    """Fills a parser and those below it, and says what is completed: words, shipped profiles, else files."""
    import shtab

    from ds_rvqvae.config.profile import shipped_profiles

    parser.fill()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                _prepare(below)
        elif action.dest in ("profile", "profiles"):
            action.choices = list(shipped_profiles())
        elif action.nargs != 0 and not action.choices and _names_files(action):
            action.complete = shtab.FILE  # type: ignore[attr-defined]


def _names_files(action: argparse.Action) -> bool:
    """Whether a value is a file or folder, by what stands for it in the help."""
    shown = str(action.metavar or "")
    return (
        any(word in shown for word in ("PATH", "DIR", "FILE", "FOLDER", "RUN", "STORE", "DATA", "MOTION", "TOKENIZER"))
        and "=" not in shown
    )
