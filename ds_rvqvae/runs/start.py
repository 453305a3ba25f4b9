"""Choose the checkpoint that `--resume` resumes from, and check what may differ from the run. Without torch."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.config.facts import fixed_keys
from ds_rvqvae.config.profile import PROFILE_FILE, Profile, section_at
from ds_rvqvae.config.request import Flags, Request, Start
from ds_rvqvae.data.dataset import MotionData
from ds_rvqvae.data.store.places import hash_of
from ds_rvqvae.errors import UserError
from ds_rvqvae.runs.checkpoints import (
    RESUMING,
    damage_of,
    has_begun,
    is_resuming,
    read_manifest,
    resumed_from,
    step_of,
    whole_checkpoint,
)
from ds_rvqvae.runs.folder import Naming, data_of, is_run, profile_place, read_profile, runs_called
from ds_rvqvae.runs.history import every_checkpoint, find_checkpoint, unfinished_resume
from ds_rvqvae.runs.motion import MOTION_FILE, changed_motion
from ds_rvqvae.text import counted
from ds_rvqvae.tokenizer.folder import READING_KEYS, reading_of
from ds_rvqvae.tokenizer.foreign.formats import check_for

NEWEST = Start("newest")


@dataclass
class Resume:
    """The point where a resumed run goes on."""

    checkpoint: Path | None = None
    """None to start at step 0."""
    notes: list[str] = field(default_factory=list)
    """Notes for the user: checkpoints that were skipped, settings that changed."""
    fitted: tuple[int, int] | None = None
    """Micro batch and accumulation that `auto_batch_size` chose when the run started; they stay."""
    kept: tuple[int, int] | None = None
    """If the number of ranks has changed: micro batch and accumulation that keep the global batch."""
    universal: bool = False
    """Whether the checkpoint must be converted for this number of ranks."""

    def step(self) -> int:
        return 0 if self.checkpoint is None else step_of(self.checkpoint)


def check_may_look(flags: Flags) -> None:
    """Raises UserError if this user may not read the folder of runs, or the folder that `--resume` names."""
    flag, place = ("out", flags.out) if flags.start.folder is None else ("resume", flags.start.folder)
    try:
        if place.is_dir():
            (place / (flags.name or PROFILE_FILE)).exists()
            if flags.name is None:
                os.scandir(place).close()
    except PermissionError:
        raise UserError(f"--{flag}: no permission to read {place}; give another folder") from None


def request_of(flags: Flags) -> Request:
    """Returns the request of the flags; if they name a run's folder and no profile, the profile is the run's.

    Raises:
        UserError: as in `Flags.request`; or the run's profile is damaged, and no checkpoint has a copy; or a new run
            has a key that changes nothing; or its tokenizer could not be exported to the system in `--for`.
    """
    folder = flags.start.folder
    if flags.profile is None and folder is not None and is_run(folder):
        flags = replace(flags, profile=str(profile_place(folder)))
    request = flags.request()
    check_for(request.profile)
    if not request.start.resumes:
        _check_keys_work(request, None)
    return request


def _check_keys_work(request: Request, run_folder: Path | None) -> None:
    """Raises UserError for a key that changes nothing in this training, unless a resumed run has had it from its start.

    Args:
        run_folder: the run's folder, if it is resumed.
    """
    idle = request.profile.without_effect()
    if idle and run_folder is not None and is_run(run_folder):
        begun = read_profile(run_folder).without_effect()
        idle = [text for text in idle if text not in begun]
    if idle:
        raise UserError(idle[0] if idle[0].partition(":")[0] in request.asked else f"{request.source}: {idle[0]}")


def as_begun(request: Request, run_folder: Path) -> Request:
    """Returns the request with the run's own reading rules, if it goes on from a checkpoint.

    Keys about how files are read stay those of the run, unless the request sets them.

    Raises:
        UserError: a key changes nothing, and the run did not start with it.
    """
    _check_keys_work(request, run_folder if request.start.resumes else None)
    if not request.start.resumes or not has_begun(run_folder / "checkpoints"):
        return request
    began, asked, defaults = read_profile(run_folder).rvqvae.data, request.profile.rvqvae.data, DataConfig()
    kept = {
        f"rvqvae.data.{key}": getattr(began, key)
        for key in READING_KEYS
        if getattr(asked, key) == getattr(defaults, key)
    }
    return replace(request, profile=request.profile.with_values(kept), begun=True)


def newest_lines(flags: Flags, naming: Naming, folder: Path, *, is_body: bool = False) -> tuple[str, ...]:
    """Returns lines that say which run `--resume` without a value goes on with, or which others exist if it starts one.

    Args:
        folder: folder of the run, or of the body, that was chosen by `naming`.
    """
    if flags.start.kind != "newest" or flags.name is not None:
        return ()
    if folder.exists():
        others = ", ".join([run.name for run in runs_called(flags.out, naming) if run != folder][:3])
        also = f"; there is also {others}" if others else ""
        return (f"--resume: the {'body' if is_body else 'run'} {folder}{also}",)
    found = _on_other_motion(flags.out, naming, is_body)
    if not found:
        return ()
    named = ", ".join(f"{run.name} ({path})" for run, path in found[:3])
    there, which = ("There is", "it") if len(found) == 1 else ("There are", "the first")
    there, way = f"{there} {named}", f"--resume {found[0][0]} goes on with {which}"
    return (f"warning: --resume: no run on this motion; starting {folder} from step 0. {there}; {way}",)


def _on_other_motion(out: Path, naming: Naming, is_body: bool) -> list[tuple[Path, str]]:
    """Returns runs of the same profile and body part, or bodies, with their data paths, the last written first."""
    found = []
    for run in out.iterdir() if out.is_dir() else ():
        if not naming.is_of_profile(run.name) or is_run(run) == is_body:
            continue
        data = data_of(run)
        with suppress(OSError):  # removed meanwhile
            if data and (is_body or data.get("body_part") == naming.part_before):
                found.append((run.stat().st_mtime, run, str(data.get("path"))))
    return [(run, path) for _, run, path in sorted(found, reverse=True)]


def record_of(data: MotionData) -> dict[str, Any]:
    """Returns the record of a run's motion that a checkpoint keeps, for JSON.

    `motion` stands for the model's inputs: columns and normalisation. The other entries can change even if a given
    normalisation stays: frame rate, splits, the meaning of the numbers in files, and the frames themselves.
    """
    store = data.store
    return {
        "motion": data.fingerprint(),
        "fps": data.fps,
        "splits": hash_of([list(segment) for segment in store.segments]),
        "reading": reading_of(store.settings),
        "frames": hash_of([shard.sha256 for shard in store.shards]),
    }


def find_resume(
    run_folder: Path,
    profile: Profile,
    world_size: int,
    record: Mapping[str, Any],
    thorough: bool = True,
    start: Start = NEWEST,
    data: MotionData | None = None,
) -> Resume:
    """Chooses the checkpoint to resume from. Changes nothing.

    Args:
        record: `record_of` the motion to train on.
        thorough: read every file of the checkpoint; the launcher, which only refuses early, does not.
        start: if it names a checkpoint, only this one is used.
        data: the motion to train on; with it, notes say which clips differ from the checkpoint's.

    Raises:
        UserError: checkpoints exist but none is complete (names each); or the profile or the ranks do not fit it.
    """
    folder = run_folder / "checkpoints"
    checkpoint: Path | None
    damaged: list[str] = []
    if start.tag is not None:
        checkpoint = _named(folder, start.tag, thorough)
    elif not has_begun(folder):
        return Resume(notes=[f"{run_folder} has no checkpoint yet: starting at step 0"])
    elif is_resuming(folder) and resumed_from(folder) is None:
        raise _spoilt(folder)
    else:
        # An interrupted resume is completed first, wherever its checkpoint is now.
        checkpoint = unfinished_resume(folder)
        if checkpoint is None or damage_of(checkpoint, thorough) is not None:
            checkpoint, damaged = whole_checkpoint(folder, thorough)
    if checkpoint is None:
        reasons = "; ".join(damaged) or "none is left"
        others = [path.name for path in every_checkpoint(folder) if damage_of(path, thorough) is None]
        way = f"go on from another history by --resume {others[-1]}, or " if others else ""
        raise UserError(f"--resume: no complete checkpoint: {reasons}; {way}start a new run by another --name")
    asked = read_profile(run_folder)
    fitted = _fitted_batch(asked, profile)
    profile = with_batch(profile, fitted)
    notes = [f"damaged, skipped: {text}" for text in damaged]
    notes += _changed_keys(run_folder, profile)
    resume = Resume(checkpoint, [*notes, f"going on from {checkpoint}"], fitted)
    manifest = read_manifest(checkpoint)
    change = _Change(f"--resume: {profile.rvqvae.data.path}", checkpoint, data)
    resume.notes += _changed_motion(change, manifest, record)
    if profile.rvqvae.data.reading_version == 1:
        resume.notes.append(
            "this run was started by a version up to 0.2, so its motion is read by the rules of that version "
            "(rvqvae.data.reading_version 1); a new run uses today's rules"
        )
    resume.universal = manifest["world_size"] != world_size
    # The requested global batch stays, for any number of ranks.
    same = asked.windows_per_rank == profile.windows_per_rank
    if same and manifest["global_batch"] != profile.global_batch(world_size):
        _keep_global_batch(resume, manifest, profile, world_size)
    return resume


def _spoilt(folder: Path) -> UserError:
    """Returns the error for an interrupted resume whose file `resuming` is damaged."""
    there = ", ".join(path.name for path in every_checkpoint(folder))
    return UserError(
        f"--resume: {folder / RESUMING}: damaged, and only it names the checkpoint of an interrupted resume; name that "
        f"checkpoint or another by --resume TAG: {there}"
    )


def _named(folder: Path, tag: str, thorough: bool) -> Path:
    """Returns the checkpoint that `--resume TAG` names; raises UserError if it is missing or damaged."""
    try:
        checkpoint = find_checkpoint(folder, tag)
        if (reason := damage_of(checkpoint, thorough)) is not None:
            there = ", ".join(path.name for path in every_checkpoint(folder))
            raise ValueError(f"{checkpoint}: {reason}; checkpoints there: {there}")
    except ValueError as error:
        raise UserError(f"--resume {tag}: {error}") from None
    return checkpoint


class _Change(NamedTuple):
    """The motion that a run resumes with, and the checkpoint that it is compared with."""

    start: str
    """The start of the lines about it."""
    checkpoint: Path
    data: MotionData | None

    def of_clips(self) -> str | None:
        """Returns which clips differ from those of the checkpoint, in words; None if every clip is the same."""
        if self.data is None:
            return "other frames"
        change = changed_motion(self.checkpoint, self.data)
        if change is None:
            is_there = (self.checkpoint / MOTION_FILE).is_file()
            why = f"its {MOTION_FILE} is damaged" if is_there else "a version up to 0.3 saved it"
            return f"{self.checkpoint.name} does not say which clips ({why})"
        return str(change) if change else None

    def refused(self, reason: str) -> UserError:
        """Returns the error for a reason."""
        way = "resume with the same motion, or start a new run"
        return UserError(f"{self.start}: {reason}: {self.of_clips() or 'every clip is the same'}; {way}")


def _changed_motion(change: _Change, manifest: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """Returns notes on motion that differs from a checkpoint's; raises UserError if a run must not mix both."""
    changed = [key for key, value in record.items() if manifest.get(key, value) != value]
    checkpoint = change.checkpoint
    if "motion" in changed:
        raise change.refused(f"has other columns or another normalisation than {checkpoint} was trained with")
    if "fps" in changed:
        rates = f"has {record['fps']:g} fps, but {checkpoint} was trained at {manifest['fps']:g} fps"
        raise change.refused(rates)
    if "reading" in changed:
        was, now = (json.dumps(values["reading"]) for values in (manifest, record))
        raise change.refused(f"its files are read with {now}, but those of {checkpoint} were read with {was}")
    if "splits" in changed:
        raise change.refused(
            f"has other training or held-out clips than {checkpoint} (new or missing files, or other lists of splits)"
        )
    if "frames" in changed:
        of_clips = change.of_clips()
        said = f"{change.start}: the motion is not the same as when {checkpoint} was saved: {of_clips}"
        return [] if of_clips is None else [said]
    if "frames" in record and "frames" not in manifest:
        return [
            f"{checkpoint} was saved by a version up to 0.2 and only knows its columns and normalisation: whether its "
            "clips are the same is not checked"
        ]
    return []


