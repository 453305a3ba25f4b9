"""`ds-rvqvae completion`: print a script with which a shell completes commands, flags and their values. Completing runs
no Python."""

import argparse
from typing import TYPE_CHECKING

from ds_rvqvae.errors import UserError
from ds_rvqvae.process.command import print_out

if TYPE_CHECKING:
    from ds_rvqvae.config.parser import FlagParser

_SHELLS = ("bash", "zsh", "fish", "tcsh")
_FILES = ("PATH", "DIR", "FILE", "FOLDER", "RUN", "STORE", "DATA", "MOTION", "TOKENIZER")
"""Placeholders for files and folders in the help."""
_PROFILES = """
_ds_rvqvae_profiles() {
  compgen -W "%s" -- $1
  _shtab_compgen_files $1
}
"""
_EQUALS = """
# bash has `--flag`, `=` and `value` as three words, of which shtab knows the first and the last.
_ds_rvqvae() {
  local word words=()
  for word in "${COMP_WORDS[@]:0:COMP_CWORD+1}"; do [[ $word == = ]] || words+=("$word"); done
  [[ ${COMP_WORDS[COMP_CWORD]} != = ]] || words+=("")
  local COMP_WORDS=("${words[@]}") COMP_CWORD=$((${#words[@]} - 1))
  _shtab_ds_rvqvae
}
complete -o bashdefault -F _ds_rvqvae ds-rvqvae
"""


def add_completion(parser: "FlagParser") -> None:
    """Fills the parser of `ds-rvqvae completion`."""
    parser.add_argument("shell", choices=_SHELLS, metavar="SHELL", help=", ".join(_SHELLS))
    parser.epilog = "The script belongs to this version: print it again after an update."
    parser.examples = (
        ("bash > ~/.ds-rvqvae.bash", "bash, with `source ~/.ds-rvqvae.bash` in ~/.bashrc"),
        ("zsh > ~/_ds-rvqvae", "zsh, once that file is in a folder of fpath"),
        ("fish > ~/.ds-rvqvae.fish", "fish, with `source ~/.ds-rvqvae.fish` in config.fish"),
    )
    parser.set_defaults(verb=_complete)


def _complete(args: argparse.Namespace) -> int:
    try:
        import shtab
    except ImportError:
        raise UserError("completion needs the package shtab; install it: pip install shtab") from None
    from ds_rvqvae import cli

    parser = cli.make_parser()
    _prepare(parser, args.shell)
    script = shtab.complete(parser, shell=args.shell)
    print_out(f"{script}\n{_EQUALS if args.shell == 'bash' else ''}")
    return 0


def _prepare(parser: "FlagParser", shell: str) -> None:
    """Fills a parser and those below it, and sets the completion of each flag: words, shipped profiles, else files."""
    import shtab

    from ds_rvqvae.config.profile import shipped_profiles

    parser.fill()
    for _, _, below in parser.commands():
        _prepare(below, shell)
    for action in parser._actions:
        shown = str(action.metavar or "")
        if action.dest in ("profile", "profiles"):
            profiles = list(shipped_profiles())
            if shell == "bash":
                preamble = {shell: _PROFILES % " ".join(profiles)}
                action.complete = {shell: "_ds_rvqvae_profiles", "preamble": preamble}  # type: ignore[attr-defined]
            else:
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # the user's own profile
        elif action.nargs != 0 and not action.choices and "=" not in shown and any(word in shown for word in _FILES):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
