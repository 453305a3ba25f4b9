"""Optional work: its failures are warnings; requests to end the process are not."""

import pytest

from ds_rvqvae.errors import UserError
from ds_rvqvae.process.signals import Stopped
from ds_rvqvae.process.tolerance import tolerated


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(2, "No such file or directory", "/gone/x"), "No such file or directory: /gone/x"),
        (ValueError("\n  \nfirst\nsecond"), "ValueError: first"),
        (UserError("give another --out"), "give another --out"),
        (KeyError(), "KeyError"),
        (RuntimeError("x" * 1000), f"RuntimeError: {'x' * 160} …"),
        (OSError("a\x1b[2J"), "OSError: a?[2J"),
    ],
)
def test_a_failure_is_a_warning_of_one_line(caplog, error, said):
    with tolerated("no picture", "`ds-rvqvae evaluate` draws it"):
        raise error
    assert caplog.messages == [f"no picture: {said}; `ds-rvqvae evaluate` draws it"]
    told = []
    with tolerated("no picture", warn=told.append):
        raise error
    assert told == [f"no picture: {said}"]


@pytest.mark.parametrize("end", [KeyboardInterrupt(), SystemExit(3), Stopped(15)])
def test_what_ends_a_process_ends_it(end):
    with pytest.raises(type(end)), tolerated("no picture"):
        raise end
