"""One rank of a training run, from its flags to its exit status."""

import contextlib
import logging
import os
import signal
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.profile import PROFILE_FILE, Profile
from ds_rvqvae.config.request import Request, read_training_flags
from ds_rvqvae.data.dataset import MotionData, open_training_data
from ds_rvqvae.data.store.places import open_in_use, open_of_run
from ds_rvqvae.errors import ExitStatus, UserError, say
from ds_rvqvae.host import bf16_arithmetic_text
from ds_rvqvae.process.command import keep_warnings_harmless
from ds_rvqvae.process.home import settle_home
from ds_rvqvae.process.progress import Stage
from ds_rvqvae.process.signals import call_at_signals
from ds_rvqvae.process.slurm import check_srun_not_forgotten
from ds_rvqvae.process.streams import drain_streams, lost_messages, open_standard_streams, queued_streams
from ds_rvqvae.process.tolerance import reason_of, tolerated
from ds_rvqvae.process.torch_build import check_torch
from ds_rvqvae.runs.abandoned import go_on_from
from ds_rvqvae.runs.checkpoints import sweep
from ds_rvqvae.runs.folder import (
    LOG,
    RUN_VARIABLE,
    SAID_VARIABLE,
    STORE_CONTENT_VARIABLE,
    STORE_VARIABLE,
    check_out_folder,
    lock_run,
    mend_log,
    restore_metrics,
    restore_profile,
    run_folder_of,
    unlock_runs,
    write_profile,
)
from ds_rvqvae.runs.heartbeat import HEARTBEAT_VARIABLE, Cause, Heartbeat
from ds_rvqvae.runs.init_from import Initial, keep_normalisation, mend_normalisation, take_start
from ds_rvqvae.runs.start import Resume, as_begun, find_resume, record_of, request_of, split_batch, with_batch
from ds_rvqvae.runs.variables import is_first_of_host, settle_device, settle_rank
from ds_rvqvae.tokenizer.folder import TOKENIZER

_SECONDS_TO_STOP = 0.5
"""How long a rank that is stopped before it trains waits, while the launcher stops the others; they would fail without
it."""


class OpenedRun(NamedTuple):
    """A run's folder and its starting point, as rank 0 found them."""

    folder: Path
    resume: Resume
    initial: Initial | None
    """The tokenizer whose weights it starts from."""
    mean: NDArray[np.float32]
    std: NDArray[np.float32]


def main(argv: list[str] | None = None) -> int:
    """Trains as the flags say; `python -m ds_rvqvae.train` runs it on every rank."""
    open_standard_streams()
    settle_home()
    keep_warnings_harmless()
    with queued_streams("stdout", "stderr"):
        try:
            check_torch()  # another host may have another torch than the launcher's
            settle_rank(os.environ)
            check_srun_not_forgotten(os.environ)
        except UserError as error:
            if is_first_of_host(os.environ):
                print(f"error: {error}", file=sys.stderr)
            return error.status
        rank = int(os.environ.get("RANK", "0"))
        with call_at_signals(lambda number: _end_untrained(number, rank)):
            # Every rank reads the same flags and data and refuses for the same reason; one rank per host prints it.
            return _rank(argv, rank, is_first_of_host(os.environ))


def _rank(argv: list[str] | None, rank: int, speaks: bool) -> int:
    # Without our own handler, logging would print the traceback of a crash on every rank.
    logging.getLogger("ds_rvqvae").addHandler(logging.NullHandler())
    with contextlib.ExitStack() as silence:
        if not speaks:
            silence.enter_context(contextlib.redirect_stderr(silence.enter_context(Path(os.devnull).open("w"))))
        flags = read_training_flags(argv)
    try:
        request = request_of(flags)
        if not request.start.resumes:
            request.profile.check_world_size(int(os.environ.get("WORLD_SIZE", "1")))
        else:
            request = as_begun(request, _folder_of(request))
        return _train(request, _motion_of(request))
    except UserError as error:
        if speaks:
            print(f"error: {error}", file=sys.stderr)
        return _leave(error.status)
    except Exception as error:
        return _report_crash(error, rank)


