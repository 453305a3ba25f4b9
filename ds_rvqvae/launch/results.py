"""Print the end of a run: its scores and the next commands, or the command that continues it."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ds_rvqvae.data.dataset import MotionData
from ds_rvqvae.data.formats.readers import open_reader
from ds_rvqvae.data.store.store import is_store
from ds_rvqvae.errors import ExitStatus, UserError, say
from ds_rvqvae.files import read_json
from ds_rvqvae.host import VISIBLE
from ds_rvqvae.launch.body import CheckedRun
from ds_rvqvae.launch.hosts import warn
from ds_rvqvae.motion.clip import whole_name
from ds_rvqvae.motion.skeleton import figure_of, measured_joints
from ds_rvqvae.process.home import expanded
from ds_rvqvae.process.terminal import Block, terminal_of
from ds_rvqvae.process.tolerance import tolerated
from ds_rvqvae.runs.folder import LOG, is_run
from ds_rvqvae.tokenizer.folder import TOKENIZER
from ds_rvqvae.tokenizer.tables import score_blocks

_Scores = dict[str, Any]
_LAUNCHER = "train_8x4090"


def tell_ending(folder: Path, parts: Sequence[str], run: CheckedRun, status: ExitStatus) -> None:
    """Prints how a start of the launcher ended: its results on the host of rank 0, the command to continue on each
    host.

    Args:
        folder: the folder of the run, or of the body with these `parts`.
        run: the run, or the body's first run.
        status: the exit status of the start.
    """
    if status == ExitStatus.DONE and run.ranks.first_here:
        with tolerated(f"{folder}: its results cannot be shown", warn=warn):
            print(terminal_of().text(result_lines(folder, parts, run.data)))
    elif status in (ExitStatus.STOPPED, ExitStatus.FAILED):
        with tolerated("no command to continue", "the same command with --resume continues the run", warn=warn):
            logs = [log for part in parts or ("",) if (log := folder / part / LOG).is_file()]
            if status == ExitStatus.FAILED and logs:
                newest = max(logs, key=lambda log: log.stat().st_mtime)
                say(f"what happened is in {newest}")
            again = joined(resuming(folder if len(run.ranks.hosts) == 1 else None, parts))
            say(f"continue with: {_placing(run)}{again}")


def result_lines(folder: Path, parts: Sequence[str], data: MotionData) -> list[Block]:
    """Returns the scores of a run, or of the parts of a body, before and after training; the files it made; and the
    next commands."""
    lines: list[Block] = []
    pictures: list[Path] = []
    for part in parts:
        lines += [f"{part}: {text}" for text in _short_scores(folder / part)]
        pictures += _pictures(folder / part)
    if not parts:
        lines, pictures = _scores(folder), _pictures(folder)[-1:]
    lines += [""]
    lines += [["picture: ", (str(picture), "path")] for picture in pictures]
    has_tokenizer = (folder / TOKENIZER).is_dir()
    if has_tokenizer:
        lines.append(["tokenizer: ", (str(folder / TOKENIZER), "path")])
    else:
        export = joined([*program(), "export", str(folder), "--out", "DIR"])
        warn(f"{folder / TOKENIZER}: is missing" + ("" if parts else f"; `{export}` writes it"))
    boards = folder if parts else folder / "tensorboard"
    curves = [*program("tensorboard"), "--logdir", str(boards), "--host", "localhost"]
    lines += [["run: ", (str(folder), "path")], ["curves: ", (joined(curves), "path")]]
    if has_tokenizer:
        lines += ["", ("next:", "title")]
        lines += [["  ", (joined(words), "path")] for words in _next_commands(folder, parts, data)]
    return lines


def _next_commands(folder: Path, parts: Sequence[str], data: MotionData) -> list[list[str]]:
    """Returns commands for a video, the codes of all motion, and scores, as far as the motion allows them."""
    own, split, commands = program(), _held_out(data), []
    layout = data.store.layout if parts else data.layout
    with tolerated("no clip to name in a command", warn=lambda _: None):
        clip = _clip_of(data, split)
        if measured_joints(layout, figure_of(data.store.skeleton, "motion")):
            commands.append([*own, "render", str(folder), *clip, "--out", f"{Path(clip[0]).stem}.mp4"])
    with tolerated("no motion to name in a command", warn=lambda _: None):
        if (motion := _motion_of(data)).exists():
            codes = Path("codes", folder.absolute().name)
            commands.append([*own, "encode", str(folder / TOKENIZER), _near(motion), "--out", str(codes)])
    return [*commands, [*own, "evaluate", str(folder), "--split", split]]


def _held_out(data: MotionData) -> str:
    """Returns the split to score: test if there is one, because it influenced no choice during training."""
    return next(split for split in ("test", "val", "train") if data.segments(split))


def _clip_of(data: MotionData, split: str) -> list[str]:
    """Returns the first clip of a split as arguments of `render`: its file or store, its name in that, and its
    start."""
    segment = data.segments(split)[0]
    name = whole_name(segment.name)
    start = []
    if segment.start and name == segment.name:
        start = ["--start", f"{segment.start / data.fps:.1f}"]
    path = _path_of(data)
    if is_store(path):
        return [_near(path), "--clip", segment.name, *start]
    files = open_reader(path, data.config).clip_files()
    name = segment.name if segment.name in files else name  # a listed piece is a clip of its own
    file = files.get(name, path)
    alone = list(files.values()).count(file) == 1 and Path(name).name == file.stem
    return [_near(file), *start] if alone else [_near(path), "--clip", name, *start]


def _motion_of(data: MotionData) -> Path:
    """Returns the motion as an argument of `encode`; for a store, its source files."""
    path = _path_of(data)
    return Path(next(iter(data.store.sources), path)) if is_store(path) else path


def _path_of(data: MotionData) -> Path:
    if data.config.path is None:
        raise UserError("rvqvae.data.path: not given")
    return expanded(data.config.path)


def _scores(run: Path) -> list[Block]:
    """Returns the run's scores by level beside those of the untrained model; if either cannot be read, warns with a
    remedy."""
    try:
        trained, untrained = _read(run)
        lines = score_blocks(trained, untrained)
    except (OSError, ValueError, LookupError, TypeError) as error:
        _warn_of_scores(run, error)
        return []
    if trained["split"] == "train":
        lines.append("no clip is held out: these scores are of training motion")
    return lines


def _short_scores(run: Path) -> list[str]:
    try:
        trained, untrained = _read(run)
        values = []
        for key, title, unit, form in (("angle_error_deg", "angle", " deg", ".2f"), ("l1", "L1", "", ".4f")):
            if trained[key] is not None:
                before = "" if untrained is None else f"{untrained[key]:{form}} untrained, "
                values.append(f"{title} {before}{trained[key]:{form}}{unit} trained")
        if not values:
            raise ValueError("no clip was scored")
        return [f"{trained['split']}, {'; '.join(values)}"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        _warn_of_scores(run, error)
        return []


def _warn_of_scores(run: Path, error: Exception) -> None:
    again = joined([*program(), "evaluate", str(run)])
    warn(f"{run / 'eval'}: the scores cannot be read: {error}; {again} computes them again")


def _read(run: Path) -> tuple[_Scores, _Scores | None]:
    """Returns the run's scores, and those before training; None for these if there are none."""
    before = run / "eval" / "untrained.json"
    return read_json(run / "eval" / "scores.json"), read_json(before) if before.exists() else None


