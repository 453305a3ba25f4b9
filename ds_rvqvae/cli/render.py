"""`ds-rvqvae render`: make a video of original, reconstruction and difference."""

import argparse
import difflib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ds_rvqvae.cli.common import (
    TOKENIZER_HELP,
    add_device_flag,
    add_json_flag,
    chosen_device,
    find_tokenizer,
    number,
    positive_number,
    print_result,
)
from ds_rvqvae.errors import ExitStatus, UserError, printable
from ds_rvqvae.process.terminal import Line

if TYPE_CHECKING:
    from ds_rvqvae.motion.clip import Clip
    from ds_rvqvae.tokenizer.tokenizer import MotionTokenizer

_GIF_FPS, _MOST_GIF_FPS = 15.0, 50.0
_SIZE, _SIZE_WITH_CODES = (960, 480), (960, 624)


def add_render(parser: argparse.ArgumentParser) -> None:
    """Fills the command's parser."""
    parser.add_argument("tokenizer", metavar="TOKENIZER|RUN", help=TOKENIZER_HELP)
    parser.add_argument(
        "motion", type=Path, metavar="MOTION", help="BEAT2 npz, BVH, packed npz, .npy matrix, store or folder"
    )
    parser.add_argument("--clip", metavar="NAME", help="which clip, if MOTION has several")
    parser.add_argument("--out", type=Path, metavar="FILE", help=".mp4 or .gif (default: MOTION's name with .mp4)")
    parser.add_argument("--levels", type=int, metavar="N", help="decode only the first N levels (default: all)")
    parser.add_argument("--start", type=_not_negative, default=0.0, metavar="S", help="first second (default: 0)")
    parser.add_argument(
        "--seconds", type=positive_number, default=10.0, metavar="S", help="seconds of motion (default: 10)"
    )
    parser.add_argument(
        "--fps",
        type=_at_least_one,
        metavar="F",
        help=f"frames per second (default: the motion's; a gif at most {_GIF_FPS:g})",
    )
    parser.add_argument(
        "--skeleton",
        type=Path,
        metavar="FILE",
        help="JSON or npz with joint_names, parents and offsets in metres (default: the motion's own, else a built-in "
        "figure)",
    )
    parser.add_argument("--codes", action="store_true", help="draw the codes too, which scroll under the figures")
    parser.add_argument("--size", type=_size, metavar="WxH", help="pixels (default: 960x480, or 960x624 with --codes)")
    add_device_flag(parser)
    add_json_flag(parser)
    parser.set_defaults(verb=_render)


def _render(args: argparse.Namespace) -> int:
    from ds_rvqvae.process.bars import Bar
    from ds_rvqvae.runs.folder import check_out_folder
    from ds_rvqvae.viz.video import check_video_file, write_video

    out = args.out or Path(f"{args.motion.stem}.mp4")
    check_video_file(out)
    check_out_folder(out.parent)
    device = chosen_device(args)

    from ds_rvqvae.data.formats.bvh.skeletons import load_skeleton
    from ds_rvqvae.motion.skeleton import check_skeleton, figure_of
    from ds_rvqvae.runs.tokenizers import open_tokenizer
    from ds_rvqvae.tokenizer.body import BodyTokenizer
    from ds_rvqvae.viz.comparison import compare
    from ds_rvqvae.viz.render import Animation

    given = load_skeleton(args.skeleton) if args.skeleton else None
    tokenizer = open_tokenizer(find_tokenizer(args.tokenizer), device)
    tokenizers = [*tokenizer.parts.values()] if isinstance(tokenizer, BodyTokenizer) else [tokenizer]
    clip, own = _read_clip(args.motion, args.clip, tokenizers[0])
    layout = tokenizers[0].layout if len(tokenizers) == 1 else clip.layout
    check_skeleton(given, layout)
    skeleton = given or figure_of(own, args.motion.stem, layout)
    comparison = compare(tokenizers, clip, skeleton, args.levels, args.start, args.seconds)
    fps = _frame_rate(args.fps, clip.fps, out.suffix.lower() == ".gif")
    size = args.size or (_SIZE_WITH_CODES if args.codes else _SIZE)
    animation = Animation(comparison, fps, size, args.codes)
    progress = Bar(animation, desc=printable(out.name), unit="frame", disable=not sys.stderr.isatty(), leave=False)
    write_video(progress, out, fps, size)
    result = {
        "video": str(out),
        "frames": len(animation),
        "fps": fps,
        "size": list(size),
        "clip": clip.name,
        "levels": comparison.levels,
        "angle_error_deg": comparison.mean_angle,
        "joint_error_mm": float(comparison.mean_distance_mm.mean()),
    }
    what = f"{len(animation)} frames of {size[0]}x{size[1]} at {fps:g} fps"
    angle = "" if comparison.mean_angle is None else f"{comparison.mean_angle:.2f} degrees, "
    errors = f"{comparison.levels_text}: {angle}{comparison.mean_distance_mm.mean():.1f} mm"
    line: Line = [(str(out), "path"), f": {what}; ", (clip.name, "name"), f", {errors}"]
    print_result(args, result, [line], in_files=True)
    return ExitStatus.DONE


