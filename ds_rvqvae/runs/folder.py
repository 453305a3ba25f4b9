"""Folders of runs: choose a run's name, check that it can be written, keep its small files intact."""

import json
import os
import re
import shutil
import string
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.config.profile import PROFILE_FILE, Profile, load_profile
from ds_rvqvae.config.request import Request, Start
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import LONGEST_NAME, LONGEST_PATH, read_json, whole_file
from ds_rvqvae.locks import BusyError, HeldFolder, hold_folder
from ds_rvqvae.process.home import expanded
from ds_rvqvae.runs.checkpoints import MANIFEST, candidates, checkpoints, keeps
from ds_rvqvae.text import gigabytes

LOG, METRICS = "run.log", "metrics.jsonl"
_PATH_BELOW = 256
"""Maximum bytes of a file's path inside the run's folder."""
_MESSAGE = re.compile(rb"\d{4}-\d\d-\d\d ")
NORMALISATION = "normalisation.json"
"""File in the folder of a run that started from a tokenizer: `mean` and `std`, one number per column."""
_KEPT_OBJECTS = (PROFILE_FILE, NORMALISATION)
RANK_LAUNCHER = "deepspeed.launcher.launch"
"""Text in the command line of deepspeed's process that starts the ranks."""

RUN_VARIABLE = "DS_RVQVAE_RUN"
"""Environment variable with the run's folder, if our launcher has chosen and made it."""
STORE_VARIABLE = "DS_RVQVAE_STORE"
"""Environment variable with the folder of the run's packed motion, if our launcher has checked it against the files.
It is checked once per start: otherwise each rank would read all files again, and a restart might find others."""
STORE_CONTENT_VARIABLE = "DS_RVQVAE_STORE_CONTENT"
"""Environment variable with that store's content (`Store.content`): ranks and restarts refuse another one."""
SAID_VARIABLE = "DS_RVQVAE_SAID"
"""Environment variable with the lines that our launcher printed before `run.log` existed."""
_SAFE = string.ascii_letters + string.digits + "_.+=@,-"
_held: list[HeldFolder] = []


def run_folder_of(request: Request) -> Path:
    """Returns the folder of the requested run; see `choose_run_folder`."""
    flags = request.flags
    return choose_run_folder(flags.out, flags.name, naming_of(request), flags.start)


def naming_of(request: Request) -> "Naming":
    """Returns how a run is named if no flag names it."""
    flags, data = request.flags, request.profile.rvqvae.data
    unnamed = flags.name is None and flags.start.folder is None
    return Naming(request.source, data.path, data.body_part if unnamed and takes_part(data) else "", data.body_part)


@dataclass(frozen=True)
class Naming:
    """The default name of runs: `<profile>-<data folder>`, and the body part if there is one.

    Args:
        profile: a shipped profile's name or a file; `configs/my.json` names its runs `my`.
        data_path: the motion; None if it is not known.
        part: the body part, or `body` for several; empty if the motion has no parts to select.
        part_before: the part in the names of versions up to 0.5, which were `<profile>-<part>` for any motion.
    """

    profile: str
    data_path: str | None
    part: str
    part_before: str

    def base(self) -> str:
        """Returns the name without a number: one folder name, short enough to add one, and safe in every shell."""
        data = None if self.data_path is None else data_name(self.data_path)
        return "-".join(filter(None, (_safe(_stem(self.profile)), data, _safe(self.part))))

    def base_before(self) -> str:
        """Returns the name in versions up to 0.5."""
        name = os.fsencode(_stem(self.profile))
        return f"{os.fsdecode(name[: LONGEST_NAME // 2])}-{self.part_before}"

    def is_of_profile(self, name: str) -> bool:
        """Returns whether a run of the same profile, on any motion, may have this name."""
        return any(f"{name}-".startswith(f"{stem}-") for stem in (_safe(_stem(self.profile)), _stem(self.profile)))


