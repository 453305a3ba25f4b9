"""What can go wrong as a user meets it: one line on stderr and an exit status."""

import logging
import pickle
from pathlib import Path

import pytest

from ds_rvqvae.errors import ExitStatus, PrintableFormatter, UserError, exit_status_of, printable


def test_control_characters_are_not_printed():
    assert printable("a\x1b[2Jb\nc") == "a?[2Jb?c"


def raising(error):
    def command():
        raise error

    return command


def test_a_command_that_ends_well_has_the_status_it_gives(capsys):
    assert exit_status_of(lambda: ExitStatus.PARTLY_DONE) is ExitStatus.PARTLY_DONE
    assert capsys.readouterr() == ("", "")


def test_what_the_user_can_put_right_is_one_line_with_its_own_status(capsys):
    assert exit_status_of(raising(UserError("no clip x\x1b[2J"))) is ExitStatus.BAD_INPUT
    assert exit_status_of(raising(UserError("busy", ExitStatus.CARD_NOT_IDLE))) is ExitStatus.CARD_NOT_IDLE
    assert capsys.readouterr() == ("", "error: no clip x?[2J\nerror: busy\n")


def test_details_are_lines_and_no_name_makes_one(capsys):
    exit_status_of(raising(UserError("o\nne", details=["two\x07\r"])))
    assert capsys.readouterr().err == "error: o?ne\ntwo??\n"


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


def test_an_interrupt_is_a_stop_without_a_word(capsys):
    assert exit_status_of(raising(KeyboardInterrupt())) is ExitStatus.STOPPED
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("debug", [False, True])
def test_an_error_of_our_own_is_one_line_and_its_traceback_only_where_asked_for(capsys, monkeypatch, debug):
    monkeypatch.setenv("DS_RVQVAE_DEBUG", "1" if debug else "")
    assert exit_status_of(raising(ValueError("what"))) is ExitStatus.FAILED
    *traceback, line = capsys.readouterr().err.splitlines()
    assert line == "error: ValueError: what (DS_RVQVAE_DEBUG=1 shows the traceback)"
    assert any("in command" in text for text in traceback) is debug
    assert bool(traceback) is debug
