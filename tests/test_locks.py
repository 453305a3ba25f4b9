import errno
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from ds_rvqvae import locks
from ds_rvqvae.locks import LOCK_FILE, BusyError, hold_folder
from tests.without_locks import can_refuse

HOLDER = (
    "import os, sys; from pathlib import Path; from ds_rvqvae import locks\n"
    "locks.SILENCE_SECONDS = float(sys.argv[3])\n"
    "held = locks.hold_folder(Path(sys.argv[1]), wait=False, shared=sys.argv[2] == 'shared', say=print, lost=print)\n"
    "print('held' if held.works else 'works not', flush=True); sys.stdin.read(); held.close()"
)
KINDS = ("flock", "flock,fcntl")
"""What is refused to the processes of a test."""

without_locks = pytest.mark.skipif(not can_refuse(), reason="the kernel lets no process be refused its locks")


def other_process(folder, how="alone", *, refused=None, other_machine=False, silence=60.0):
    """A process that holds a folder until its standard input ends, and what it said first."""
    command = [sys.executable, "-c", HOLDER, folder, how, str(silence)]
    if refused:
        command = [sys.executable, "-m", "tests.without_locks", refused, *command]
    if other_machine:
        command = ["unshare", "--user", "--uts", "--map-root-user", "sh", "-c", 'hostname elsewhere; exec "$@"', "sh", *command]
    process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True)
    return process, process.stdout.readline()


def has_other_machines():
    return other_process("/nowhere", other_machine=True)[0].wait() == 1 and "elsewhere" in subprocess.run(
        ["unshare", "--user", "--uts", "--map-root-user", "sh", "-c", "hostname elsewhere; hostname"],
        capture_output=True,
        text=True,
    ).stdout


def test_a_folder_is_held_by_one_process_until_that_ends(tmp_path):
    process, said = other_process(tmp_path)
    assert said == "held\n"
    with pytest.raises(BusyError, match=f"{tmp_path}: process {process.pid} of this machine") as busy:
        hold_folder(tmp_path, wait=False)
    assert busy.value.holder == f"process {process.pid} of this machine ({socket.gethostname()})"
    process.kill()
    process.wait()
    with hold_folder(tmp_path, wait=False) as held:
        assert held.works and not any(tmp_path.iterdir())
        with pytest.raises(BusyError):
            hold_folder(tmp_path, wait=False)
    hold_folder(tmp_path, wait=True).close()


def test_readers_hold_a_folder_together_and_keep_writers_out(tmp_path):
    process, said = other_process(tmp_path, "shared")
    with hold_folder(tmp_path, wait=False, shared=True), pytest.raises(BusyError):
        hold_folder(tmp_path, wait=False)
    process.communicate("")
    assert said == "held\n"
    hold_folder(tmp_path, wait=False).close()


def test_a_fork_holds_nothing_and_leaves_its_parents_hold_alone(tmp_path, leased):
    for works in (False, True):
        leased(works)
        held = hold_folder(tmp_path, wait=False)
        child = os.fork()
        if not child:
            held.close()
            signal.pause()
        with pytest.raises(BusyError):
            hold_folder(tmp_path, wait=False)
        held.close()
        hold_folder(tmp_path, wait=False).close()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.fixture
def leased(monkeypatch):
    """Makes the disk of this test count as one that other machines see, or as its own."""

    def set_to(works):
        monkeypatch.setattr(locks, "_LOCAL", frozenset() if works else frozenset(local))

    local = locks._LOCAL
    return set_to
