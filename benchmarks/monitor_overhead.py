"""Measures the cost of the GPU monitor: the fraction of one core that it uses while it draws its table every second.

    python benchmarks/monitor_overhead.py [--interval 1] [--seconds 30] [--library DIR] [--json [FILE]]

The monitor runs in a terminal of its own (160 x 50); its start does not count, and /proc/PID/stat gives its time.
Without a driver, `--library` names a folder with another libnvidia-ml.so.1, such as the tests' stand-in for eight RTX
4090s:
`mkdir stand-in && cc -shared -fPIC -o stand-in/libnvidia-ml.so.1 tests/gpu/nvml_stand_in.c`.
"""

import argparse
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

from ds_rvqvae.process.command import begin_program, print_out, run_program

if __name__ == "__main__":
    begin_program()  # before the slow imports

import psutil

MONITOR = Path(__file__).resolve().parent.parent / "launch" / "monitor_gpu.py"
COLUMNS, ROWS = 160, 50
START_SECONDS = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--interval", type=float, default=1.0, help="the monitor's interval in seconds (default: 1)")
    parser.add_argument("--seconds", type=float, default=30.0, help="duration of the measurement (default: 30)")
    parser.add_argument("--library", type=Path, metavar="DIR", help="folder of the libnvidia-ml.so.1 to load")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="the result as JSON")
    args = parser.parse_args()
    environment = {**os.environ, "TERM": "xterm-256color"}
    if args.library:
        environment["LD_LIBRARY_PATH"] = str(args.library.absolute())
    terminal, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    monitor = subprocess.Popen(
        [sys.executable, str(MONITOR), str(args.interval)], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    drawn: list[int] = []
    threading.Thread(target=_drain, args=(terminal, drawn), daemon=True).start()
    time.sleep(START_SECONDS)
    if monitor.poll() is not None:
        print(f"error: the monitor ended with status {monitor.returncode}", file=sys.stderr)
        return 2
    process = psutil.Process(monitor.pid)
    before, began, bytes_before = process.cpu_times(), time.monotonic(), sum(drawn)
    time.sleep(args.seconds)
    after, elapsed = process.cpu_times(), time.monotonic() - began
    resident = process.memory_info().rss
    monitor.terminate()
    status = monitor.wait(10)
    used = after.user + after.system - before.user - before.system
    result = {
        "interval_s": args.interval,
        "seconds": round(elapsed, 1),
        "core_share": round(used / elapsed, 5),
        "resident_bytes": resident,
        "terminal_bytes_per_s": round((sum(drawn) - bytes_before) / elapsed),
        "exit_status": status,
    }
    text = json.dumps(result, indent=2)
    if args.json not in (None, "-"):
        Path(args.json).write_text(text + "\n", encoding="utf-8")
    print_out(text + "\n")
    return 0


def _drain(terminal: int, drawn: list[int]) -> None:
    try:
        while data := os.read(terminal, 1 << 16):
            drawn.append(len(data))
    except OSError:
        pass  # the other side has closed


if __name__ == "__main__":
    run_program(main)
