"""How command lines are read; it takes nothing of the profile, so that help answers at once."""

import argparse
import difflib
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from ds_rvqvae.errors import ExitStatus, printable
from ds_rvqvae.process.command import print_out


class FlagParser(argparse.ArgumentParser):
    """A parser whose refusals are one line on stderr and exit status 2; abbreviated flags are refused.

    Args:
        fill: adds its arguments, once it has something to parse: a verb's parser that is not asked for stays empty.
    """

    def __init__(
        self, *arguments: Any, fill: "Callable[[argparse.ArgumentParser], None] | None" = None, **keywords: Any
    ) -> None:
        super().__init__(*arguments, **{**keywords, "allow_abbrev": False})
        self._fill = fill

    def fill(self) -> None:
        """Adds the arguments that are still to be added."""
        fill, self._fill = self._fill, None
        if fill is not None:
            fill(self)

    def parse_known_args(self, *given: Any, **named: Any) -> Any:
        """As argparse's."""
        self.fill()
        return super().parse_known_args(*given, **named)

    def _print_message(self, message: str, file: Any = None) -> None:
        """argparse's, which takes no heed of what it cannot write."""
        if message and file is sys.stdout:
            print_out(message)
        else:
            super()._print_message(message, file)

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            message = f"unknown flag {unknown}{self._nearest_flag(unknown)}"
        self.exit(ExitStatus.BAD_INPUT, f"error: {printable(message)} (--help lists the flags)\n")

    def _nearest_flag(self, unknown: str) -> str:
        flag = unknown.split()[0].partition("=")[0]
        # What a verb's parser leaves may have a near name only in the parser above it, and the other way round.
        known = [name for name in self._known_flags() if name != flag]
        near = difflib.get_close_matches(flag, known, n=1, cutoff=0.6)
        return f"; did you mean {near[0]}?" if near else ""

    def _known_flags(self) -> list[str]:
        """This parser's flags and those of the verb in use, which leaves what it does not know to it."""
        known = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                known += [flag for verb in action.choices.values() for flag in verb._known_flags()]
        return known
