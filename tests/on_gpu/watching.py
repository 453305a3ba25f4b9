"""Checks of the monitor: its readings beside nvidia-smi's, and --require_idle."""

from typing import Any

from tests.on_gpu.box import Box
from tests.on_gpu.claims import CheckError, Claim, at_most, figure, same, true

_HELD = 3 << 29
"""Bytes that a holder takes of a GPU: more than an idle one may have."""


def readings(box: Box) -> list[dict[str, Any]]:
    """Returns the monitor's readings of all GPUs."""
    found: list[dict[str, Any]] = box.json_of("monitor", "--once", "--json")["gpus"]
    return found


def monitor(box: Box) -> list[Claim]:
    """The monitor reads what nvidia-smi reads."""
    query = "--query-gpu=index,name,memory.total,memory.used"
    ran = box.start("nvidia-smi", query, "--format=csv,noheader,nounits").wait()
    if ran.status:
        raise CheckError(f"nvidia-smi: status {ran.status}: {ran.reason()}")
    rows = [[cell.strip() for cell in line.split(",")] for line in ran.out.splitlines()]
    found = readings(box)
    total = [
        abs((gpu["memory_total_bytes"] or 0) / 2**20 - float(row[2])) for gpu, row in zip(found, rows, strict=False)
    ]
    used = [abs((gpu["memory_used_bytes"] or 0) / 2**20 - float(row[3])) for gpu, row in zip(found, rows, strict=False)]
    return [
        same("GPUs", [gpu["index"] for gpu in found], [int(row[0]) for row in rows]),
        true("names", [gpu["name"] for gpu in found] == [row[1] for row in rows], _names(found), "nvidia-smi's"),
        at_most("largest difference of all memory", max(total, default=None), 1.0, "MiB"),
        at_most("largest difference of memory in use", max(used, default=None), 600.0, "MiB"),
    ]


def _names(found: list[dict[str, Any]]) -> str:
    return ", ".join(sorted({gpu["name"] for gpu in found}))


def require_idle(box: Box) -> list[Claim]:
    """--require_idle refuses a GPU on which a process computes, and takes it again afterwards."""
    slot = box.slots[0]
    ready, end = box.work / "held", box.work / "let_go"
    before = box.ds("monitor", "--require_idle", str(slot))
    arguments = {"size": _HELD, "until": str(end), "ready": str(ready)}
    ((holder, _),) = box.start_probe("hold", [slot], arguments)
    holder.wait_until(ready.exists, "it holds memory")
    if box.rehearsal:
        box.rehearsal.driver.play(f"{slot} used {_HELD}", f"{slot} process {holder.process.pid} {_HELD}")
    during = box.ds("monitor", "--require_idle", str(slot))
    listed = listed_processes(box)
    end.touch()
    holder.wait()
    if box.rehearsal:
        box.rehearsal.driver.play()
    after = box.ds("monitor", "--require_idle", str(slot))
    # Its message also names the process's user, who is nobody's business in a report.
    named = str(holder.process.pid) in " ".join(during.said)
    return [
        same("status when idle", before.status, 0),
        same("status in use", during.status, 3),
        true("it names the process", named, "yes" if named else "no", "yes")
        if listed is None or holder.process.pid in listed
        else figure("it names the process", "not known: the driver gives it another number, as in some containers"),
        same("status when idle again", after.status, 0),
    ]


def listed_processes(box: Box) -> set[int] | None:
    """Returns the processes that nvidia-smi lists; None if it cannot be asked, as in a rehearsal."""
    if box.rehearsal:
        return None
    ran = box.start("nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader").wait()
    return None if ran.status else {int(line) for line in ran.out.split() if line.isdecimal()}
