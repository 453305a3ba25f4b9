"""Errors as a user sees them: one line on stderr and an exit status."""

import logging
import pickle
from pathlib import Path

import pytest

from ds_rvqvae.errors import ExitStatus, PrintableFormatter, UserError, printable


def test_control_characters_are_not_printed():
    assert printable("a\x1b[2Jb\nc") == "a?[2Jb?c"


def test_a_message_can_be_sent_to_another_process(capsys):
    error = pickle.loads(pickle.dumps(UserError("one", ExitStatus.CARD_NOT_IDLE, details=["two"])))
    assert (str(error), error.status) == ("one\ntwo", ExitStatus.CARD_NOT_IDLE)


@pytest.mark.parametrize("name", ["\x1b[31m", "\x9b31m", "\u202e", "\u2066", "\udcff", "\n", "\r", "\x07", "\u2028"])
def test_a_log_shows_no_name_raw(name):
    record = logging.LogRecord("x", logging.WARNING, "", 0, "%s: %d of %s", (Path(f"a{name}b"), 3, name), None)
    assert PrintableFormatter("%(levelname)s: %(message)s").format(record) == (
        f"WARNING: a{printable(name)}b: 3 of {printable(name)}"
    )
    assert printable(name).isprintable()


def test_spaces_of_other_scripts_are_kept():
    assert printable("動\u3000作\u00a0a") == "動\u3000作\u00a0a"
