"""Shared by the commands: values of flags, columns of motion, and results as text and as JSON."""

import argparse
import json

import pytest

from ds_rvqvae.cli.common import (
    add_column_flags,
    add_json_flag,
    columns_of,
    count,
    number,
    positive_number,
    print_result,
)
from ds_rvqvae.config.profile import load_profile
from ds_rvqvae.errors import UserError
from tests.data.motion import write_packed

RESULT = {"clips": 3, "hours": 0.5}


def _parse(add_flags, *arguments):
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_flags(parser)
    return parser.parse_args([*map(str, arguments)])


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [(number, "-2.5", -2.5), (number, "1e3", 1000.0), (positive_number, "0.25", 0.25), (count, "12", 12)],
)
def test_flags_become_numbers(kind, text, value):
    found = kind(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("kind", "text", "complaint"),
    [
        *((number, text, f"'{text}' is not a number") for text in ("", "three", "nan", "inf", "-inf", "1e999")),
        (positive_number, "0", "0 is not above 0"),
        (positive_number, "-1", "-1 is not above 0"),
        (positive_number, "x", "'x' is not a number"),
        *((count, text, "is not a whole number from 1") for text in ("", "0", "-1", "1.5", "two")),
    ],
)
def test_other_values_are_refused(kind, text, complaint):
    with pytest.raises(argparse.ArgumentTypeError, match=complaint):
        kind(text)


def test_without_json_a_result_is_text(capsys):
    print_result(_parse(add_json_flag), RESULT, "3 clips\nhalf an hour")
    assert capsys.readouterr().out == "3 clips\nhalf an hour\n"


def test_json_without_a_file_stands_alone_on_standard_output(capsys):
    print_result(_parse(add_json_flag, "--json"), RESULT, "3 clips")
    assert json.loads(capsys.readouterr().out) == RESULT


def test_json_goes_to_a_file_beside_the_text(tmp_path, capsys):
    file = tmp_path / "result.json"
    print_result(_parse(add_json_flag, "--json", file), RESULT, "3 clips")
    assert capsys.readouterr().out == "3 clips\n"
    assert json.loads(file.read_text()) == RESULT and list(tmp_path.iterdir()) == [file]


def test_what_a_terminal_would_obey_is_shown_and_not_sent(capsys):
    print_result(_parse(add_json_flag), RESULT, "clip \x1b[2J\rname\nsecond line")
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 2 and "\x1b" not in printed and "\r" not in printed


@pytest.mark.parametrize(("place", "reason"), [(".", "is a folder"), ("nowhere/a.json", "is not a folder that can be")])
def test_a_json_file_that_cannot_be_written_is_refused_before_any_work(tmp_path, place, reason):
    with pytest.raises(argparse.ArgumentError, match=f"cannot be written: .*{reason}"):
        _parse(add_json_flag, "--json", tmp_path / place)


def test_columns_are_those_given_else_those_of_the_motion_else_of_the_body_part(tmp_path):
    profile = load_profile("demo", ["rvqvae.data.body_part=hands"])
    motion = write_packed(tmp_path / "motion.npz", width=7)
    assert columns_of(_parse(add_column_flags, "--in_features", 3, "--data_path", motion), profile) == 3
    assert columns_of(_parse(add_column_flags, "--data_path", motion), profile) == 7
    # 15 joints of each hand, six numbers each.
    assert columns_of(_parse(add_column_flags), profile) == 2 * 15 * 6
    # The motion that a profile names is not read for a part of SMPL-X.
    named = profile.with_values({"rvqvae.data.path": str(motion)})
    assert columns_of(_parse(add_column_flags), named) == 180


@pytest.mark.parametrize("columns", [0, -1])
def test_less_than_a_column_is_refused(columns):
    with pytest.raises(UserError, match=f"--in_features {columns}: give 1 or more"):
        columns_of(_parse(add_column_flags, "--in_features", columns), load_profile("demo"))