def _pictures(run: Path) -> list[Path]:
    """Returns the newest picture of a run's reconstructions; empty if there is none."""
    pictures = [picture for picture in (run / "eval").glob("reconstruction*.png") if picture.is_file()]
    return [max(pictures, key=lambda picture: picture.stat().st_mtime)] if pictures else []


def resuming(folder: Path | None, parts: Sequence[str] = ()) -> list[str]:
    """Returns the command that continues a run after this start of the launcher: the same with `--resume`.

    It names the run by its folder. If the folder has no run yet, or is None because several hosts may see different
    disks, the flags name the run.
    """
    launcher, words = _launcher()
    kept = []
    while words:
        word = words.pop(0)
        if word == "--resume":
            if words and not words[0].startswith("-"):
                words.pop(0)
        elif not word.startswith("--resume="):
            kept.append(word)
    if folder is not None and any(is_run(folder / part) for part in parts or ("",)):
        return [*launcher, *kept, "--resume", str(folder)]
    is_named = any(word == "--name" or word.startswith("--name=") for word in kept)
    # Without a name the flags could mean an older run.
    name = [] if is_named or folder is None else ["--name", folder.name]
    return [*launcher, *kept, *name, "--resume"]


def _placing(run: CheckedRun) -> str:
    """Returns the environment variables that chose the places of the ranks, to be put before a command; empty if flags
    chose them."""
    names = ["DS_ACCELERATOR", "LOCAL_SIZE"] if run.ranks.cpu else []
    names += [VISIBLE] if run.ranks.visible is not None else []
    values = run.request.flags.environment
    return "".join(f"{name}={joined([values[name]])} " for name in names if name in values)


def _launcher() -> tuple[list[str], list[str]]:
    """Returns the words that started this process, for a shell, and its flags."""
    script, words = Path(sys.argv[0]), sys.argv[1:]
    if script.name == f"{_LAUNCHER}.py":
        shell = script.with_suffix(".sh")
        # The shell script passes an absolute path.
        by_shell = script.is_absolute() and shell.is_file()
        return ["bash", _near(shell)] if by_shell else [_python(), str(script)], words
    if script.name == "__main__.py" and script.parent.name == "launch":
        return [_python(), "-m", "ds_rvqvae.launch"], words
    return [*program(), "train"], words[1:]  # without the command's own name


def program(name: str = "ds-rvqvae") -> list[str]:
    """Returns the words that call a program of this environment."""
    own, found = Path(sys.executable).with_name(name), shutil.which(name)
    if found and (not own.exists() or own.samefile(found)):
        return [name]
    if own.exists():
        return [_near(own)]
    return [_python(), "-m", "ds_rvqvae.cli" if name == "ds-rvqvae" else f"{name}.main"]


def _python() -> str:
    found = shutil.which("python")
    # Links are not resolved: an environment's interpreter is a link to one outside.
    return "python" if found and Path(found) == Path(sys.executable) else _near(Path(sys.executable))


def _near(file: Path) -> str:
    """Returns a path relative to the working folder if it is inside that, else the absolute path."""
    path = Path(os.path.relpath(file))
    return str(file.absolute() if path.parts[:1] == ("..",) else path)


def joined(words: Sequence[str]) -> str:
    """Joins words into a command for a shell; characters that are not printable are written as their codes."""
    return " ".join(shlex.quote(word) if word.isprintable() else _coded(word) for word in words)


def _coded(word: str) -> str:
    shown = []
    for character in word:
        if character.isprintable() and character not in "'\\":
            shown.append(character)
        else:
            shown += [f"\\x{byte:02x}" for byte in os.fsencode(character)]
    return "$'" + "".join(shown) + "'"
