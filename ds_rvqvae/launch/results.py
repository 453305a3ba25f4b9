"""What the launcher prints at the end: how good a run is and what can be done with it, or how it is gone on with."""

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
from ds_rvqvae.launch.body import CheckedRun
from ds_rvqvae.launch.hosts import warn
from ds_rvqvae.launch.visible import VARIABLE
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
    """Tells a user how a start of the launcher ended: its results on the host of rank 0, how to go on on each.

    Args:
        folder: of the run, or of the body that has these `parts`.
        run: that run, or the body's first.
        status: of the start.
    """
    if status == ExitStatus.DONE and run.ranks.first_here:
        with tolerated(f"{folder}: its results cannot be shown", warn=warn):
            print(terminal_of().text(result_lines(folder, parts, run.data)))
    elif status in (ExitStatus.STOPPED, ExitStatus.FAILED):
        with tolerated("no command to go on with", "the same command with --resume does", warn=warn):
            logs = [log for part in parts or ("",) if (log := folder / part / LOG).is_file()]
            if status == ExitStatus.FAILED and logs:
                newest = max(logs, key=lambda log: log.stat().st_mtime)
                say(f"what happened is in {newest}")
            again = joined(resuming(folder if len(run.ranks.hosts) == 1 else None, parts))
            say(f"go on with: {_placing(run)}{again}")


def result_lines(folder: Path, parts: Sequence[str], data: MotionData) -> list[Block]:
    """The scores of a run, or of the parts of a body, before and after training; where what it made lies; and commands
    that go on from there."""
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
        warn(f"{folder / TOKENIZER}: is not there" + ("" if parts else f"; `{export}` writes it"))
    boards = folder if parts else folder / "tensorboard"
    curves = [*program("tensorboard"), "--logdir", str(boards), "--host", "localhost"]
    lines += [["run: ", (str(folder), "path")], ["curves: ", (joined(curves), "path")]]
    if has_tokenizer:
        lines += ["", ("next:", "title")]
        lines += [["  ", (joined(words), "path")] for words in _next_commands(folder, parts, data)]
    return lines


def _next_commands(folder: Path, parts: Sequence[str], data: MotionData) -> list[list[str]]:
    """A video, codes of all motion and scores, each where the motion has it."""
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
    """The split to score: test, which no choice was made by, where there is one."""
    return next(split for split in ("test", "val", "train") if data.segments(split))


def _clip_of(data: MotionData, split: str) -> list[str]:
    """The first clip of a split as `render` takes it: its file or store, what names it in that, and where it starts."""
    segment = data.segments(split)[0]
    name = whole_name(segment.name)
    start = []
    if segment.start and name == segment.name:
        start = ["--start", f"{segment.start / data.fps:.1f}"]
    path = _path_of(data)
    if is_store(path):
        return [_near(path), "--clip", segment.name, *start]
    files = open_reader(path, data.config).clip_files()
    file = files.get(name, path)
    alone = list(files.values()).count(file) == 1
    return [_near(file), *([] if alone else ["--clip", name]), *start]


def _motion_of(data: MotionData) -> Path:
    """The motion as `encode` takes it: of a store, what it was made of."""
    path = _path_of(data)
    return Path(next(iter(data.store.sources), path)) if is_store(path) else path


def _path_of(data: MotionData) -> Path:
    if data.config.path is None:
        raise UserError("rvqvae.data.path: not given")
    return expanded(data.config.path)


def _scores(run: Path) -> list[Block]:
    """The run's scores by level against those of the untrained model, or where either cannot be read a way to them."""
    try:
        trained, untrained = _read(run)
        lines = score_blocks(trained, untrained)
    except (OSError, ValueError, LookupError, TypeError) as error:
        _warn_of_scores(run, error)
        return []
    if trained["split"] == "train":
        lines.append("no clip is held out: these are scores of motion that was trained on")
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
    warn(f"{run / 'eval'}: the scores cannot be read: {error}; {again} takes them again")


def _read(run: Path) -> tuple[_Scores, _Scores | None]:
    """The run's scores, and those before training, where there are any."""
    before = run / "eval" / "untrained.json"
    return read_json(run / "eval" / "scores.json"), read_json(before) if before.exists() else None


def _pictures(run: Path) -> list[Path]:
    """The newest picture of a run's reconstructions, where there is one."""
    pictures = [picture for picture in (run / "eval").glob("reconstruction*.png") if picture.is_file()]
    return [max(pictures, key=lambda picture: picture.stat().st_mtime)] if pictures else []


def resuming(folder: Path | None, parts: Sequence[str] = ()) -> list[str]:
    """The command that goes on with a run after this start of the launcher: the same with `--resume`.

    It names the run by its folder, but where that does not hold one yet, or None is given as several hosts may each
    see another disk: there the flags name it.
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
    """The variables that chose where the ranks run, to stand before a command; empty where flags did."""
    names = ["DS_ACCELERATOR", "LOCAL_SIZE"] if run.ranks.cpu else []
    names += [VARIABLE] if run.ranks.visible is not None else []
    values = run.request.flags.environment
    return "".join(f"{name}={joined([values[name]])} " for name in names if name in values)


def _launcher() -> tuple[list[str], list[str]]:
    """How this process was started, as a shell takes it, and the flags that it was given."""
    script, words = Path(sys.argv[0]), sys.argv[1:]
    if script.name == f"{_LAUNCHER}.py":
        shell = script.with_suffix(".sh")
        # The shell script hands on the whole path.
        by_shell = script.is_absolute() and shell.is_file()
        return ["bash", _near(shell)] if by_shell else [_python(), str(script)], words
    if script.name == "__main__.py" and script.parent.name == "launch":
        return [_python(), "-m", "ds_rvqvae.launch"], words
    return [*program(), "train"], words[1:]  # after the command's own name


def program(name: str = "ds-rvqvae") -> list[str]:
    """How a program of this environment is called from here."""
    own, found = Path(sys.executable).with_name(name), shutil.which(name)
    if found and (not own.exists() or own.samefile(found)):
        return [name]
    if own.exists():
        return [_near(own)]
    return [_python(), "-m", "ds_rvqvae.cli" if name == "ds-rvqvae" else f"{name}.main"]


def _python() -> str:
    found = shutil.which("python")
    # Not what links lead to: an environment's interpreter is a link to one outside.
    return "python" if found and Path(found) == Path(sys.executable) else _near(Path(sys.executable))


def _near(file: Path) -> str:
    """A path as seen from the working folder, where that lies above it; else the whole of it."""
    path = Path(os.path.relpath(file))
    return str(file.absolute() if path.parts[:1] == ("..",) else path)


def joined(words: Sequence[str]) -> str:
    """Words of a command as a shell takes them, characters that no terminal should be sent as their codes."""
    return " ".join(shlex.quote(word) if word.isprintable() else _coded(word) for word in words)


def _coded(word: str) -> str:
    shown = []
    for character in word:
        if character.isprintable() and character not in "'\\":
            shown.append(character)
        else:
            shown += [f"\\x{byte:02x}" for byte in os.fsencode(character)]
    return "$'" + "".join(shown) + "'"
