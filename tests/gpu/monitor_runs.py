"""Runs of the monitor with the stand-in's GPUs, and their output."""

import json
import subprocess

from tests.gpu.stand_in import command


def run(stand_in, *flags, **variables):
    environment = {**stand_in.environment, **variables}
    return subprocess.run(command(*flags), env=environment, text=True, capture_output=True, timeout=60)


def records(stand_in, *flags, **variables):
    done = run(stand_in, *flags, "--json", **variables)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def one_line(done, status):
    """The refusal of a run that ended with `status`."""
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")
    return done.stderr
