"""Programs that stand in for the processes below a supervisor."""

# Stands in for the runner and for the rank launcher: starts what comes after its own two words and passes on the
# status of whichever rank ends first, after SIGTERM to the others, as deepspeed does.
PARENT = """
import os, subprocess, sys, time
count, _name, *command = sys.argv[1:]
children = []
for rank in range(int(count)):
    children.append(subprocess.Popen(command, env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank)}))
while not (ended := [child for child in children if child.poll() not in (None, 0)]):
    if all(child.poll() == 0 for child in children):
        sys.exit(0)
    time.sleep(0.6)
for child in children:
    child.terminate()
for child in children:
    child.wait()
sys.exit(ended[0].returncode)
"""

# A rank: writes its heartbeat and its pid, then does what its first word says.
RANK = """
import os, signal, sys, time
from pathlib import Path
import psutil
from ds_rvqvae.runs.heartbeat import Cause, Heartbeat, read_heartbeats
mode, folder, rank = sys.argv[1], Path(sys.argv[2]), int(os.environ["RANK"])
def stop(*_):
    (folder / f"stopped-{os.getpid()}").touch()
    if mode != "first-75":
        Heartbeat.end(75)
    sys.exit(1 if mode == "first-75" else 75)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN if mode in ("deaf", "memory", "killed-deaf") else stop)
if mode == "wait" and rank == 0:
    signal.signal(signal.SIGUSR1, lambda *_: (folder / f"saved-{os.getpid()}").touch())
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
heartbeat = Heartbeat.start(rank)
heartbeat.beat(7)
(folder / f"rank-{os.getpid()}").touch()
if mode == "done":
    Heartbeat.end(0)
elif mode == "silent":
    pass
elif mode.isdecimal():
    Heartbeat.end(int(mode))
    sys.exit(int(mode))
elif mode == "memory" and rank == 1:
    Heartbeat.fail(Cause.OUT_OF_MEMORY)
    sys.exit(70)
elif mode in ("killed", "killed-deaf") and rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
elif mode == "first-75" and rank == 0:
    sys.exit(75)
elif mode == "killed":
    # As a rank fails whose connection to another is lost.
    signs = Path(os.environ["DS_RVQVAE_HEARTBEAT"])
    while not (dead := [sign.pid for sign in read_heartbeats(signs) if sign.rank == 1]):
        time.sleep(0.01)
    while psutil.pid_exists(dead[0]) and psutil.Process(dead[0]).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    Heartbeat.fail()
    os._exit(70)
else:
    time.sleep(120)
"""
