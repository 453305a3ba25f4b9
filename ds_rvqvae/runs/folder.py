"""Folders of runs: how a run is named, and whether it can be written."""

import fcntl
import json
import os
import re
import shutil
from pathlib import Path

from ds_rvqvae.config.profile import PROFILE_FILE, Profile, load_profile
from ds_rvqvae.config.request import Request, Start
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import whole_file
from ds_rvqvae.text import gigabytes

OUTCOME_VARIABLE = "DS_RVQVAE_OUTCOME"
"""Environment variable with the file into which rank 0 writes `DONE` when the run ended well."""
DONE = "done"
RANK_LAUNCHER = "deepspeed.launcher.launch"
"""The process of deepspeed's that starts the ranks, in its command line."""


RUN_VARIABLE = "DS_RVQVAE_RUN"
"""Environment variable with the folder of the run, where our launcher has chosen and made it."""


STORE_VARIABLE = "DS_RVQVAE_STORE"
"""Environment variable with the folder of the run's motion, packed, where our launcher has checked it against the
files. It is checked once a start: ranks would each read all files again, and a restart might find others."""
STORE_CONTENT_VARIABLE = "DS_RVQVAE_STORE_CONTENT"
"""Environment variable with what that store holds (`Store.content`): ranks and restarts refuse another one."""


def run_folder_of(request: Request) -> Path:
    """The folder of the run that is asked for; see `choose_run_folder`."""
    flags = request.flags
    return choose_run_folder(flags.out, flags.name, request.source, request.profile.rvqvae.data.body_part, flags.start)


def choose_run_folder(out: Path, name: str | None, profile_name: str, body_part: str, start: Start) -> Path:
    """The folder of a run in the folder of runs `out`. Creates nothing.

    Without a name a run is called by profile and body part: `baseline-upper`, then `baseline-upper-2` and so on.
    With a `start` that resumes the folder may exist already, and without a name it is the newest of those.

    Raises:
        UserError: `name` is no folder name, or is taken and `start` is new.
    """
    if start.folder is not None:
        if not (start.folder / PROFILE_FILE).is_file():
            raise UserError(f"--resume {start.folder}: neither a checkpoint (global_stepN) nor a run's folder")
        return start.folder
    if name is None:
        # A profile given as a file, `configs/my.json`, names its runs `my`.
        base = f"{Path(profile_name).name.removesuffix('.json')}-{body_part}"
        newest = _newest_number(out, base)
        number = max(newest, 1) if start.resumes else newest + 1
        return out / (base if number == 1 else f"{base}-{number}")
    if not name.strip() or name in (".", "..") or "/" in name or "\\" in name or not name.isprintable():
        raise UserError(f"--name {name!r}: give the name of one folder, without slashes; --out says where it goes")
    folder = out / name
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--name {name}: {folder} is a file; give another name")
    if folder.exists() and not start.resumes:
        raise UserError(f"--name {name}: {folder} exists; go on with it by --resume, or give another name")
    return folder


def write_profile(folder: Path, profile: Profile) -> None:
    """Writes a run's `profile.json`: every key of its profile, enough to start it again."""
    with whole_file(folder / PROFILE_FILE) as content:
        content.write(json.dumps(profile.to_dict(), indent=2).encode() + b"\n")


def read_profile(folder: Path) -> Profile:
    """A run's `profile.json`; raises UserError as `load_profile`.

    One that does not say by which rules its motion is read is of a version before there were others.
    """
    profile = load_profile(folder / PROFILE_FILE)
    if "reading_version" in profile.rvqvae.data.model_fields_set:
        return profile
    return profile.with_values({"rvqvae.data.reading_version": 1})


def check_out_folder(folder: Path, needed_bytes: int = 0) -> None:
    """Raises UserError where `folder` cannot be made or written, or its disk has no room for `needed_bytes`.

    Makes nothing: permissions and room are those of the nearest folder that exists.
    """
    existing = folder.absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"--out: {existing} is a file, so {folder} cannot be a folder; give another --out")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--out: no permission to write in {existing}; give another --out")
    try:
        free = shutil.disk_usage(existing).free
    except OSError as error:
        raise UserError(f"--out: {existing}: {error.strerror}; give another --out") from None
    if free < needed_bytes:
        raise UserError(
            f"--out: the run needs about {gigabytes(needed_bytes)} and the disk of {existing} has "
            f"{gigabytes(free)} free; give another --out, or lower --keep_checkpoints"
        )


def lock_run(folder: Path) -> None:
    """Keeps other starts out of a run's folder for as long as this process lives.

    The lock is on the folder itself: it leaves no file behind and dies with its process.

    Raises:
        UserError: another process has it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(f"{folder}: another run is training in it; wait for its end or give another --name") from None
    except OSError:
        # A file system without locks, as some network ones are.
        os.close(handle)


def _newest_number(out: Path, base: str) -> int:
    """The highest number of the runs called `base`, 0 where there is none."""
    pattern = re.compile(re.escape(base) + r"(?:-(\d+))?")
    names = [entry.name for entry in out.iterdir()] if out.is_dir() else []
    return max((int(match[1] or 1) for match in map(pattern.fullmatch, names) if match), default=0)
