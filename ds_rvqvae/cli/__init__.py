"""`ds-rvqvae COMMAND`. A module for each command, imported where its command is asked for, whose own imports are late:
help and profiles answer at once."""

import sys
from collections.abc import Callable, Mapping, Sequence
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
_GROUPS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "prepare": {
        "how files are read": ("format", "source_fps", "metres_per_unit", "up_axis", "speakers", "split_version"),
        "what the store holds": ("profile", "fps", "split", "store_dtype", "set"),
    },
    "render": {
        "what is shown": ("clip", "levels", "start", "seconds", "skeleton", "codes"),
        "the video": ("out", "size", "fps"),
    },
    "decode": {"what is written": ("out", "levels", "fps", "matrices", "overwrite")},
    "import": {
        "its motion": ("mean", "std", "no_normalisation", "fps", "body_part"),
        "its nets": ("activation", "norm", "dilation_growth_rate"),
    },
    "plan": {"the GPUs": ("gpus", "card", "gpu_memory"), "the motion": ("in_features", "data_path")},
}
"""Groups of flags in the help of commands that have many; all others stay where they are."""
_EXAMPLES = {
    "prepare": (
        ("/data/bvh --out stores/mine", "the same command goes on where it was stopped"),
        ("/data/amass --out stores/amass --up_axis z", "files whose z axis points up"),
    ),
    "store show": (("stores/mine --clips", "with every clip"),),
    "store verify": (("stores/mine", "every checksum"),),
    "data plot": (("stores/mine --out mine.png", "one picture of it all"),),
    "profile show": (("baseline --set rvqvae.model.width=256", "a shipped profile, changed"),),
    "profile validate": (("mine.json", "before a run is started with it"),),
    "profile diff": (("baseline best", "what best does otherwise"),),
    "profile schema": (("> ds_configs/profile.schema.json", "for an editor, by $schema"),),
    "plan": (
        ("baseline", "on seven RTX 4090s"),
        ("large --gpus 8 --card h100", "on others"),
    ),
    "monitor": (
        ("", "every five seconds, until Ctrl-C"),
        ("--once --json gpus.jsonl", "for programs"),
        ("--require_idle 0", "ends with status 3 where GPU 0 is in use"),
    ),
    "bench": (("demo --no_plain --trace step.json", "where the time of a step goes"),),
    "evaluate": (
        ("runs/baseline-BEAT2-upper --split test", "a run on the clips that it never saw"),
        ("runs/one runs/two", "runs side by side"),
    ),
    "render": (("runs/baseline-BEAT2-upper /data/BEAT2/walk.npz --out walk.mp4", "truth and reconstruction"),),
    "encode": (("runs/baseline-BEAT2-upper /data/BEAT2 --out codes", "a codes file per clip"),),
    "decode": (("runs/baseline-BEAT2-upper codes --out motion", "in the format that was encoded"),),
    "export": (
        ("runs/baseline-BEAT2-upper --checkpoint best --out upper", "one folder to hand on"),
        ("runs/baseline-BEAT2-upper --format momask --out for_momask", "as MoMask's own code loads it"),
    ),
    "import": (("rvq/net_best_fid.tar --format momask --out tokenizers/momask", "from MoMask's"),),
}
"""Command lines for the end of each help, without the command itself."""
_FIRST_STEPS = (
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
        lines += ["examples", *(f"  {line:<42}{words}" for line, words in _FIRST_STEPS)]
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
        parser.examples = parser.examples or _EXAMPLES.get(verb, ())
        _group(parser, _GROUPS.get(verb, {}))
        for name, words, below in parser.commands():
            below.description = f"{words[:1].upper()}{words[1:]}."
            below.examples = _EXAMPLES.get(f"{verb} {name}", ())

    return fill


def _group(parser: FlagParser, groups: Mapping[str, Sequence[str]]) -> None:
    """Moves flags from the one list that argparse makes of them into groups."""
    flags = parser._optionals._group_actions
    for title, names in groups.items():
        chosen = [action for action in flags if action.dest in names]
        parser.add_argument_group(title)._group_actions.extend(chosen)
        flags[:] = [action for action in flags if action not in chosen]
