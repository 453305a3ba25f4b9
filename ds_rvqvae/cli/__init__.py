"""`ds-rvqvae COMMAND`. A module for each command, imported where its command is asked for, whose own imports are late:
help and profiles answer at once."""

import sys
from collections.abc import Callable
from importlib import import_module

from ds_rvqvae import __version__
from ds_rvqvae.config.parser import FlagParser
from ds_rvqvae.errors import ExitStatus
from ds_rvqvae.process.command import exit_status_of

_VERBS = {
    "data": {
        "prepare": ("cli.prepare", "pack motion files into a store that training reads"),
        "store": ("cli.store", "show or verify a prepared store"),
        "data": ("cli.data", "draw the motion of a store before it is trained on"),
    },
    "training": {
        "train": ("launch.main", "train a tokenizer, or a body's, on GPUs 1 to 7 or on others"),
        "profile": ("cli.profile", "show, validate or compare profiles, which say what is trained"),
        "plan": ("cli.plan", "memory, arithmetic and traffic of a profile, before any GPU starts"),
        "monitor": ("gpu.monitor", "watch the GPUs and who uses them"),
        "bench": ("cli.bench", "time training steps beside a plain PyTorch loop"),
    },
    "tokenizers": {
        "evaluate": ("cli.evaluate", "score tokenizers on held-out motion"),
        "render": ("cli.render", "a video of truth and reconstruction as stick figures"),
        "encode": ("cli.encode", "turn motion files into codes"),
        "decode": ("cli.encode", "turn codes back into motion files"),
        "export": ("cli.export", "write a run's tokenizer to a folder, or as others read it"),
        "import": ("cli.import_", "make a tokenizer of MoMask's, GestureLSM's or T2M-GPT's"),
    },
    "this program": {
        "completion": ("cli.completion", "print what lets your shell complete commands and flags"),
    },
}
"""By title of the help: the module of each, whose `add_VERB` fills its parser, and what it does in a line."""
_EXAMPLES = (
    ("ds-rvqvae train --demo", "a first run, on any machine"),
    ("ds-rvqvae train --data_path /data/BEAT2", "on GPUs 1 to 7"),
)
_LAST = """\
ds-rvqvae COMMAND --help, or ds-rvqvae help COMMAND: its flags, with examples.
eval "$(ds-rvqvae completion bash)": TAB completes commands and flags.
"""


class _MainParser(FlagParser):
    """The parser above all commands, whose help has them in groups."""

    def format_help(self) -> str:
        lines = ["usage: ds-rvqvae COMMAND [flags]", "", "Trains tokenizers of human motion, and works with them.", ""]
        for title, verbs in _VERBS.items():
            lines += [title, *(f"  {verb:<12}{words}" for verb, (_, words) in verbs.items()), ""]
        lines += ["examples", *(f"  {line:<42}{words}" for line, words in _EXAMPLES)]
        return "\n".join([*lines, "", _LAST])


def main(argv: list[str] | None = None) -> int:
    """Runs one verb and gives its exit status (see `ExitStatus`).

    Args:
        argv: of a caller that goes on afterwards; None: the program's own, which ends with it.
    """
    line = sys.argv[1:] if argv is None else argv
    # To stop watching is no failure.
    stopped = {"stopped": (ExitStatus.DONE, "")} if line[:1] == ["monitor"] else {}
    return exit_status_of(lambda: _run(line), is_program=argv is None, **stopped)


def make_parser() -> FlagParser:
    """The parser of every command, each still to be filled."""
    parser = _MainParser(prog="ds-rvqvae")
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(metavar="COMMAND", parser_class=FlagParser)
    for group in _VERBS.values():
        for verb, (module, words) in group.items():
            verbs.add_parser(
                verb, help=words, description=f"{words[:1].upper()}{words[1:]}.", fill=_filler(verb, module)
            )
    return parser


def _run(argv: list[str]) -> int:
    asked = argv[:1] == ["help"]
    args = make_parser().parse_args([*argv[1:], "--help"] if asked else argv)
    status: int = args.verb(args)
    return status


def _filler(verb: str, module: str) -> "Callable[[FlagParser], None]":
    def fill(parser: FlagParser) -> None:
        getattr(import_module(f"ds_rvqvae.{module}"), f"add_{verb}")(parser)

    return fill