def _folder_of(request: Request) -> Path:
    """The run's folder: the one that our launcher has chosen, else the one from the flags."""
    chosen = request.flags.environment.get(RUN_VARIABLE)
    return Path(chosen) if chosen else run_folder_of(request).absolute()


def _motion_of(request: Request) -> MotionData | UserError | None:
    """The motion, if this rank opens it by itself; None if it waits for the first rank of its host.

    Our launcher has checked the store against its files. Without it, the first rank of each host does so, which takes
    as long as reading them all; the other ranks use its result (`_shared_motion`). Its UserError is returned, not
    raised, so that all ranks refuse together.
    """
    profile, checked = request.profile, request.flags.environment.get(STORE_VARIABLE)
    if checked:
        store = open_of_run(Path(checked), request.flags.environment.get(STORE_CONTENT_VARIABLE))
        return open_training_data(profile, store, request.asked)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return open_training_data(profile, asked=request.asked)
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return None
    try:
        with Stage(f"reading {profile.rvqvae.data.path}", shown=os.environ.get("RANK") == "0", after=2.0):
            return open_training_data(profile, asked=request.asked)
    except UserError as error:
        return error


def _shared_motion(request: Request, own: MotionData | UserError | None) -> MotionData:
    """The motion on every rank, once all ranks are connected; raises UserError on all of them if one refuses."""
    from ds_rvqvae.train.engine import of_all_ranks, of_this_host

    if isinstance(own, MotionData) and (STORE_VARIABLE in os.environ or int(os.environ["WORLD_SIZE"]) == 1):
        return own
    folder = of_this_host(str(own.store.folder) if isinstance(own, MotionData) else own)
    data = own
    if not isinstance(data, MotionData):
        data = open_training_data(request.profile, open_in_use(Path(folder)), request.asked)
    (first, content), *others = of_all_ranks(data.store.content)
    other = next((host for host, found in others if found != content), None)
    if other is not None:
        raise UserError(
            f"{data.store.folder}: ranks on {first} and {other} have opened different motion: it was prepared again "
            "or added to meanwhile, or differs between hosts; start again, with one store that all hosts see or copies "
            "of it"
        )
    return data


def _train(request: Request, own: MotionData | UserError | None) -> int:
    rank = int(os.environ.get("RANK", "0"))
    # Late, because importing DeepSpeed takes seconds and refusals need not wait for it. Our launcher shows this stage.
    with Stage("importing torch and DeepSpeed", shown=not rank and HEARTBEAT_VARIABLE not in os.environ):
        on_cpu = settle_device(os.environ)
        import torch.distributed as dist

        from ds_rvqvae.train.engine import on_rank_zero_first, own_device, start_distributed
        from ds_rvqvae.train.memory import out_of_memory_explained
        from ds_rvqvae.train.metrics import announce, logger, start_log
        from ds_rvqvae.train.signals import stop_with_launcher

    stop_with_launcher()
    # Not before the imports, which block all other threads for seconds.
    heartbeat = Heartbeat.start(rank)
    with Stage("joining the other ranks", shown=not rank, quiet=os.environ.get("WORLD_SIZE", "1") == "1"):
        start_distributed()
        data = _shared_motion(request, own)
    request = replace(request, profile=data.fitted(request.profile))
    world_size = dist.get_world_size()
    with Stage("opening the run's folder", shown=not rank, quiet=not request.start.resumes):
        folder, resume, initial, mean, std = on_rank_zero_first(lambda: _open_run(request, data, world_size))
    data.use_normalisation(mean, std)
    start_log(folder / LOG, dist.get_rank())
    said = os.environ.get(SAID_VARIABLE, "").splitlines()
    for line in said:
        logger.info("launcher: %s", line)
    for note in [*([on_cpu] if on_cpu else []), *resume.notes, *(note for note in data.notes() if note not in said)]:
        announce(note)
    total = request.profile.rvqvae.training.total_iter
    if resume.step() >= total:
        announce(f"step {resume.step():,} is at or past total_iter {total:,}: nothing to do")
        with Stage("exporting the tokenizer", announce, shown=not rank, quiet=True):
            made = on_rank_zero_first(lambda: _make_tokenizer(folder, resume))
        if made is not None:
            announce(made)
        return _finished()
    profile = _settle_batch(request.profile, data, folder, resume)
    with out_of_memory_explained(profile, data.in_features, own_device()):
        return _run(profile, data, OpenedRun(folder, resume, initial, mean, std), heartbeat)


