"""Runs a command as on a file system without locks: the kernel refuses them to it and to all that it starts.

python -m tests.without_locks flock COMMAND…          # refuses flock, as network file systems may
python -m tests.without_locks flock,fcntl COMMAND…    # the locks of fcntl and open file descriptions too
"""

import ctypes
import errno
import os
import platform
import struct
import subprocess
import sys

_NUMBERS = {"x86_64": (73, 72), "aarch64": (32, 25)}
"""Of the system calls flock and fcntl, by machine."""
_LOCK_COMMANDS = (5, 6, 7, 36, 37, 38)
"""F_GETLK, F_SETLK, F_SETLKW and those of open file descriptions."""
_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000 | errno.ENOSYS
_NUMBER_AT, _COMMAND_AT = 0, 16 + 8


def refuse_locks(kinds: str) -> None:
    """Refuses locks to this process for good; raises OSError where the kernel has no seccomp."""
    flock, fcntl = _NUMBERS[platform.machine()]
    commands = _LOCK_COMMANDS if "fcntl" in kinds.split(",") else ()
    # Each step is (code, steps to skip where true, where false, value).
    program = [
        (_LOAD, 0, 0, _NUMBER_AT),
        (_EQUAL, 3 + len(commands), 0, flock),
        (_EQUAL, 0, 1 + len(commands), fcntl),
        (_LOAD, 0, 0, _COMMAND_AT),
        *((_EQUAL, len(commands) - index, 0, command) for index, command in enumerate(commands)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERROR),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    described = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or prctl(_SECCOMP, _FILTER, ctypes.byref(described), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


def can_refuse() -> bool:
    """Whether the kernel lets a command be run without locks."""
    command = [sys.executable, "-m", "tests.without_locks", "flock", "true"]
    return platform.machine() in _NUMBERS and subprocess.run(command, capture_output=True).returncode == 0


if __name__ == "__main__":
    refuse_locks(sys.argv[1])
    os.execvp(sys.argv[2], sys.argv[2:])
