"""Train a checked run: deepspeed's command line, the ranks' environment variables, restarts.

Ranks of this machine read the run's own `profile.json`, which is written before they start; changes to it are overrides
on their command line. Hosts that may not see this disk get the flags as they were given.
"""

import codecs
import ctypes
import functools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from ds_rvqvae.config.profile import PROFILE_FILE, load_profile
from ds_rvqvae.config.request import Flags, Start
from ds_rvqvae.errors import ExitStatus, UserError, say, text_of
from ds_rvqvae.files import read_text
from ds_rvqvae.host import VISIBLE
from ds_rvqvae.launch.body import CheckedRun
from ds_rvqvae.launch.hosts import DEEPSPEED_HOSTFILE, Ranks, free_port, warn
from ds_rvqvae.launch.restarts import run_with_restarts
from ds_rvqvae.launch.slots import cores
from ds_rvqvae.launch.supervise import Job, Signals
from ds_rvqvae.process.interfaces import NCCL_INTERFACE, interfaces_of_one_machine
from ds_rvqvae.process.relay import Relay
from ds_rvqvae.runs.folder import (
    LOG,
    RUN_VARIABLE,
    SAID_VARIABLE,
    STORE_CONTENT_VARIABLE,
    STORE_VARIABLE,
    damage_of_object,
    profile_place,
    run_folder_of,
    write_profile,
)
from ds_rvqvae.runs.heartbeat import HEARTBEAT_VARIABLE, Watch
from ds_rvqvae.runs.log import add_warnings
from ds_rvqvae.runs.start import overrides_between
from ds_rvqvae.runs.variables import (
    ENVIRONMENT_FILE_VARIABLE,
    LAUNCHER_VARIABLE,
    for_modules,
    lines_for_other_hosts,
    without_leftovers,
)
from ds_rvqvae.text import counted

_CLOSE_ON_EXEC = 1


def train(
    run: CheckedRun, signals: Signals, then: Callable[[CheckedRun, ExitStatus], None] = lambda run, status: None
) -> ExitStatus:
    """Trains one run to its end.

    Args:
        then: called with the run, which has its final folder, and the exit status.
    """
    options = run.request.options
    with ExitStack() as shared, _opened_folder(run) as opened:
        with Relay() as relay:
            starting = f"checks passed, starting {_ranks_text(run.ranks)}"
            say(starting)
            opened = replace(opened, said=(*opened.said, starting))
            make_job = functools.partial(_job, opened, shared, relay)
            status = run_with_restarts(make_job, options.max_restarts, signals)
        add_warnings(opened.folder / LOG, "launcher", relay.lost())
    then(opened, status)
    return status


def _ranks_text(ranks: Ranks) -> str:
    count = ranks.world_size
    where = "" if ranks.cpu or not ranks.local else f" on GPU {', '.join(map(str, ranks.local))}"
    ranks_text = counted(count, "CPU rank" if ranks.cpu else "rank") if count else "the ranks"
    return ranks_text + where


def command_by_flags(run: CheckedRun) -> list[str]:
    """Returns the deepspeed command with the flags of training; it can also be run by hand."""
    flags = run.request.resolved
    if run.request.options.demo or run.request.options.max_restarts:
        # The ranks would choose the same folder; naming it here tells where the scores will be, also to restarts.
        folder = run.folder.absolute()
        flags = replace(flags, out=folder.parent, name=folder.name)
    return _command(run.ranks, flags)