def _run(profile: Profile, data: MotionData, run: OpenedRun, heartbeat: Heartbeat) -> int:
    """Builds the engine and trains to the end, or until a signal stops it."""
    import torch.distributed as dist

    from ds_rvqvae.train.metrics import announce, logger
    from ds_rvqvae.train.summary import run_lines, scaled_rate
    from ds_rvqvae.train.trainer import Trainer

    folder, resume, initial = run.folder, run.resume, run.initial
    world_size = dist.get_world_size()
    init_from = initial.folder if initial else None
    with Stage("building the engine", announce, shown=dist.get_rank() == 0):
        trainer = Trainer.build(
            profile,
            data,
            folder,
            checkpoint=resume.checkpoint,
            universal=resume.universal,
            init_from=init_from,
            heartbeat=heartbeat,
        )
    announce(*run_lines(folder, profile, data, world_size))
    logger.info(bf16_arithmetic_text())
    if profile.rvqvae.training.scale_lr is not None:
        announce(scaled_rate(profile, world_size))
    if initial:
        announce(f"starting from the weights, codebooks and normalisation of {init_from}")
    for line in data.balance_lines():
        announce(line)
    warnings = profile.warnings(world_size, data.count_training_windows())
    for warning in [*warnings, *data.warnings(), *(initial.warnings(data) if initial else [])]:
        # Our launcher has shown these already.
        logger.log(logging.INFO if HEARTBEAT_VARIABLE in os.environ else logging.WARNING, warning)
    trainer.train()
    if trainer.steps_done < profile.rvqvae.training.total_iter:
        saved = trainer.checkpointer.saved_step or 0
        announce(f"stopped at step {trainer.steps_done:,}; --resume goes on from step {saved:,}")
        dist.barrier()
        return _leave(ExitStatus.STOPPED)
    return _finished()


def _finished() -> int:
    import torch.distributed as dist

    dist.barrier()
    return _leave(ExitStatus.DONE)


def _settle_batch(profile: Profile, data: MotionData, folder: Path, resume: Resume) -> Profile:
    """The profile with batch sizes that keep the global batch and, with `auto_batch_size`, fit into memory."""
    import torch.distributed as dist

    from ds_rvqvae.model.losses import loss_columns
    from ds_rvqvae.train.auto_batch import fit_batch
    from ds_rvqvae.train.engine import on_rank_zero_first, own_device
    from ds_rvqvae.train.metrics import announce

    profile = with_batch(profile, resume.fitted)
    asked = profile.windows_per_rank
    profile = with_batch(profile, resume.kept)
    if not _fits_batch(profile, resume):
        return profile
    columns = loss_columns(profile.rvqvae.loss, data.layout, data.mean, data.std, own_device())
    with Stage("finding out which batch fits", announce, shown=dist.get_rank() == 0):
        profile, tried = fit_batch(profile, data.in_features, own_device(), columns)
    announce(tried)
    # The run's profile keeps the windows per rank that were asked for, whatever the number of ranks now.
    chosen = with_batch(profile, split_batch(asked, profile.train_micro_batch_size_per_gpu))
    on_rank_zero_first(lambda: write_profile(folder, chosen))
    return profile


def _fits_batch(profile: Profile, resume: Resume) -> bool:
    """Whether this start must find the micro batch."""
    return profile.rvqvae.training.auto_batch_size and resume.fitted is None


