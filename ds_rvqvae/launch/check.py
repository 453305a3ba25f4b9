"""Check everything about one run that can be checked before a rank starts."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ds_rvqvae.config.request import Request
from ds_rvqvae.data.dataset import MotionData, open_training_data, store_of_the_same
from ds_rvqvae.data.fitting import BODY_PART, is_asked
from ds_rvqvae.errors import UserError
from ds_rvqvae.gpu.sizes import parameter_count
from ds_rvqvae.launch import demo
from ds_rvqvae.launch.body import CheckedRun
from ds_rvqvae.launch.hosts import check_cards, check_shells, place_ranks, warn
from ds_rvqvae.launch.preflight import Preflight, check_machine
from ds_rvqvae.process.progress import Stage
from ds_rvqvae.runs.checkpoints import checkpoint_bytes
from ds_rvqvae.runs.folder import check_out_folder, choose_run_folder, naming_of
from ds_rvqvae.runs.init_from import find_initial, take_start
from ds_rvqvae.runs.references import is_of
from ds_rvqvae.runs.start import Resume, as_begun, find_resume, newest_lines, record_of, with_batch
from ds_rvqvae.text import counted, duration
from ds_rvqvae.tokenizer.folder import TOKENIZER, read_config

_UNSAID = 2.0
"""Seconds of checks after which a message names the check in progress, so that an early error is the only message."""


def check_run(request: Request, opened: Sequence[MotionData] = ()) -> tuple[CheckedRun, Preflight | None]:
    """Checks a run: first what is quick, then the data, the machine last.

    There is no report on the machine if nothing is left to train.

    Args:
        opened: motion of other runs of this start; its files are not read again.

    Raises:
        UserError: with exit status 2, 4 or 3, checked in this order.
    """
    if request.options.demo:
        demo.write_motion(request.profile.rvqvae.data)
    folder, resumed = _choose_folder(request)
    check_out_folder(folder)
    request = as_begun(request, folder)
    profile, start, options = request.profile, request.start, request.options
    config = profile.rvqvae
    idle = list(options.require_idle or ())
    ranks = place_ranks(options, request.flags.environment)
    check_shells(ranks, options, request.resolved.arguments())
    if ranks.world_size and not start.resumes:
        profile.check_world_size(ranks.world_size)
    request, data = _open_motion(request, folder, opened)
    profile, config = request.profile, request.profile.rvqvae
    windows = data.count_training_windows()
    initial = take_start(folder, profile, data, start)
    disk_bytes = _disk_bytes(request, data)
    check_out_folder(folder, disk_bytes)
    cards = None
    if ranks.local is not None and not ranks.cpu:
        ranks, cards = check_cards(ranks, request.flags.environment)
        if not start.resumes:
            profile.check_world_size(ranks.world_size)
    elif idle:
        warn("--require_idle: no GPU of this machine takes part, so none is checked")
    done, planned = False, profile
    if start.resumes:
        resume = find_resume(folder, profile, ranks.world_size, record_of(data), thorough=False, start=start, data=data)
        done = resume.step() >= config.training.total_iter and _is_exported(folder, resume)
        planned = with_batch(with_batch(profile, resume.fitted), resume.kept)
    report = None
    if not done:
        judged = [*idle, *(cards.of_others(ranks.local or ()) if cards and not options.share_gpus else ())]
        with Stage("checking this machine", after=_UNSAID):
            report = check_machine(planned, data.in_features, ranks, cards, idle=judged, dry_run=options.dry_run)
    if cards is not None:
        cards.require_idle(idle)
        if not done and not options.share_gpus:
            cards.check_not_of_others(ranks.local or ())
    found = [finding.text for finding in report.findings if finding.warning] if report and not options.dry_run else []
    settings = profile.warnings(ranks.world_size, windows)
    settings += profile.idle(request.asked)
    settings += profile.notes() if "milestones" in request.flags.keys else []  # given by flag, not by a profile
    for warning in [*settings, *data.warnings(), *(initial.warnings(data) if initial else []), *found]:
        warn(warning)
    return CheckedRun(request, folder, ranks, data, disk_bytes, done, (_what(data), *resumed, *data.notes())), report


def _open_motion(request: Request, folder: Path, opened: Sequence[MotionData]) -> tuple[Request, MotionData]:
    """Returns the motion, and the request without settings that this motion cannot have."""
    profile, data = request.profile, request.profile.rvqvae.data
    initial = profile.rvqvae.training.init_from
    with Stage(f"opening the tokenizer {initial}", shown=initial is not None, after=_UNSAID):
        find_initial(folder, profile, request.start)
    asked = request.asked
    with Stage(f"reading {data.path}", after=_UNSAID):
        must_fit = asked & {BODY_PART} if request.of_body else asked
        motion = open_training_data(profile, store_of_the_same(data, opened), must_fit)
    # Ranks that read flags do not know the other parts, so their flags must have nothing that this part cannot have.
    given = [one for one in motion.left_out if any(is_asked(path, asked) for path in one.paths)]
    added = [f"{one.key}={json.dumps(one.value)}" for one in given]
    flags = replace(request.flags, overrides=(*request.flags.overrides, *added))
    return replace(request, profile=motion.fitted(profile), flags=flags), motion


def _choose_folder(request: Request) -> tuple[Path, tuple[str, ...]]:
    """Returns the run's folder, and messages about its choice if no flag names it."""
    flags = request.flags
    with Stage(f"checking {request.profile.rvqvae.data.path}", shown=flags.name is None, after=_UNSAID):
        naming = naming_of(request)
        folder = choose_run_folder(flags.out, flags.name, naming, flags.start)
        return folder, newest_lines(flags, naming, folder)


def _what(data: MotionData) -> str:
    """Returns a message about the motion."""
    store, of_part = data.store, f" of {data.body_part}" if data.body_part else ""
    frames, clips = int(store.starts[-1]), len(store.clip_names)
    length = f"{duration(frames / store.fps)} at {store.fps:g} fps"
    return f"motion {data.config.path}: {counted(clips, 'clip')}, {length}, {data.in_features} columns{of_part}"


def _is_exported(folder: Path, resume: Resume) -> bool:
    """Returns whether the tokenizer of a trained run is in its folder; else a rank exports it."""
    try:
        return resume.checkpoint is not None and is_of(read_config(folder / TOKENIZER).details, resume.checkpoint)
    except UserError:
        return False


def _disk_bytes(request: Request, data: MotionData) -> int:
    """Returns the bytes that the run's new checkpoints will take on disk."""
    config = request.profile.rvqvae
    kept = 1 if request.start.resumes else config.training.keep_checkpoints + 1
    averaged = config.training.ema_decay is not None
    return kept * checkpoint_bytes(parameter_count(data.in_features, config.model), averaged)
