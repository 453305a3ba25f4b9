"""One rank of a training run, from its flags to its exit status."""

import argparse
import contextlib
import json
import os
import sys
import traceback
from pathlib import Path

from ds_rvqvae.data.motion_data import MotionData
from ds_rvqvae.errors import ExitStatus, UserError
from ds_rvqvae.flags import FlagParser, add_training_flags, profile_from_flags
from ds_rvqvae.model.shapes import parameter_count
from ds_rvqvae.profile import Profile
from ds_rvqvae.runs import check_out_folder, choose_run_folder


def main(argv: list[str] | None = None) -> int:
    """Trains as the flags say; what `python -m ds_rvqvae.train` runs on every rank."""
    parser = FlagParser(prog="python -m ds_rvqvae.train", description="Train an RVQ-VAE under DeepSpeed.")
    add_training_flags(parser)
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    rank = int(os.environ.get("RANK", "0"))
    if rank:
        # Every rank reads the same flags and data and refuses for the same reason; one of them says so.
        with contextlib.redirect_stderr(None):
            args = parser.parse_args(argv)
    else:
        args = parser.parse_args(argv)
    try:
        profile = profile_from_flags(args)
        profile.check_world_size(int(os.environ.get("WORLD_SIZE", "1")))
        data = MotionData.open(profile.rvqvae.data)
        data.window_starts()
        return _train(args, profile, data)
    except UserError as error:
        if rank == 0:
            print(f"error: {error}", file=sys.stderr)
        return error.status
    except Exception as error:
        return _report_crash(error, rank)


def _train(args: argparse.Namespace, profile: Profile, data: MotionData) -> int:
    # Late, so that refusals come without the seconds that importing DeepSpeed takes.
    import torch.distributed as dist

    from ds_rvqvae.train.checkpoints import checkpoint_step, checkpoint_to_resume, load_checkpoint
    from ds_rvqvae.train.engine import build_engine, on_rank_zero_first, start_distributed
    from ds_rvqvae.train.loop import Trainer
    from ds_rvqvae.train.monitoring import announce, logger, start_log
    from ds_rvqvae.train.orphans import end_with_launcher

    end_with_launcher()
    start_distributed()
    folder = on_rank_zero_first(lambda: _open_run_folder(args, profile, data))
    start_log(folder / "run.log", dist.get_rank())
    total, saved = profile.rvqvae.training.total_iter, folder / "checkpoints"
    checkpoint = on_rank_zero_first(lambda: checkpoint_to_resume(saved, dist.get_world_size()) if args.resume else None)
    if checkpoint is not None and (checkpoint_step(checkpoint) or 0) >= total:
        announce(f"{checkpoint} is at or past total_iter {total}: nothing to do")
        return _finished()
    engine = build_engine(profile, data.in_features, folder)
    announce(_summary(folder, profile, data, dist.get_world_size()))
    for warning in profile.warnings(dist.get_world_size(), len(data.window_starts())):
        logger.info("warning: %s", warning)  # the launcher has shown it
    client_state = {}
    if checkpoint is not None:
        client_state = load_checkpoint(engine, checkpoint)
        announce(f"going on from {checkpoint}")
    elif args.resume:
        announce(f"{folder} has no checkpoint yet: starting at step 0")
    Trainer(engine, profile, data, folder, client_state).train()
    engine.destroy()
    return _finished()


def _summary(folder: Path, profile: Profile, data: MotionData, world_size: int) -> str:
    """What is about to run, in one line."""
    parts = [
        f"{world_size} rank{'s' if world_size > 1 else ''}",
        f"ZeRO stage {profile.zero_optimization.stage}",
        "bf16" if profile.bf16.enabled else "fp32",
        f"activation checkpointing {'on' if profile.rvqvae.training.gradient_checkpointing else 'off'}",
        f"{parameter_count(data.in_features, profile.rvqvae.model):,} parameters",
        f"global batch {profile.global_batch(world_size):,} of {len(data.window_starts()):,} windows",
    ]
    return f"{folder}: {', '.join(parts)}"


def _finished() -> int:
    """Leaves word for the launcher, since DeepSpeed's exits with 0 when it is killed, and leaves the other ranks."""
    import torch.distributed as dist

    dist.barrier()
    outcome = os.environ.get("DS_RVQVAE_OUTCOME")
    if outcome and dist.get_rank() == 0:
        Path(outcome).write_text("done", encoding="utf-8")
    dist.destroy_process_group()
    return ExitStatus.DONE


def _open_run_folder(args: argparse.Namespace, profile: Profile, data: MotionData) -> Path:
    """Chooses and makes the run's folder and writes its `profile.json`, enough to start the run again."""
    folder = choose_run_folder(args.out, args.name, args.profile, profile.rvqvae.data.body_part, args.resume).absolute()
    check_out_folder(folder)
    for part in ("checkpoints", "eval"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    unfinished = folder / ".unfinished-profile.json"
    unfinished.write_text(json.dumps(profile.to_dict(), indent=2) + "\n", encoding="utf-8")
    unfinished.replace(folder / "profile.json")
    return folder


def _report_crash(error: Exception, rank: int) -> int:
    """The traceback into `run.log`, one line on stderr, and out without waiting for ranks that wait for this one."""
    import logging

    logging.getLogger("ds_rvqvae").error("rank %d:\n%s", rank, traceback.format_exc())
    summary = str(error).strip().splitlines()
    line = f"error: rank {rank}: {type(error).__name__}: {summary[0] if summary else ''}"
    print(line, file=sys.stderr, flush=True)
    logging.shutdown()
    os._exit(ExitStatus.FAILED)