def _open_run(request: Request, data: MotionData, world_size: int) -> OpenedRun:
    """Chooses the run's folder and starting point, then creates the folder and writes its `profile.json`.

    A refusal does not change the folder. Otherwise the folder then holds the history of the chosen checkpoint only.
    """
    from ds_rvqvae.train.metrics import announce
    from ds_rvqvae.train.signals import end_unsaved

    profile, start = request.profile, request.start
    folder = _folder_of(request)
    chosen = RUN_VARIABLE in request.flags.environment
    if chosen and not start.resumes and any(entry.name != PROFILE_FILE for entry in folder.iterdir()):
        raise UserError(f"{folder}: holds a run; continue it with --resume, or give another --name")
    new = not folder.is_dir()
    if not new:
        lock_run(folder, announce, end_unsaved)
    initial = take_start(folder, profile, data, start)
    resume = Resume()
    if start.resumes:
        resume = find_resume(folder, profile, world_size, record_of(data), start=start, data=data)
    check_out_folder(folder)
    for part in ("checkpoints", "eval"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    if new:
        lock_run(folder, announce, end_unsaved)
    for place in (folder, folder / "checkpoints", folder / "eval"):
        sweep(place)
    with tolerated("run.log is not repaired", warn=resume.notes.append):
        resume.notes += mend_log(folder)
    if resume.checkpoint is not None:
        # From now on this is the run's history, even if it dies before its next save.
        resume.checkpoint, notes = go_on_from(folder, resume.checkpoint)
        resume.notes += [*notes, *restore_profile(folder), *mend_normalisation(folder, data)]
        resume.notes += restore_metrics(folder, resume.checkpoint)
        if profile.rvqvae.training.init_from is not None:
            resume.notes.append("rvqvae.training.init_from is not read again")
    else:
        keep_normalisation(folder, initial)
    # A resumed run's profile stays until its batch is known: a batch in the profile would not be tried again.
    waits = resume.checkpoint is not None and _fits_batch(profile, resume)
    if resume.step() < profile.rvqvae.training.total_iter and not waits:
        write_profile(folder, with_batch(profile, resume.fitted))
    return OpenedRun(folder, resume, initial, data.mean, data.std)


def _make_tokenizer(folder: Path, resume: Resume) -> str | None:
    """Makes the tokenizer of a finished run that was stopped before its export; returns a note about it, or None."""
    from ds_rvqvae.runs.tokenizers import keep_exported

    try:
        return None if resume.checkpoint is None else keep_exported(folder, resume.checkpoint)
    except Exception as error:
        return f"{folder / TOKENIZER}: not written: {reason_of(error)}; `ds-rvqvae export {folder} --out DIR` does it"


def _leave(status: int) -> int:
    """Returns `status`, or ends the process with it at once if the process has joined the other ranks.

    This rank does not wait for ranks that still wait for it. And an orderly exit of the interpreter sometimes aborts
    while gloo's threads are running.
    """
    status = Heartbeat.end(status)
    unlock_runs()
    if "torch.distributed" not in sys.modules:
        return status
    drain_streams()
    for line in lost_messages():
        logging.getLogger("ds_rvqvae").warning(line)
    logging.shutdown()
    os._exit(status)


def _end_untrained(number: int, rank: int) -> None:
    """Ends this rank at once, whatever its main thread does: it has trained no step since its start."""
    failed = Heartbeat.ended_before() not in (ExitStatus.DONE, ExitStatus.STOPPED)
    if failed:  # then the launcher, or deepspeed, asked for it
        Heartbeat.fail()
    status = Heartbeat.end(ExitStatus.STOPPED)
    if rank == 0 and not failed:
        say(f"stopped by {signal.Signals(number).name} before this start's first step; nothing is lost")
    if HEARTBEAT_VARIABLE in os.environ:
        time.sleep(_SECONDS_TO_STOP)
    unlock_runs()
    drain_streams()
    os._exit(status)


def _report_crash(error: Exception, rank: int) -> int:
    """Writes the traceback to `run.log`, and one line to stderr if no other rank of this machine has ended before;
    leaves with status 70."""
    logging.getLogger("ds_rvqvae").error(traceback.format_exc())
    summary = str(error).strip().splitlines()
    memory = sys.modules.get("ds_rvqvae.train.memory")
    is_memory = isinstance(error, MemoryError) if memory is None else memory.is_out_of_memory(error)
    if Heartbeat.fail(Cause.OUT_OF_MEMORY if is_memory else Cause.OTHER):
        say(f"error: rank {rank}: {type(error).__name__}: {summary[0] if summary else ''}")
    return _leave(ExitStatus.FAILED)
