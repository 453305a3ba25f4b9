"""`ds-rvqvae COMMAND`. Each command has a module, which is imported only for that command and imports slow libraries
late, so that help and profiles answer at once."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

from ds_rvqvae import __version__
from ds_rvqvae.config.parser import FlagParser
from ds_rvqvae.errors import ExitStatus, say
from ds_rvqvae.process.command import exit_status_of
from ds_rvqvae.process.torch_build import check_torch

_VERBS = {
    "data": {
        "prepare": ("cli.prepare", "pack motion files into a store that training reads"),
        "store": ("cli.store", "show or verify a prepared store"),
        "data": ("cli.data", "draw the motion of a store, to check it before training"),
    },
    "training": {
        "train": ("launch.main", "train a tokenizer, or several for a body, on GPUs 1 to 7 or others"),
        "profile": ("cli.profile", "show, validate or compare profiles (a run's settings)"),
        "plan": ("cli.plan", "compute a profile's memory, arithmetic and traffic without a GPU"),
        "monitor": ("gpu.monitor", "watch the GPUs and their processes"),
        "bench": ("cli.bench", "time training steps and compare with a plain PyTorch loop"),
    },
    "tokenizers": {
        "evaluate": ("cli.evaluate", "score tokenizers on held-out motion"),
        "render": ("cli.render", "make a video of original and reconstruction as stick figures"),
        "encode": ("cli.encode", "turn motion files into codes"),
        "decode": ("cli.encode", "turn codes back into motion files"),
        "export": ("cli.export", "write a run's tokenizer, for this program or for other systems"),
        "import": ("cli.import_", "convert a tokenizer of MoMask, GestureLSM or T2M-GPT"),
    },
    "this program": {
        "completion": ("cli.completion", "print a script for your shell that completes commands and flags"),
    },
}
"""Commands by title in the help: the module, whose `add_VERB` fills the parser, and one line about it."""
_WITH_TORCH = frozenset({"bench", "evaluate", "render", "encode", "decode", "export", "import"})
"""The commands that compute with torch; `train` checks it by itself."""
_GROUPS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "prepare": {
        "reading the files": ("format", "source_fps", "metres_per_unit", "up_axis", "speakers", "split_version"),
        "skeletons and robots": ("skeleton", "robot", "csv_units", "joints", "joint_names", "skeleton_of"),
        "content of the store": ("profile", "fps", "split", "store_dtype", "set"),
    },
    "evaluate": {
        "features of encoders": ("features", "feature_window", "evaluator", "evaluator_mean", "evaluator_std"),
        "the results": ("pictures", "json", "markdown", "latex"),
    },
    "render": {
        "the motion": ("clip", "levels", "start", "seconds", "skeleton"),
        "the video": ("out", "size", "fps", "codes"),
    },
    "decode": {"the output": ("out", "levels", "fps", "matrices", "overwrite")},
    "import": {
        "its motion": ("mean", "std", "no_normalisation", "fps", "body_part"),
        "its nets": ("activation", "norm", "dilation_growth_rate"),
    },
    "bench": {"what is measured": ("host", "compile", "checkpointing", "no_plain", "rounds", "trace")},
    "plan": {"the GPUs": ("gpus", "card", "gpu_memory"), "the motion": ("in_features", "data_path")},
}
"""Groups of flags in the help of commands with many flags; other flags stay where they are."""
_EXAMPLES = {
    "prepare": (
        ("/data/bvh --out stores/mine", "if stopped, the same command continues"),
        ("/data/amass --out stores/amass --up_axis z", "files whose z axis points up"),
    ),
    "store show": (("stores/mine --clips", "with every clip"),),
    "store verify": (("stores/mine", "every checksum"),),
    "data plot": (("stores/mine --out mine.png", "one picture of the complete store"),),
    "profile show": (("baseline --set rvqvae.model.width=256", "a shipped profile with one change"),),
    "profile validate": (("mine.json", "before a run with it"),),
    "profile diff": (("baseline best", "the differences"),),
    "profile keys": (("window", "keys about windows"), ("--markdown", "all keys, as tables")),
    "profile schema": (("> ds_configs/profile.schema.json", "for editors, with $schema"),),
    "plan": (
        ("baseline", "on seven RTX 4090s"),
        ("large --gpus 8 --card h100", "on other GPUs"),
    ),
    "monitor": (
        ("", "every five seconds, until Ctrl-C"),
        ("--once --json gpus.jsonl", "for programs"),
        ("--require_idle 0", "exit status 3 if GPU 0 is in use"),
    ),
    "bench": (
        ("demo --no_plain --trace step.json", "the time of each part of a step"),
        ("baseline --host", "the host's time of a step, with its operations"),
    ),
    "evaluate": (
        ("runs/baseline-BEAT2-upper --split test", "a run on its held-out test clips"),
        ("runs/one runs/two", "compare runs"),
        ("runs/one runs/two --split test --latex table.tex", "their table for a paper"),
    ),
    "render": (("runs/baseline-BEAT2-upper /data/BEAT2/walk.npz --out walk.mp4", "original and reconstruction"),),
    "encode": (("runs/baseline-BEAT2-upper /data/BEAT2 --out codes", "one codes file per clip"),),
    "decode": (("runs/baseline-BEAT2-upper codes --out motion", "in the format of the encoded files"),),
    "export": (
        ("runs/baseline-BEAT2-upper --checkpoint best --out upper", "one folder to share"),
        ("runs/baseline-BEAT2-upper --format momask --out for_momask", "for MoMask's own code"),
    ),
    "import": (("rvq/net_best_fid.tar --format momask --out tokenizers/momask", "from MoMask"),),
}
"""Examples for the end of each help, without the command itself."""
_FIRST_STEPS = (
    ("ds-rvqvae train --demo", "a first run, on any machine"),
    ("ds-rvqvae train --data_path /data/BEAT2", "on GPUs 1 to 7"),
)
_LAST = """\
ds-rvqvae COMMAND --help, or ds-rvqvae help COMMAND: its flags, with examples.
eval "$(ds-rvqvae completion bash)": TAB completes commands and flags.
"""


class _MainParser(FlagParser):
    """The main parser, whose help shows the commands in groups."""

    def format_help(self) -> str:
        lines = ["usage: ds-rvqvae COMMAND [flags]", "", "Trains tokenizers of human motion, and uses them.", ""]
        for title, verbs in _VERBS.items():
            lines += [title, *(f"  {verb:<12}{words}" for verb, (_, words) in verbs.items()), ""]
        lines += ["examples", *(f"  {line:<42}{words}" for line, words in _FIRST_STEPS)]
        return "\n".join([*lines, "", _LAST])


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit status (see `ExitStatus`).

    Args:
        argv: arguments from a caller that continues afterwards; None: those of this program, which ends with the
            command.
    """
    line = sys.argv[1:] if argv is None else argv
    # Stopping the monitor is not a failure.
    stopped = {"stopped": (ExitStatus.DONE, "")} if line[:1] == ["monitor"] else {}
    return exit_status_of(lambda: _run(line), is_program=argv is None, **stopped)


def make_parser() -> FlagParser:
    """Returns the parser with all commands, whose own parsers are filled on first use."""
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
    if not _WITH_TORCH.isdisjoint(argv[:1]) and (newer := check_torch()):
        say(f"warning: {newer}")
    status: int = args.verb(args)
    return status


def _filler(verb: str, module: str) -> "Callable[[FlagParser], None]":
    def fill(parser: FlagParser) -> None:
        getattr(import_module(f"ds_rvqvae.{module}"), f"add_{verb}")(parser)
        parser.examples = parser.examples or _EXAMPLES.get(verb, ())
        _group(parser, _GROUPS.get(verb, {}))
        for name, words, below in parser.commands():
            below.description = f"{words[:1].upper()}{words[1:]}."
            below.examples = _EXAMPLES.get(f"{verb} {name}", ())

    return fill


def _group(parser: FlagParser, groups: Mapping[str, Sequence[str]]) -> None:
    """Moves flags from argparse's single list into groups."""
    flags = parser._optionals._group_actions
    for title, names in groups.items():
        chosen = [action for action in flags if action.dest in names]
        parser.add_argument_group(title)._group_actions.extend(chosen)
        flags[:] = [action for action in flags if action not in chosen]