def with_batch(profile: Profile, sizes: tuple[int, int] | None) -> Profile:
    """Returns the profile with this micro batch and accumulation, if given."""
    if sizes is None:
        return profile
    keys = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    return profile.with_values(dict(zip(keys, sizes, strict=True)))


def overrides_between(before: Profile, now: Profile) -> list[str]:
    """Returns the `--set` values, `path=value` each, that turn one profile into the other."""
    old, new = (profile.model_dump(mode="json", by_alias=True) for profile in (before, now))
    return [override for override in _differences((), old, new) if not override.startswith("$schema=")]


def _differences(path: tuple[str, ...], old: Any, new: Any) -> Iterator[str]:
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict) and section_at(path) is not None:
        for key, value in new.items():
            yield from _differences((*path, key), old[key], value)
    else:
        yield f"{'.'.join(path)}={json.dumps(new)}"


def split_batch(windows: int, most: int) -> tuple[int, int]:
    """Returns the largest micro batch, up to `most` windows, that divides a rank's `windows`, and their number."""
    micro_batch = max(size for size in range(1, min(most, windows) + 1) if windows % size == 0)
    return micro_batch, windows // micro_batch


def _fitted_batch(asked: Profile, profile: Profile) -> tuple[int, int] | None:
    """Returns the sizes in the run's profile if `auto_batch_size` chose them and `profile` asks for the same.

    A smaller micro batch is not the same: it is given because there is less memory.
    """
    automatic = asked.rvqvae.training.auto_batch_size and profile.rvqvae.training.auto_batch_size
    smaller = profile.train_micro_batch_size_per_gpu < asked.train_micro_batch_size_per_gpu
    if not automatic or smaller or asked.windows_per_rank != profile.windows_per_rank:
        return None
    return asked.train_micro_batch_size_per_gpu, asked.gradient_accumulation_steps


