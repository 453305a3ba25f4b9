"""`ds-rvqvae store`: show the content of a prepared store, or verify that it is intact."""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ds_rvqvae.cli.common import add_json_flag, print_result
from ds_rvqvae.errors import ExitStatus, UserError
from ds_rvqvae.process.tables import Column, Table
from ds_rvqvae.process.terminal import Block, Line
from ds_rvqvae.text import size

if TYPE_CHECKING:
    from ds_rvqvae.data.store.store import Store
    from ds_rvqvae.data.store.verify import Damage

_MOST_LINES = 6


def add_store(parser: argparse.ArgumentParser) -> None:
    """Fills the command's parser."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    show = actions.add_parser("show", help="clips, hours, splits, columns, and files left out")
    show.add_argument("store", type=Path, metavar="STORE", help="folder of a prepared store")
    show.add_argument("--clips", action="store_true", help="also every clip with its frames, split and speaker")
    add_json_flag(show)
    show.set_defaults(verb=_show)
    verify = actions.add_parser(
        "verify", help="read every byte: checksums, shapes, NaN and infinite values; exit status 2 if it is damaged"
    )
    verify.add_argument("store", type=Path, metavar="STORE", help="folder of a prepared store")
    add_json_flag(verify)
    verify.set_defaults(verb=_verify)


def _show(args: argparse.Namespace) -> int:
    from ds_rvqvae.data.store.store import open_store

    store = open_store(args.store)
    facts = _facts(store)
    blocks: list[Block] = [_fact_table(store, facts)]
    if args.clips:
        facts["clip_list"] = _clip_list(store)
        columns = [Column("clip", left=True, shrinks=True), Column("frames"), Column("speaker", left=True)]
        rows = [
            [clip["name"], f"{clip['frames']:,}", clip["group"] or "-", ", ".join(clip["splits"])]
            for clip in facts["clip_list"]
        ]
        blocks += ["", Table([*columns, Column("split", left=True)], rows)]
    print_result(args, facts, blocks)
    return ExitStatus.DONE


def _facts(store: "Store") -> dict[str, Any]:
    from ds_rvqvae.config.data import DataConfig
    from ds_rvqvae.data.store.prepare import settings_of
    from ds_rvqvae.data.store.store import VERSION
    from ds_rvqvae.data.store.summary import channel_groups, layout_words, store_totals
    from ds_rvqvae.motion.layout import layout_to_json

    report = store.report()
    defaults = settings_of(DataConfig())
    return {
        "store": str(store.folder),
        "version": VERSION,
        "format": report.get("format"),
        "sources": store.sources,
        **store_totals(store),
        "dtype": store.dtype,
        "bytes": store.nbytes,
        "shards": len(store.shards),
        "checksums": sum(bool(shard.sha256) for shard in store.shards),
        "body_parts": _body_parts(store),
        "skeleton_joints": len(store.skeleton["joint_names"]) if store.skeleton else None,
        "layout": layout_words(store.layout),
        "channel_groups": channel_groups(store.layout),
        "channels": layout_to_json(store.layout),
        "settings": {key: value for key, value in store.settings.items() if value != defaults.get(key)},
        "left_out": len(store.left_out),
        "quarantine": report.get("rules", {}),
        "constant_columns": report.get("constant_column_count"),
        "fingerprint": store.fingerprint,
    }


def _body_parts(store: "Store") -> dict[str, int]:
    """Returns the number of columns of each built-in body part of these data."""
    from ds_rvqvae.motion.layout import body_part_channels, select_columns

    there = {part.name for part in store.layout}
    if not store.has_body_parts:
        return {}
    return {
        part: len(select_columns(store.layout, part)[0])
        for part, channels in body_part_channels(store.layout).items()
        if there >= set(channels)
    }


def _fact_table(store: "Store", facts: dict[str, Any]) -> Table:
    from ds_rvqvae.data.store.summary import hours_words, some
    from ds_rvqvae.text import counted

    checks = "with checksums" if facts["checksums"] == facts["shards"] else "some without checksums"
    rows: list[tuple[str, Line]] = [
        ("store", [(str(store.folder), "path"), f" (version {facts['version']})"]),
        ("made from", f"{some(facts['sources'])} ({facts['format']})"),
        ("holds", f"{counted(facts['clips'], 'clip')}, {facts['frames']:,} frames, {hours_words(facts['hours'])}"),
        ("frame rate", f"{facts['fps']:g} fps"),
        ("columns", f"{facts['columns']}: {facts['layout']}"),
        (
            "on disk",
            f"{size(facts['bytes'], short=False)} of {facts['dtype']} in {counted(facts['shards'], 'shard')}, {checks}",
        ),
    ]
    parts = [f"{part} {columns}" for part, columns in facts["body_parts"].items()]
    rows.append(("body parts", ", ".join(parts) or "none of SMPL-X; all columns, or rvqvae.data.body_parts"))
    if facts["skeleton_joints"]:
        rows.append(("skeleton", f"{facts['skeleton_joints']} joints, from the files"))
    for split, part in facts["splits"].items():
        rows.append(
            (split, f"{counted(part['clips'], 'clip')}, {part['frames']:,} frames, {hours_words(part['hours'])}")
        )
    settings = [f"{key} {_of_setting(key, value)}" for key, value in facts["settings"].items()]
    rows.append(("settings", ", ".join(settings) or "all defaults"))
    rules = [
        f"{rule}: {counted(counts['files'], 'file')}" + (f", {counts['frames']:,} frames" if counts["frames"] else "")
        for rule, counts in facts["quarantine"].items()
    ]
    rows.append(("left out", "; ".join(rules) or "nothing"))
    columns = [Column(left=True), Column(wraps=True)]
    return Table(columns, [[(name, "title"), text] for name, text in rows], headed=False)


def _of_setting(key: str, value: Any) -> str:
    """Returns a setting's value; of an object of joints, their number."""
    from ds_rvqvae.config.data import DESCRIBED
    from ds_rvqvae.data.formats.described import said

    return said(value) if key in DESCRIBED else _plain(value)


