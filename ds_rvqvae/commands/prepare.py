"""`ds-rvqvae prepare`: motion files into a packed store."""

import argparse
import json
import sys
from pathlib import Path

from ds_rvqvae.commands.results import Verbs, add_json_flag, print_result
from ds_rvqvae.errors import ExitStatus


def add_to(verbs: Verbs) -> None:
    """Adds the verb."""
    prepare = verbs.add_parser("prepare", help="pack motion files into a store that training reads")
    prepare.add_argument("data", metavar="DATA", help="BEAT2 folder, folder of .npy matrices, or packed npz")
    prepare.add_argument("--out", type=Path, required=True, metavar="STORE", help="folder of the store")
    prepare.add_argument("--fps", type=float, default=30.0, help="frames a second (default: 30)")
    prepare.add_argument("--split", choices=["auto", "time", "hash"], default="auto", help="see rvqvae.data.split")
    prepare.add_argument("--speakers", metavar="N,N,…", help="only BEAT2 clips of these speakers")
    add_json_flag(prepare)
    prepare.set_defaults(verb=_prepare)


def _prepare(args: argparse.Namespace) -> int:
    from ds_rvqvae.data.prepare import prepare_store
    from ds_rvqvae.profile import load_profile

    overrides = [f"rvqvae.data.path={json.dumps(args.data)}", f"rvqvae.data.fps={args.fps}"]
    overrides.append(f"rvqvae.data.split={args.split}")
    if args.speakers:
        overrides.append(f"rvqvae.data.speakers=[{args.speakers}]")
    store = prepare_store(load_profile("baseline", overrides).rvqvae.data, args.out, progress=sys.stderr.isatty())
    frames = len(store.frames)
    result = {
        "store": str(args.out),
        "clips": len(store.clip_names),
        "frames": frames,
        "hours": frames / store.fps / 3600,
        "columns": store.frames.shape[1],
        "fps": store.fps,
        "left_out": [{"file": left.file, "reason": left.reason} for left in store.left_out],
    }
    lines = [
        f"{args.out}: {result['clips']} clips, {frames:,} frames, {result['hours']:.2f} hours at {store.fps:g} fps"
    ]
    lines += [f"left out: {left['file']}: {left['reason']}" for left in result["left_out"]]
    print_result(args, result, "\n".join(lines))
    return ExitStatus.PARTLY_DONE if result["left_out"] else ExitStatus.DONE
