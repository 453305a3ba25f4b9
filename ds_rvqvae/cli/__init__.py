"""`ds-rvqvae VERB`. A module for each verb, whose imports are late, so that help and profiles answer at once."""

from ds_rvqvae import __version__
from ds_rvqvae.cli import bench, data, encode, evaluate, export, import_, plan, prepare, profile, render, store
from ds_rvqvae.config.flags import FlagParser
from ds_rvqvae.process.command import exit_status_of

_COMMANDS = (prepare, store, data, encode, evaluate, export, render, import_, bench, plan, profile)


def main(argv: list[str] | None = None) -> int:
    """Runs one verb and gives its exit status (see `ExitStatus`)."""
    parser = FlagParser(prog="ds-rvqvae", description="Tools round the training of motion tokenizers.")
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for command in _COMMANDS:
        command.add_to(verbs)
    args = parser.parse_args(argv)
    return exit_status_of(lambda: args.verb(args))
