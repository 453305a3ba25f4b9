"""The launcher's own flags: their meaning without a value, and values that are refused."""

import argparse

import pytest

from ds_rvqvae.config.launch_flags import DEEPSPEED_SWITCHES, DEEPSPEED_VALUES, add_deepspeed_flags, add_launch_flags


def parse(*line):
    parser = argparse.ArgumentParser()
    add_launch_flags(parser)
    add_deepspeed_flags(parser)
    return parser.parse_args(line)


def test_flags_without_a_value_mean_what_the_help_says():
    nothing = parse()
    assert (nothing.hang_timeout, nothing.max_restarts, nothing.demo, nothing.dry_run) == (120.0, 0, False, False)
    assert nothing.include is nothing.require_idle is nothing.nccl_debug is nothing.nccl_socket_ifname is None
    bare = parse("--require_idle", "--nccl_debug", "--nccl_socket_ifname")
    assert (bare.require_idle, bare.nccl_debug, bare.nccl_socket_ifname) == ("0", "INFO", "^docker0,lo")


@pytest.mark.parametrize(("text", "seconds"), [("0", 0.0), ("5", 5.0), ("90.5", 90.5)])
def test_a_hang_is_waited_for_so_long_or_never(text, seconds):
    assert parse("--hang_timeout", text).hang_timeout == seconds


@pytest.mark.parametrize("text", ["4.9", "-1", "inf", "nan", "soon", ""])
def test_a_hang_timeout_that_ends_sound_runs_is_refused(text, capsys):
    with pytest.raises(SystemExit) as refusal:
        parse(f"--hang_timeout={text}")
    assert refusal.value.code == 2
    assert f"argument --hang_timeout: {text!r}: give 5 seconds or more, or 0" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["-1", "1.5", "many", ""])
def test_restarts_are_counted_in_whole_numbers(text, capsys):
    assert parse("--max_restarts", "12").max_restarts == 12
    with pytest.raises(SystemExit) as refusal:
        parse(f"--max_restarts={text}")
    assert refusal.value.code == 2 and f"{text!r}: give a number of restarts, 0 or more" in capsys.readouterr().err


def test_deepspeeds_flags_are_taken_by_both_their_names():
    assert parse("-H", "hosts").hostfile == parse("--hostfile", "hosts").hostfile == "hosts"
    assert parse("-q").quiet and parse("--quiet").quiet and not parse().quiet
    assert parse("--num_nodes", "2", "--node_rank", "1", "--ssh_port", "22").num_nodes == 2
    everything = parse(*(f"--{name}=1" for name in DEEPSPEED_VALUES), *(f"--{name}" for name in DEEPSPEED_SWITCHES))
    assert {getattr(everything, name) for name in DEEPSPEED_SWITCHES} == {True}
    numbers = {name for name in DEEPSPEED_VALUES if getattr(everything, name) == 1}
    assert numbers == {"num_nodes", "node_rank"}
    assert {getattr(everything, name) for name in set(DEEPSPEED_VALUES) - numbers} == {"1"}