def takes_part(config: DataConfig) -> bool:
    """Returns whether `body_part` selects columns of the motion in `config`, as far as its files tell."""
    if config.body_part in (config.body_parts or ()):
        return True
    if config.path is None:
        return False
    # Late: a run with a name does not need them.
    from ds_rvqvae.data.formats.readers import open_reader
    from ds_rvqvae.data.store.store import is_store, open_store

    path = expanded(config.path)
    with suppress(UserError, OSError):  # reported later, when the motion is read
        return open_store(path).has_body_parts if is_store(path) else open_reader(path, config).has_body_parts
    return False


def data_name(path: str) -> str:
    """Returns the word for the motion in a run's name: the folder's name, or the file's without its suffix."""
    place = Path(path)
    if place.name in ("", ".", ".."):
        with suppress(OSError, ValueError):
            place = place.resolve()
    return _safe(place.stem if _is_file(place) else place.name) or "data"


def _is_file(place: Path) -> bool:
    """Returns whether a file exists; False if its folder is locked or the path is not valid."""
    with suppress(OSError, ValueError):
        return place.is_file()
    return False


def _stem(profile: str) -> str:
    return Path(profile).name.removesuffix(".json")


def _safe(name: str) -> str:
    """Returns the name with only letters, digits and signs that are safe in every shell, and not too long."""
    kept = (letter if letter.isprintable() and (letter > "\x7f" or letter in _SAFE) else " " for letter in name)
    return "_".join("".join(kept).split()).lstrip("-.").encode()[: LONGEST_NAME // 4].decode(errors="ignore")


def choose_run_folder(out: Path, name: str | None, naming: Naming, start: Start) -> Path:
    """Returns the folder of a run in `out`, the folder of runs. Creates nothing.

    Without a name, `naming` names the run: `baseline-BEAT2-upper`, then `baseline-BEAT2-upper-2` and so on. With a
    `start` that resumes, the folder may exist already. Without a name it then is the newest existing run: first of runs
    on motion at the same path, then at another path with the same last name; first under today's names, then under
    those of older versions.

    Raises:
        UserError: `name` is not a folder name, or is taken and `start` is new.
    """
    if start.folder is not None:
        if not is_run(start.folder):
            raise UserError(f"--resume {start.folder}: is neither a checkpoint (global_stepN) nor a run's folder")
        return start.folder
    if name is None:
        base = naming.base()
        numbers = _numbers(out, base)
        if start.resumes and (there := runs_called(out, naming)):
            return there[0]
        number = max(numbers, default=0) + 1
        return out / (base if number == 1 else f"{base}-{number}")
    if not name.strip() or name in (".", "..") or "/" in name or "\\" in name or not name.isprintable():
        raise UserError(
            f"--name {name!r}: give one folder name, without slashes or characters that cannot be printed; --out says "
            "where it goes"
        )
    if len(os.fsencode(name)) > LONGEST_NAME:
        size = len(os.fsencode(name))
        raise UserError(f"--name {name}: has {size} bytes, but a folder's name can have {LONGEST_NAME}; shorten it")
    folder = out / name
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--name {name}: {folder} is a file; give another name")
    if folder.exists() and not start.resumes:
        raise UserError(f"--name {name}: {folder} exists; continue it with --resume, or give another name")
    return folder


def runs_called(out: Path, naming: Naming) -> list[Path]:
    """Returns the runs in `out` that `--resume` without a value may mean, its choice first; see `choose_run_folder`."""
    ranked = []
    for is_old, base in enumerate((naming.base(), naming.base_before())):
        for number in _numbers(out, base):
            folder = out / (base if number == 1 else f"{base}-{number}")
            is_ours = folder.exists() if not is_old else is_run(folder) or any(folder.glob(f"*/{PROFILE_FILE}"))
            if not is_ours:
                continue
            likeness = _likeness(folder, naming.data_path)
            if likeness is not None:
                ranked.append((likeness, is_old, -number, folder))
    return [folder for *_, folder in sorted(ranked)]


def _likeness(folder: Path, data_path: str | None) -> int | None:
    """Returns 0 for a run on the motion at this path, 1 for unknown motion or the same name, None for other motion."""
    before = data_of(folder).get("path")
    if not isinstance(before, str) or data_path is None or before == data_path:
        return 0 if before == data_path else 1
    with suppress(OSError, ValueError):
        if Path(before).samefile(data_path):
            return 0
    return 1 if data_name(before) == data_name(data_path) else None


def data_of(folder: Path) -> dict[str, Any]:
    """Returns `rvqvae.data` of the profile of a run, or of a body's first part; empty if it cannot be read."""
    for place in (folder, *(file.parent for file in sorted(folder.glob(f"*/{PROFILE_FILE}")))):
        with suppress(UserError, OSError, ValueError, LookupError, TypeError):
            return dict(read_json(profile_place(place))["rvqvae"]["data"])
    return {}


def is_run(folder: Path) -> bool:
    """Returns whether a folder is a run's: it has a profile or checkpoints. A folder with a manifest is a checkpoint,
    which has a copy of the profile too."""
    with suppress(OSError):  # another user's folder may be locked
        has_files = (folder / PROFILE_FILE).is_file() or bool(checkpoints(folder / "checkpoints"))
        return has_files and not (folder / MANIFEST).is_file()
    return False


def write_profile(folder: Path, profile: Profile) -> None:
    """Writes a run's `profile.json`: every key of its profile, enough to start it again."""
    with whole_file(folder / PROFILE_FILE, synced=True) as content:
        content.write(json.dumps(profile.to_dict(), indent=2).encode() + b"\n")


def read_profile(folder: Path) -> Profile:
    """Reads a run's `profile.json`, or the copy in its newest checkpoint if it is damaged.

    A profile without `reading_version` is from a version that had only the first rules.

    Raises:
        UserError: as in `load_profile`; or it is damaged, and no checkpoint has a copy.
    """
    profile = load_profile(profile_place(folder))
    if "reading_version" in profile.rvqvae.data.model_fields_set:
        return profile
    return profile.with_values({"rvqvae.data.reading_version": 1})


def profile_place(folder: Path) -> Path:
    """Returns the file that a run's profile is read from: its own, or a checkpoint's copy if that is damaged.

    Raises:
        UserError: it is damaged, and no checkpoint has a copy.
    """
    file = folder / PROFILE_FILE
    reason = damage_of_object(file)
    if reason is None:
        return file
    copy = copy_in_checkpoint(folder, PROFILE_FILE)
    if copy is not None:
        return copy
    if not checkpoints(folder / "checkpoints"):
        way = f"start it again with its flags and --out {folder.parent} --name {folder.name} --resume"
        raise UserError(f"{file}: {reason}, and the run has no checkpoint yet; {way}")
    raise UserError(
        f"{file}: {reason}, and no checkpoint has a copy of it (versions up to 0.3 kept none); start a run with the "
        "same flags and another --name, stop it, copy its profile.json there, and --resume"
    )


def copies_of(folder: Path) -> dict[str, bytes]:
    """Returns, by name, the contents of the run's small files that checkpoints keep copies of."""
    names = [name for name in _KEPT_OBJECTS if damage_of_object(folder / name) is None]
    names += [METRICS] if (folder / METRICS).is_file() else []
    return {name: (folder / name).read_bytes() for name in names}


def copy_in_checkpoint(folder: Path, name: str) -> Path | None:
    """Returns the copy of a run's file in the newest checkpoint that has an intact one, or None."""
    return next(
        (checkpoint / name for checkpoint in candidates(folder / "checkpoints") if keeps(checkpoint, name)), None
    )


def restore_profile(folder: Path) -> list[str]:
    """Restores a damaged profile of a run from a checkpoint's copy, if there is one; returns notes."""
    file = folder / PROFILE_FILE
    reason = damage_of_object(file)
    copy = None if reason is None else copy_in_checkpoint(folder, PROFILE_FILE)
    if copy is None:
        return []
    with whole_file(file, synced=True) as content:
        content.write(copy.read_bytes())
    return [f"{file}: {reason}; restored from {copy.parent}"]


def restore_metrics(folder: Path, checkpoint: Path) -> list[str]:
    """Restores the lines of metrics that a checkpoint was saved with, if they are missing; returns notes.

    Lines are only ever appended, so these must be at the start of the file; later lines stay.
    """
    file = folder / METRICS
    if not keeps(checkpoint, METRICS):
        return []
    lines = (checkpoint / METRICS).read_bytes()
    if file.is_file() and file.read_bytes().startswith(lines):
        return []
    with whole_file(file, synced=True) as content:
        content.write(lines)
    return [f"{file}: missing or damaged; restored from {checkpoint}"]


def mend_log(folder: Path, searched: int = 1 << 16) -> list[str]:
    """Cuts the garbage that a crash of the machine left at the end of a run's log, and ends its last line.

    Args:
        searched: number of bytes at the end to check.

    Returns:
        notes on the repair.
    """
    file = folder / LOG
    if not file.is_file():
        return []
    with file.open("r+b") as content:
        size = content.seek(0, os.SEEK_END)
        content.seek(max(0, size - searched))
        lines = content.read().splitlines(keepends=True)
        # The last line that begins like a message; anything after it that is not text is garbage.
        begun = max((index for index, line in enumerate(lines) if _MESSAGE.match(line) and _is_text(line)), default=0)
        garbage = next((index for index in range(begun, len(lines)) if not _is_text(lines[index])), len(lines))
        cut = sum(map(len, lines[garbage:]))
        content.truncate(size - cut)
        content.seek(0, os.SEEK_END)
        if not b"".join(lines[:garbage]).endswith(b"\n") and size > cut:
            content.write(b"\n")
    return [f"{file}: damaged at its end; {cut:,} bytes cut"] if cut else []


def _is_text(line: bytes) -> bool:
    try:
        return not any(character < " " and character not in "\t\r\n" for character in line.decode())
    except UnicodeDecodeError:
        return False


def damage_of_object(file: Path) -> str | None:
    """Returns the reason why a file does not hold a JSON object, or None; the object's contents are not checked."""
    try:
        return None if isinstance(read_json(file), dict) else "not a JSON object"
    except OSError as error:
        return "missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror or error}"
    except ValueError as error:
        return f"damaged: {error}"


def check_out_folder(folder: Path, needed_bytes: int = 0) -> None:
    """Raises UserError if `folder` cannot be made or written, or its disk does not have `needed_bytes` free.

    Makes nothing: it checks the permissions and free space of the nearest existing folder.
    """
    existing = folder.absolute()
    length = len(os.fsencode(existing))
    if length + _PATH_BELOW > LONGEST_PATH:
        raise UserError(
            f"--out: the path of the run's folder has {length:,} bytes; with the files in it that is more than the "
            f"{LONGEST_PATH:,} that a path can have; give another --out"
        )
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
            f"--out: the run needs about {gigabytes(needed_bytes)}, but the disk of {existing} has "
            f"{gigabytes(free)} free; give another --out, or lower --keep_checkpoints"
        )


def lock_run(folder: Path, say: Callable[[str], None], lost: Callable[[str], None]) -> None:
    """Locks a run's folder against other starts until `unlock_runs`, or until this process ends for any reason.

    Args:
        say, lost: called with lines, as in `hold_folder`.

    Raises:
        UserError: another process holds it.
    """
    try:
        _held.append(hold_folder(folder, wait=False, say=say, lost=lost))
    except BusyError as busy:
        raise UserError(f"{folder}: {busy.holder} is training in it; wait for its end or give another --name") from None


def unlock_runs() -> None:
    """Unlocks all runs that this process has locked; for a process that ends without Python's cleanup."""
    while _held:
        _held.pop().close()


def _numbers(out: Path, base: str) -> list[int]:
    """Returns the numbers of the runs named `base`."""
    pattern = re.compile(re.escape(base) + r"(?:-(\d+))?")
    names = [entry.name for entry in out.iterdir()] if out.is_dir() else []
    return [int(match[1] or 1) for match in map(pattern.fullmatch, names) if match]