def rank_variables(run: CheckedRun) -> dict[str, str]:
    """Returns the environment variables that ranks get beside those of this process."""
    ranks = run.ranks
    # As NVML counts the GPUs; and without a GPU the ranks end, while DeepSpeed by itself would train on the CPU.
    added = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "DS_ACCELERATOR": "cuda"}
    if ranks.cpu:
        added = {"DS_ACCELERATOR": "cpu", "LOCAL_SIZE": str(ranks.cpu_slots)}
        # Ranks that each use all cores are ten times slower than if run in sequence.
        added["OMP_NUM_THREADS"] = str(max(1, cores() // _most_on_a_host(ranks)))
    if _on_one_machine(run):
        added |= interfaces_of_one_machine(run.request.options.nccl.get(NCCL_INTERFACE))
    added |= run.request.options.nccl
    if "OMP_NUM_THREADS" in run.request.flags.environment:
        added.pop("OMP_NUM_THREADS", None)
    return added


def _most_on_a_host(ranks: Ranks) -> int:
    return max(len(ranks.local or ()), *map(len, ranks.hosts.values()), 1)


def _on_one_machine(run: CheckedRun) -> bool:
    # With --force_multi ssh starts even the ranks of this machine, without this process's variables.
    return run.ranks.on_this_machine and not run.request.options.force_multi


def _has_profile(folder: Path) -> bool:
    """Returns whether a run's profile can be read. If it cannot and there are checkpoints, the run has been refused
    before."""
    file = folder / PROFILE_FILE
    try:
        profile_place(folder)
        return True
    except UserError:
        if file.is_file():
            warn(f"{file}: {damage_of_object(file)}; it is written again from the flags")
        return False


@contextmanager
def _opened_folder(run: CheckedRun) -> Iterator[CheckedRun]:
    """Yields the run with a folder of its own, which contains its `profile.json`.

    The folder of a new run is made here, so that no other start can take it. If no rank has opened the run, it is
    removed at the end.
    """
    if not _on_one_machine(run) or (run.request.start.resumes and _has_profile(run.folder)):
        yield run
        return
    run, made = _make_folder(run)
    try:
        try:
            write_profile(run.folder, run.request.profile)
        except OSError as error:
            raise UserError(f"--out: {run.folder} cannot be written: {error.strerror or error}") from None
        yield run
    finally:
        _remove_unopened(run.folder, made)


def _make_folder(run: CheckedRun) -> tuple[CheckedRun, list[Path]]:
    """Makes a run's folder. Returns the run with it, and the new folders, the deepest first.

    If another start has made it meanwhile, a run without `--name` takes the next free number.

    Raises:
        UserError: `--name` is taken, or the folder cannot be made.
    """
    while True:
        made = [place for place in (run.folder, *run.folder.parents) if not place.exists()]
        try:
            run.folder.mkdir(parents=True, exist_ok=run.request.start.resumes)
            return run, made
        except FileExistsError:
            run = replace(run, folder=run_folder_of(run.request))
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"--out: {run.folder} cannot be made: {reason}; give another --out") from None


def _remove_unopened(folder: Path, made: Sequence[Path]) -> None:
    """Removes a run's folder, and the folders above that were made for it, if it contains only its profile."""
    with suppress(OSError):
        if {entry.name for entry in folder.iterdir()} <= {PROFILE_FILE}:
            (folder / PROFILE_FILE).unlink(missing_ok=True)
            for place in made:
                place.rmdir()


def _made_by_system(name: str) -> int:
    handle: int = ctypes.CDLL(None, use_errno=True).memfd_create(os.fsencode(name), _CLOSE_ON_EXEC)
    if handle < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return handle


def _in_memory(name: str, shared: ExitStack) -> Path:
    """Returns a new file that the ranks can open by its path until `shared` ends. It is in this process's memory,
    because a temporary folder may be full, read-only, or cleaned while a run trains. Systems without such files get a
    temporary file."""
    try:
        # Interpreters built for older systems, as those of uv and conda, lack this function although the system has it.
        handle = os.memfd_create(name) if hasattr(os, "memfd_create") else _made_by_system(name)
    except (AttributeError, OSError):
        return Path(shared.enter_context(tempfile.NamedTemporaryFile(prefix="ds_rvqvae-")).name)
    shared.callback(os.close, handle)
    return Path(f"/proc/{os.getpid()}/fd/{handle}")


def _job(run: CheckedRun, shared: ExitStack, relay: Relay, restart: int) -> Job:
    """Returns the job of start 0 or of restart 1, 2, …"""
    options, ranks = run.request.options, run.ranks
    if options.master_port is None and len(ranks.hosts) == 1:
        # A restart, or the next part of a body, may start long after the check of the port.
        ranks = replace(ranks, port=free_port(None, here=True))
    again = run
    if restart:
        flags = replace(run.request.flags, start=Start("newest"))
        again = replace(run, request=replace(run.request, flags=flags))
    variables = for_modules(without_leftovers(run.request.flags.environment))
    if _on_one_machine(run):
        variables.pop("NCCL_COMM_ID", None)  # the meeting address of another run
    if ranks.on_this_machine:
        variables.pop(VISIBLE, None)  # its GPUs are already chosen, and deepspeed would count only the visible ones
    variables |= {**rank_variables(run), LAUNCHER_VARIABLE: str(os.getpid()), SAID_VARIABLE: text_of(run.said)}
    watch = None
    if ranks.local is not None and not options.force_multi:
        heartbeats = _in_memory("heartbeats", shared)
        variables[HEARTBEAT_VARIABLE] = str(heartbeats)
        watch = Watch(heartbeats, len(ranks.local), options.hang_timeout)
    if _on_one_machine(run):
        variables[RUN_VARIABLE] = str(run.folder.absolute())
        variables[STORE_VARIABLE] = str(run.data.store.folder.absolute())
        variables[STORE_CONTENT_VARIABLE] = run.data.store.content
        command = _command(ranks, _flags_by_profile(again))
    else:
        command = command_by_flags(_with_plain_hostfile(replace(again, ranks=ranks), shared))
        if not options.no_ssh:
            file = _in_memory("variables", shared)
            file.write_text(_variables_of_hosts(run), encoding="utf-8")
            variables[ENVIRONMENT_FILE_VARIABLE] = str(file)
    return Job(command, variables, watch, relay.stdout, relay.stderr, run.folder / LOG)


def _variables_of_hosts(run: CheckedRun) -> str:
    return lines_for_other_hosts(run.request.flags.environment, rank_variables(run), run.request.options.nccl)


def _with_plain_hostfile(run: CheckedRun, shared: ExitStack) -> CheckedRun:
    """Returns the run with a copy of its hostfile if that begins with a byte order mark, which deepspeed reads as part
    of the first host's name."""
    flags = run.request.flags
    file = Path(flags.options.hostfile or DEEPSPEED_HOSTFILE)
    if not file.is_file() or not file.read_bytes().startswith(codecs.BOM_UTF8):
        return run
    plain = _in_memory("hostfile", shared)
    plain.write_text(read_text(file), encoding="utf-8")
    others = [pair for pair in flags.options.handed_through if pair[0] != "hostfile"]
    options = replace(flags.options, hostfile=str(plain), handed_through=(*others, ("hostfile", str(plain))))
    return replace(run, request=replace(run.request, flags=replace(flags, options=options)))


def _flags_by_profile(run: CheckedRun) -> Flags:
    """Returns flags that mean the same as the run's, with its own `profile.json` and the differences from it."""
    folder, request = run.folder.absolute(), run.request
    file = profile_place(folder)
    start = request.start
    if start.kind == "run":
        start = Start("newest")  # the folder names it
    overrides = overrides_between(load_profile(file), request.profile)
    flags = replace(request.flags, profile=str(file), out=folder.parent, name=folder.name, start=start)
    return replace(flags, keys={}, overrides=tuple(overrides))


def _command(ranks: Ranks, flags: Flags) -> list[str]:
    # Not the script `deepspeed`: its first line fails if the interpreter's path has a space.
    command = [sys.executable, "-m", "deepspeed.launcher.runner"]
    if ranks.include:
        command += ["--include", ranks.include]
    command += ["--master_port", str(ranks.port)]
    given: Mapping[str, str | None] = dict(flags.options.handed_through)
    if "log_level" not in given:
        given = {
            "log_level": "critical",
            **given,
        }  # more of its lines would hide the trainer's
    for name, value in given.items():
        if name == "num_nodes" and ranks.include:
            continue  # deepspeed accepts only one of the two
        command.append(f"--{name}" if value is None else f"--{name}={value}")
    return [*command, "--module", "ds_rvqvae.train", *flags.arguments()]
