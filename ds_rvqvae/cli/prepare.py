"""`ds-rvqvae prepare`: motion files into a packed store."""

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

_FLAGS = ("format", "fps", "split", "source_fps", "metres_per_unit", "up_axis", "split_version", "store_dtype")
"""Each sets the key of `rvqvae.data` that it is called by."""


def add_prepare(parser: argparse.ArgumentParser) -> None:
    """Fills the verb's parser."""
    parser.epilog = (
        "Rules of what is left out are keys of rvqvae.data.rules: --set rvqvae.data.rules.max_root_step=1. The "
        "same command goes on where a killed one stopped."
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        help="folder of motion files (BEAT2, SMPL-X, SMPL-H, BVH, HumanML3D, "
        ".npy, .npz), one such file, or a packed npz",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="STORE", help="folder of the store")
    parser.add_argument("--profile", default="baseline", help="whose rvqvae.data settings hold (default: baseline)")
    parser.add_argument("--format", choices=FORMATS, help="how files are read (default: by what is there)")
    parser.add_argument("--fps", type=positive_number, metavar="N", help="frames per second (default: the profile's)")
    parser.add_argument("--split", choices=["auto", "time", "hash"], help="what is held out (default: the profile's)")
    parser.add_argument("--speakers", metavar="N,N,…", help="only BEAT2 clips of these speakers")
    parser.add_argument(
        "--split_version", metavar="NAME", help="the folder of split lists to take, where the data have several"
    )
    parser.add_argument(
        "--source_fps",
        type=positive_number,
        metavar="N",
        help="frames a second of the files, whatever they say (default: what they say, or what is known of the format)",
    )
    parser.add_argument(
        "--metres_per_unit",
        type=positive_number,
        metavar="X",
        help="of BVH files (default: what they say, else by the skeleton)",
    )
    parser.add_argument(
        "--up_axis",
        choices=["y", "z"],
        help="the axis that points up in the files; z is turned to y (default: y, refused where the figures lie)",
    )
    parser.add_argument("--store_dtype", "--dtype", choices=["float32", "float16", "bfloat16"], help="numbers on disk")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="any other setting")
    parser.add_argument("--append", action="store_true", help="add the clips that STORE does not have, by name, to it")
    parser.add_argument("--strict", action="store_true", help="leave nothing out: the first fault is an error")
    parser.add_argument("--workers", type=count, metavar="N", help="processes (default: one a core)")
    add_json_flag(parser)
    parser.set_defaults(verb=_prepare)


def _prepare(args: argparse.Namespace) -> int:
    from ds_rvqvae.config.profile import load_profile
    from ds_rvqvae.data.store.prepare import prepare
    from ds_rvqvae.data.store.report import report_blocks
    from ds_rvqvae.data.store.store import is_store

    overrides = [f"rvqvae.data.path={json.dumps(args.data)}"]
    overrides += [
        f"rvqvae.data.{key}={json.dumps(value)}" for key in _FLAGS if (value := getattr(args, key)) is not None
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
    """What packing took, in a line or two."""
    store, packed = prepared.store, prepared.packed
    if packed is None:
        return ["the store was there already, of the same files and settings"]
    lines = list(prepared.notes)
    work = packed.work
    if packed.kept_clips:
        lines.append(f"files packed by an earlier run: {packed.kept_clips:,}")
    if work.kept:
        lines.append(f"unchanged files, taken from the store before: {work.kept:,}")
    cost = _cost(packed, store.fps)["packing"]
    if work.frames:
        lines.append(
            f"packed {work.frames:,} frames of {work.clips:,} files in {cost['seconds']:.1f} s by "
            f"{packed.workers} process{'es' if packed.workers > 1 else ''}: {cost['frames_per_s']:,.0f} frames a "
            f"second, {cost['times_real_time']:,.0f} x real time; processors were busy "
            f"{100 * cost['processor_share']:.0f} % of the time, else they waited for the disk or for others"
        )
    elif not work.kept:
        lines.append("nothing was new")
    return lines or [""]


def _cost(packed: "Packed | None", fps: float) -> dict[str, Any]:
    """What packing took; no part of the store, whose bytes are the same every time."""
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
