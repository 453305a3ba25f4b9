"""Read command lines. This module does not import the profile, so that help answers at once."""

import argparse
import itertools
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ds_rvqvae.errors import ExitStatus, printable
from ds_rvqvae.process.command import print_out

_HELP = ("-help", "--h", "-?")
"""Other spellings of `--help`."""
_MOST_IN_USAGE = 4
"""Most flags that a usage line names; if there are more, it says `[flags]`."""


class HelpFormatter(argparse.HelpFormatter):
    """argparse's formatter, with one line per flag if there is room.

    If an action has `shown_default`, a callable, its value is shown in brackets behind the help.
    """

    def __init__(self, prog: str, **named: Any) -> None:
        super().__init__(prog, **{"max_help_position": 30, **named})

    def _get_help_string(self, action: argparse.Action) -> str:
        default = getattr(action, "shown_default", lambda: "")()
        return f"{action.help or ''} [{default}]".replace("%", "%%") if default else action.help or ""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"

    def _format_action(self, action: argparse.Action) -> str:
        text = super()._format_action(action)
        lines = text.splitlines()
        if len(lines) == 2:
            first, second = lines[0], lines[1].strip()
            if action.help and len(first) + 2 + len(second) <= self._width:
                return f"{first}  {second}\n"
        return text


class FlagParser(argparse.ArgumentParser):
    """A parser whose errors are one line on stderr and exit status 2; abbreviated flags are errors.

    A parser with subcommands prints its help if none is given, and exits with status 0.

    Args:
        fill: adds the arguments when the parser is first used, so that parsers of other subcommands stay empty.

    Attributes:
        examples: command lines without the program's name, each with a description, for the end of the help.
    """

    def __init__(self, *arguments: Any, fill: "Callable[[FlagParser], None] | None" = None, **keywords: Any) -> None:
        super().__init__(*arguments, **{"formatter_class": HelpFormatter, **keywords, "allow_abbrev": False})
        self._fill = fill
        self._words: list[str] = []
        self.examples: Sequence[tuple[str, str]] = ()

    def fill(self) -> None:
        """Adds the arguments if that is not done yet."""
        fill, self._fill = self._fill, None
        if fill is not None:
            fill(self)

    def parse_known_args(self, *given: Any, **named: Any) -> Any:
        """Does what argparse's method does, after `fill` and with other spellings of `--help`."""
        self.fill()
        line, *rest = given or (named.pop("args", None),)
        words = self._words = ["--help" if w in _HELP else w for w in (sys.argv[1:] if line is None else line)]
        return super().parse_known_args(words, *rest, **named)

    def add_subparsers(self, **keywords: Any) -> Any:
        """Does what argparse's method does; if no subcommand is given, the help of this parser is shown."""

        def show_help(_: object) -> int:
            self.print_help()
            return ExitStatus.DONE

        self.set_defaults(verb=show_help)
        return super().add_subparsers(**{**keywords, "required": False})

    def commands(self) -> "Iterator[tuple[str, str, FlagParser]]":
        """Yields the direct subcommands: name, line of help, and parser."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for shown in action._choices_actions:
                    yield shown.dest, shown.help or "", action.choices[shown.dest]

    def format_help(self) -> str:
        """Returns argparse's help, with the examples at the end."""
        usage = self.usage
        # If `--help` is the only flag without a group, it comes last, because readers need it least.
        self._action_groups.sort(key=lambda group: group is self._optionals and len(group._group_actions) == 1)
        if usage is None and len([action for action in self._actions if action.option_strings]) > _MOST_IN_USAGE:
            self.usage = self._short_usage()
        try:
            text = super().format_help()
        finally:
            self.usage = usage
        if not self.examples:
            return text
        shown = [f"  # {words}\n  {self.prog} {line}".rstrip() for line, words in self.examples]
        return "\n".join([text, "examples:", *shown, ""])

    def _short_usage(self) -> str:
        """Returns a usage line with the required arguments and `[flags]`."""
        formatter = self._get_formatter()
        required = [action for action in self._actions if action.option_strings and action.required]
        positional = [action for action in self._actions if not action.option_strings]
        line = formatter._format_actions_usage([*positional, *required], [])
        line = re.sub(r"(\S+) \[\1 \.\.\.\]", r"\1…", line)  # one or more
        lines = textwrap.wrap(f"{self.prog} {line} [flags]", formatter._width - len("usage: "), break_on_hyphens=False)
        return "\n       ".join(lines).replace("%", "%%")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Prints to standard output with `print_out`, because argparse ignores write errors."""
        if message and file is sys.stdout:
            print_out(message)
        else:
            super()._print_message(message, file)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            from ds_rvqvae.config.hints import of_command

            first = self._words[0]
            if first.startswith("-") and first.partition("=")[0] not in self._option_string_actions:
                # argparse may have taken the flag's value for a command.
                self.error(f"unknown flag {first}; a command goes before its flags", "--help lists the commands")
            self.error(f"no command {value!r}{of_command(value, action.choices)}", "--help lists the commands")
        super()._check_value(action, value)

    def error(self, message: str, advice: str = "--help lists the flags") -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            message = self._of_unknown(unknown.split(" "))
        elif message.startswith("the following arguments are required"):
            # If one of them is misspelt, argparse reports it as missing before it reports the unknown flag.
            known = self._option_string_actions
            strange = [word for word in self._words if word.startswith("--") and word.partition("=")[0] not in known]
            message += f". U{self._of_unknown(strange)[1:]}" if strange else ""
        self.exit(ExitStatus.BAD_INPUT, f"error: {printable(message)} ({advice})\n")

    def _of_unknown(self, words: list[str]) -> str:
        """Returns what is wrong with words that no parser knows: each unknown flag, with a hint."""
        from ds_rvqvae.config.hints import of_flag

        known = self._known_flags()
        stray = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
        if stray:
            return f"{' '.join(stray)!r} belongs to no flag{_of_stray(stray[0], known)}"
        # A flag that a subcommand does not know may be similar to one of the parser above it, and vice versa.
        flags = dict.fromkeys(word.partition("=")[0] for word in words if word.startswith("-"))
        below = list(self.commands())
        if below and all(verb._fill is not None for _, _, verb in below):
            first = next(iter(flags))
            return f"unknown flag {first}{of_flag(first, known) or '; a command goes before its flags'}"
        said = [
            f"unknown flag {flag}{self._positional(flag) or of_flag(flag, [name for name in known if name != flag])}"
            for flag in flags
        ]
        return ". ".join([said[0], *(f"U{clause[1:]}" for clause in said[1:3])])

    def _positional(self, flag: str) -> str:
        """Returns the hint for a flag whose value is a positional argument of this parser or of the subcommand in
        use."""
        name = flag.lstrip("-").lower()
        for action in self._actions:
            if not action.option_strings and name in (action.dest, *str(action.metavar or "").lower().split("|")):
                return f"; give {action.metavar or action.dest} without a flag"
        return next(filter(None, (verb._positional(flag) for _, _, verb in self.commands())), "")

    def _known_flags(self) -> list[str]:
        """Returns this parser's flags and those of the subcommand in use, which passes on what it does not know."""
        known = list(self._option_string_actions)
        for _, _, verb in self.commands():
            known += verb._known_flags()
        return known


def _of_stray(word: str, known: Sequence[str]) -> str:
    if "=" in word and "--set" in known:
        return "; give a key of the profile as --set PATH=VALUE"
    if word.replace(".", "").isdigit():
        return "; join several numbers of one flag with commas"
    return "; give motion with --data_path" if "--data_path" in known and Path(word).exists() else ""