def _keep_global_batch(resume: Resume, manifest: dict[str, Any], profile: Profile, world_size: int) -> None:
    """Chooses micro batch and accumulation so that another number of ranks keeps the global batch."""
    batch, saved_by = manifest["global_batch"], manifest["world_size"]
    share, rest = divmod(batch, world_size)
    if rest:
        fitting = ", ".join(str(ranks) for ranks in range(1, min(batch, 64) + 1) if batch % ranks == 0)
        raise UserError(
            f"--resume: {resume.checkpoint} was saved by {saved_by} ranks with a global batch of {batch}, which "
            f"{world_size} ranks cannot divide; numbers of ranks that can: {fitting}"
        )
    resume.kept = split_batch(share, profile.train_micro_batch_size_per_gpu)
    resume.notes.append(
        f"{counted(world_size, 'rank')}: the global batch stays {batch}, as micro batch {resume.kept[0]} x "
        f"accumulation {resume.kept[1]}"
    )


def _changed_keys(run_folder: Path, profile: Profile) -> list[str]:
    """Returns notes on settings that differ from the run's; raises UserError for one that must not change."""
    file = run_folder / PROFILE_FILE
    before, now = read_profile(run_folder).rvqvae, profile.rvqvae
    for section, values in now:
        for key in fixed_keys(type(values)):
            old, new = (getattr(getattr(settings, section), key) for settings in (before, now))
            if old != new:
                was = json.dumps(old)
                raise UserError(
                    f"--resume: rvqvae.{section}.{key} was {was} in {file} and cannot change to {json.dumps(new)}"
                )
    old, new = (flat_keys(settings) for settings in (read_profile(run_folder).to_dict(), profile.to_dict()))
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    notes = [f"changed: {key}: {json.dumps(old.get(key))} -> {json.dumps(new.get(key))}" for key in changed]
    if now.schedule.kind == "cosine" and before.training.total_iter != now.training.total_iter:
        notes.append("rvqvae.schedule.kind: the learning rate goes on along the cosine of the new total_iter")
    return notes


def flat_keys(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Returns nested objects as one level of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flat_keys(value, f"{path}{key}.")
        else:
            flat[f"{path}{key}"] = value
    return flat