def _plain(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value)


def _clip_list(store: "Store") -> list[dict[str, Any]]:
    from ds_rvqvae.data.store.splits import group_of

    splits: dict[str, dict[str, None]] = {}
    for segment in store.segments:
        splits.setdefault(segment.name, {})[segment.split] = None
    return [
        {
            "name": name,
            "frames": int(stop - start),
            "splits": list(splits.get(name, ())),
            "group": group_of(name, "speaker"),
        }
        for name, start, stop in zip(store.clip_names, store.starts[:-1], store.starts[1:], strict=True)
    ]


def _verify(args: argparse.Namespace) -> int:
    from ds_rvqvae.data.store.store import open_store
    from ds_rvqvae.data.store.summary import hours_words, store_totals
    from ds_rvqvae.data.store.verify import verify_store
    from ds_rvqvae.text import counted

    store = open_store(args.store, check_files=False)
    started = time.monotonic()
    damaged = verify_store(store, progress=sys.stderr.isatty())
    while damaged and (renewed := open_store(args.store, check_files=False)).content != store.content:
        store = renewed  # the store was replaced during the check
        damaged = verify_store(store, progress=sys.stderr.isatty())
    seconds = time.monotonic() - started
    result = {
        "store": str(args.store),
        "whole": not damaged,
        **store_totals(store),
        "shards": len(store.shards),
        "bytes": store.nbytes,
        "seconds": seconds,
        "damaged": [{"file": damage.file, "problems": damage.problems, "clips": damage.clips} for damage in damaged],
    }
    text = (
        f": {counted(len(store.shards), 'shard')}, {counted(result['clips'], 'clip')}, "
        f"{result['frames']:,} frames ({hours_words(result['hours'])}), {size(store.nbytes, short=False)} read in "
        f"{seconds:.1f} s"
    )
    if not damaged:
        print_result(args, result, [[(str(args.store), "path"), ": ", ("intact", "good"), text]])
        return ExitStatus.DONE
    refusal = _refusal(args.store, damaged)
    if args.json:
        print_result(args, result, refusal[:1])
    raise UserError(refusal[0], details=refusal[1:])


def _refusal(folder: Path, damaged: "list[Damage]") -> list[str]:
    """Returns the damage in at most six lines."""
    clips = sum(len(damage.clips) for damage in damaged)
    lines = [f"{folder}: damaged in {len(damaged)} files, which contain {clips} clips; delete it and prepare it again"]
    shown = damaged if len(damaged) < _MOST_LINES else damaged[: _MOST_LINES - 2]
    lines += [f"  {damage}" for damage in shown]
    if len(shown) < len(damaged):
        lines.append(f"  and {len(damaged) - len(shown)} more files; --json names all, with their clips")
    return lines
