"""`ds-rvqvae prepare`: pack motion files into a store."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ds_rvqvae.cli.common import add_json_flag, count, positive_number, print_result
from ds_rvqvae.config.names import FORMATS
from ds_rvqvae.errors import ExitStatus, UserError
from ds_rvqvae.process.terminal import Block

if TYPE_CHECKING:
    from ds_rvqvae.data.store.packing import Packed
    from ds_rvqvae.data.store.prepare import Prepared

_FLAGS = (
    *("format", "fps", "split", "source_fps", "metres_per_unit", "up_axis", "split_version", "store_dtype"),
    *("skeleton", "robot", "csv_units", "joints", "joint_names", "skeleton_of"),
)
"""Flags that set the key of `rvqvae.data` with the same name."""


def add_prepare(parser: argparse.ArgumentParser) -> None:
    """Fills the command's parser."""
    parser.epilog = (
        "The rules for motion to leave out are keys of rvqvae.data.rules: --set rvqvae.data.rules.max_root_step=1. If "
        "the command is killed, the same command continues where it stopped."
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        help="folder of motion files (BEAT2, SMPL, Motion-X, BVH, joints, robots, HumanML3D, .npy, .npz), one such "
        "file, or a packed npz",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="STORE", help="folder of the store")
    parser.add_argument(
        "--profile", default="baseline", help="profile with the rvqvae.data settings (default: baseline)"
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        metavar="NAME",
        help=f"format of the files: {', '.join(FORMATS)} (default: recognised from the folder)",
    )
    parser.add_argument("--fps", type=positive_number, metavar="N", help="frames per second (default: the profile's)")
    parser.add_argument(
        "--split", choices=["auto", "time", "hash"], help="how clips are held out (default: the profile's)"
    )
    parser.add_argument("--speakers", metavar="N,N,…", help="only BEAT2 clips of these speakers")
    parser.add_argument(
        "--split_version", metavar="NAME", help="the folder of split lists to use, if the data have several"
    )
    _add_reading_flags(parser)
    parser.add_argument(
        "--store_dtype", "--dtype", choices=["float32", "float16", "bfloat16"], help="type of numbers on disk"
    )
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="any other setting")
    parser.add_argument("--append", action="store_true", help="add clips whose names STORE does not have yet")
    parser.add_argument("--strict", action="store_true", help="leave nothing out: the first faulty clip is an error")
    parser.add_argument("--workers", type=count, metavar="N", help="processes (default: one per core)")
    add_json_flag(parser)
    parser.set_defaults(verb=_prepare)


def _add_reading_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say what the numbers in the files mean."""
    parser.add_argument(
        "--source_fps",
        type=positive_number,
        metavar="N",
        help="frames per second of the files, overrides what they say (default: what they say, or that of the format)",
    )
    parser.add_argument(
        "--metres_per_unit",
        type=positive_number,
        metavar="X",
        help="unit of BVH files (default: what they say, else from the skeleton)",
    )
    parser.add_argument(
        "--up_axis",
        choices=["y", "z"],
        help="the axis that points up in the files; z is rotated to y (default: y, an error if the figures lie down)",
    )
    parser.add_argument(
        "--skeleton",
        metavar="FILE",
        help="skeleton of joint positions (names and parents, JSON or BVH), or of SMPL motion (with bone lengths)",
    )
    parser.add_argument("--robot", metavar="FILE", help="MJCF or URDF of the robot: joint names, limits, kinematics")
    parser.add_argument(
        "--csv_units",
        choices=["metres_radians", "centimetres_degrees"],
        help="units of robots' csv files (default: recognised, an error if both are possible)",
    )
    parser.add_argument(
        "--joints",
        metavar="common|NAME,NAME,…",
        help="joints of BVH files to use; common: those that all skeletons in the folder have (default: all)",
    )
    parser.add_argument("--joint_names", metavar="FILE", help="JSON object of joint names, theirs to ours")
    parser.add_argument("--skeleton_of", metavar="FILE", help="BVH file; files with another skeleton are passed over")


def _prepare(args: argparse.Namespace) -> int:
    from ds_rvqvae.config.flags import json_value
    from ds_rvqvae.config.profile import load_profile
    from ds_rvqvae.data.store.prepare import prepare
    from ds_rvqvae.data.store.report import report_blocks
    from ds_rvqvae.data.store.store import is_store

    overrides = [f"rvqvae.data.path={json.dumps(args.data)}"]
    overrides += [
        f"rvqvae.data.{key}={json_value(key, str(value))}"
        for key in _FLAGS
        if (value := getattr(args, key)) is not None
    ]
    if args.speakers:
        overrides.append(f"rvqvae.data.speakers=[{args.speakers}]")
    config = load_profile(args.profile, [*overrides, *args.set]).rvqvae.data
    if args.append and not is_store(args.out):
        raise UserError(f"--append {args.out}: no store to add to; leave --append out to make one")
    prepared = prepare(
        config,
        args.out,
        append=args.append,
        strict=args.strict,
        workers=args.workers,
        progress=sys.stderr.isatty(),
    )
    report = prepared.store.report()
    result = {"store": str(args.out), **report, **_cost(prepared.packed, prepared.store.fps)}
    result["notes"] = [*report["notes"], *prepared.notes]
    result["left_out"] = [{"file": left.file, "reason": left.reason} for left in prepared.store.left_out]
    first, *more = _summary(prepared)
    summary: list[Block] = [[(str(args.out), "path"), f": {first}"], *more]
    print_result(args, result, [*report_blocks(report), "", *summary], in_files=True)
    return ExitStatus.PARTLY_DONE if prepared.store.left_out else ExitStatus.DONE


def _summary(prepared: "Prepared") -> list[str]:
    """Returns a summary of packing, in one or two lines."""
    store, packed = prepared.store, prepared.packed
    if packed is None:
        return ["the store already exists, from the same files and settings"]
    lines = list(prepared.notes)
    work = packed.work
    if packed.kept_clips:
        lines.append(f"files packed by an earlier run: {packed.kept_clips:,}")
    if work.kept:
        lines.append(f"unchanged files, taken from the earlier store: {work.kept:,}")
    cost = _cost(packed, store.fps)["packing"]
    if work.frames:
        lines.append(
            f"packed {work.frames:,} frames from {work.clips:,} files in {cost['seconds']:.1f} s by "
            f"{packed.workers} process{'es' if packed.workers > 1 else ''}: {cost['frames_per_s']:,.0f} frames per "
            f"second, {cost['times_real_time']:,.0f} x real time; processors were busy "
            f"{100 * cost['processor_share']:.0f} % of the time; the rest of it they waited for the disk or for other "
            "programs"
        )
    elif not work.kept:
        lines.append("nothing is new")
    return lines or [""]


def _cost(packed: "Packed | None", fps: float) -> dict[str, Any]:
    """Returns the cost of packing. It is not saved in the store, whose bytes are the same every time."""
    if packed is None:
        return {}
    work = packed.work
    return {
        "packing": {
            "seconds": packed.wall_s,
            "workers": packed.workers,
            "files_packed": work.clips,
            "files_unchanged": work.kept,
            "frames": work.frames,
            "frames_per_s": work.frames / packed.wall_s,
            "times_real_time": work.frames / fps / packed.wall_s,
            "source_bytes_per_s": work.source_bytes / packed.wall_s,
            "processor_share": min(work.cpu_s / work.wall_s, 1.0) if work.wall_s else 0.0,
            "files_of_an_earlier_run": packed.kept_clips,
        }
    }
