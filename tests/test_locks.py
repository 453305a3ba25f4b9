import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from ds_rvqvae import locks
from ds_rvqvae.locks import LOCK_FILE, BusyError, hold_folder
from tests.without_locks import can_refuse

HOLDER = (
    "import sys; from pathlib import Path; from ds_rvqvae import locks\n"
    "locks.SILENCE_SECONDS = float(sys.argv[3])\n"
    "def say(text): print(text, flush=True)\n"
    "held = locks.hold_folder(Path(sys.argv[1]), wait=False, shared=sys.argv[2] == 'shared', say=say, lost=say)\n"
    "say('held' if held.works else 'nobody is kept out'); sys.stdin.read(); held.close()"
)
ELSEWHERE = ["unshare", "--uts", "--map-root-user", "sh", "-c", 'hostname elsewhere && exec "$@"', "sh"]
"""Runs a command as if on another machine."""

without_flock = pytest.mark.skipif(not can_refuse(), reason="the kernel lets no process be refused its locks")
with_other_machines = pytest.mark.skipif(
    subprocess.run([*ELSEWHERE, "true"], capture_output=True).returncode != 0, reason="needs Linux's user namespaces"
)


@contextmanager
def holder(folder, how="alone", *, refused=None, elsewhere=False, silence=60.0):
    """A process that holds a folder, or has failed to, until its standard input ends; it is killed at the end."""
    command = [sys.executable, "-c", HOLDER, str(folder), how, str(silence)]
    if refused:
        command = [sys.executable, "-m", "tests.without_locks", refused, *command]
    process = subprocess.Popen(
        [*ELSEWHERE, *command] if elsewhere else command, stdin=-1, stdout=-1, stderr=-1, text=True
    )
    try:
        process.said = process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()


@pytest.fixture
def seen_by_others(monkeypatch):
    """Makes the disk count as one that other machines see."""
    monkeypatch.setattr(locks, "_LOCAL", frozenset())


def test_a_folder_is_held_by_one_process_until_that_ends(tmp_path):
    with holder(tmp_path) as process:
        assert process.said == "held\n"
        with pytest.raises(BusyError, match=f"{tmp_path}: process {process.pid} of this machine") as busy:
            hold_folder(tmp_path, wait=False)
    assert busy.value.holder == f"process {process.pid} of this machine ({socket.gethostname()})"
    with hold_folder(tmp_path, wait=False) as held:
        assert held.works and not any(tmp_path.iterdir())
        with pytest.raises(BusyError):
            hold_folder(tmp_path, wait=False)
    hold_folder(tmp_path, wait=True).close()


def test_readers_hold_a_folder_together_and_keep_writers_out(tmp_path):
    with holder(tmp_path, "shared") as process:
        assert process.said == "held\n"
        with hold_folder(tmp_path, wait=False, shared=True), pytest.raises(BusyError):
            hold_folder(tmp_path, wait=False)
    hold_folder(tmp_path, wait=False).close()


@without_flock
@pytest.mark.parametrize("refused", ["flock", "flock,fcntl"])
def test_without_flock_a_lease_names_its_holder_and_goes_with_it(tmp_path, refused):
    with holder(tmp_path, refused=refused) as process:
        assert process.said == "held\n" and [entry.name for entry in tmp_path.iterdir()] == [LOCK_FILE]
        process.send_signal(signal.SIGSTOP)  # a stopped holder still holds it
        command = [sys.executable, "-m", "tests.without_locks", refused, sys.executable, "-c", HOLDER]
        second = subprocess.run([*command, tmp_path, "alone", "0.2"], capture_output=True, text=True)
        assert f"BusyError: {tmp_path}: process {process.pid} of this machine" in second.stderr
        process.send_signal(signal.SIGCONT)
        process.communicate("")
        assert process.returncode == 0 and not any(tmp_path.iterdir())
    with holder(tmp_path, refused=refused) as process:
        process.kill()
        process.wait()
    assert [entry.name for entry in tmp_path.iterdir()] == [LOCK_FILE]  # of the killed one
    began = time.monotonic()
    with holder(tmp_path, refused=refused) as process:
        assert process.said == "held\n" and time.monotonic() - began < 20
    with holder(tmp_path, "shared", refused=refused) as process:
        assert process.said == "nobody is kept out\n"


@with_other_machines
def test_another_machine_keeps_a_folder_while_it_gives_signs_of_life(tmp_path, seen_by_others, monkeypatch):
    monkeypatch.setattr(locks, "SILENCE_SECONDS", 1.5)
    monkeypatch.setitem(globals(), "HOLDER", HOLDER.replace("locks.SILENCE", "locks._LOCAL = (); locks.SILENCE"))
    said = []
    with holder(tmp_path, elsewhere=True, silence=1.5) as process:
        assert process.said == "held\n"
        with pytest.raises(BusyError, match="of elsewhere holds it"):
            _hold_unseen(tmp_path, said)
        process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        with _hold_unseen(tmp_path, said) as held:
            assert held.works and time.monotonic() - began > 1.4
            assert said[-1].endswith("of elsewhere holds it; waiting up to 2 s for it to renew its lock")
            process.send_signal(signal.SIGCONT)  # finds out that it has lost the folder
            assert "has taken the folder" in process.stdout.readline()
        assert not any(tmp_path.iterdir())


def _hold_unseen(folder, said):
    """Holds a folder whose flock is taken by this machine, under the name of another machine."""
    lease = locks._take_lease(folder, False, said.append, said.append)
    return locks.HeldFolder(None, lease)


def test_a_torn_lease_is_no_holder(tmp_path, seen_by_others):
    for content in (b"", b"\0" * 4096, b"filelock/2\npid=", b"\xff\xfe" * 40):
        (tmp_path / LOCK_FILE).write_bytes(content)
        with hold_folder(tmp_path, wait=False) as held:
            assert held.works
        assert not any(tmp_path.iterdir())


def test_threads_wait_for_each_other(tmp_path, seen_by_others):
    inside, most = [], []

    def enter():
        with hold_folder(tmp_path, wait=True):
            inside.append(1)
            time.sleep(0.02)
            most.append(len(inside))
            inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == [1, 1, 1, 1] and not any(tmp_path.iterdir())


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_fork_holds_nothing_and_leaves_its_parents_hold_alone(tmp_path, elsewhere, request):
    if elsewhere:
        request.getfixturevalue("seen_by_others")
    held = hold_folder(tmp_path, wait=False)
    child = os.fork()
    if not child:
        held.close()
        signal.pause()
    try:
        with pytest.raises(BusyError):
            hold_folder(tmp_path, wait=False)
        held.close()
        hold_folder(tmp_path, wait=False).close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_what_cannot_be_locked_is_said_once(tmp_path, seen_by_others):
    (tmp_path / LOCK_FILE).mkdir()  # as a folder that cannot be written, which root can
    said = []
    for _ in range(2):
        with hold_folder(tmp_path, wait=False, say=said.append) as held:
            assert held.works  # on this machine alone
    assert len(said) == 1 and "a second start on another machine would not be noticed" in said[0]