def _frame_rate(wanted: float | None, motion_fps: float, is_gif: bool) -> float:
    if wanted is None:
        return min(motion_fps, _GIF_FPS) if is_gif else motion_fps
    if wanted > motion_fps:
        raise UserError(f"--fps {wanted:g}: the motion has {motion_fps:g} fps; give that or less")
    if is_gif and wanted > _MOST_GIF_FPS:
        raise UserError(f"--fps {wanted:g}: a gif plays at {_MOST_GIF_FPS:g} fps at most; give that or less")
    return wanted


def _read_clip(path: Path, name: str | None, tokenizer: "MotionTokenizer") -> "tuple[Clip, dict[str, Any] | None]":
    """Reads one clip of a file, folder or store, at the tokenizer's frame rate, with all its columns, and its
    skeleton."""
    from ds_rvqvae.data.files import whole_clip
    from ds_rvqvae.data.formats.readers import open_reader
    from ds_rvqvae.data.formats.writing import open_motion_file
    from ds_rvqvae.data.store.store import is_store, open_store
    from ds_rvqvae.motion.clip import Clip, ClipError, check_finite
    from ds_rvqvae.motion.rotations import same_rate
    from ds_rvqvae.tokenizer.folder import reading_config

    fps = tokenizer.fps
    try:
        if is_store(path):
            store = open_store(path)
            if store.fps != fps:
                raise UserError(f"{path}: the store has {store.fps:g} fps, but the tokenizer takes {fps:g}")
            name = _choose(path, store.clip_names, name)
            clip, skeleton = Clip(name, store.clip(name), fps, store.layout), store.skeleton
        else:
            config = reading_config(tokenizer.details, fps, str(path))
            reader = open_reader(path, config) if path.is_dir() else open_motion_file(path, config, tokenizer.layout)
            name = _choose(path, reader.clip_names(), name)
            if not same_rate(reader.fps, fps):
                raise UserError(f"{path}: {reader.fps:g} fps, but the tokenizer takes {fps:g}")
            clip, take, _ = whole_clip(reader, name)
            skeleton = take.skeleton
        check_finite(clip.motion)
    except ClipError as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None
    if not len(clip.motion):
        raise UserError(f"{path}: {clip.name} has no frames")
    return clip, skeleton


def _choose(path: Path, names: list[str], name: str | None) -> str:
    """Returns the clip of that name, or the only one."""
    if name is None and len(names) == 1:
        return names[0]
    if name is None:
        some = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        raise UserError(f"{path}: has several clips; choose one with --clip NAME ({len(names)}: {some})")
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.3) or names[:3]
        raise UserError(f"{path}: has no clip {name} among its {len(names)}; it has {', '.join(near)}")
    return name


def _not_negative(text: str) -> float:
    value = number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def _at_least_one(text: str) -> float:
    value = number(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value


def _size(text: str) -> tuple[int, int]:
    parts = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    size = (int(parts[1]), int(parts[2])) if parts else (0, 0)
    if not (320 <= size[0] <= 7680 and 160 <= size[1] <= 4320):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, from 320x160 to 7680x4320")
    if size[0] % 2 or size[1] % 2:
        raise argparse.ArgumentTypeError(f"{text}: mp4 needs even numbers; use {size[0] // 2 * 2}x{size[1] // 2 * 2}")
    return size
