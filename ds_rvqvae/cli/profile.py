"""`ds-rvqvae profile`: show, validate and compare profiles."""

import argparse
import json
import sys
from typing import Any

from ds_rvqvae.cli.common import add_column_flags, add_json_flag, columns_of, print_result
from ds_rvqvae.config.names import FOREIGN_FORMATS
from ds_rvqvae.errors import ExitStatus, UserError
from ds_rvqvae.process.command import print_out
from ds_rvqvae.process.terminal import Block


def add_profile(parser: argparse.ArgumentParser) -> None:
    """Fills the command's parser."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    show = actions.add_parser("show", help="every setting, and the size of the model")
    show.add_argument("profile", metavar="NAME|FILE", help="a shipped profile or a JSON file")
    add_column_flags(show)
    show.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override a key; repeatable")
    add_json_flag(show)
    show.set_defaults(verb=_show)
    validate = actions.add_parser("validate", help="check profiles")
    validate.add_argument("profiles", nargs="+", metavar="NAME|FILE", help="shipped profiles or JSON files")
    validate.add_argument(
        "--for",
        dest="system",
        choices=FOREIGN_FORMATS,
        help="also check the export to that system",
    )
    add_json_flag(validate)
    validate.set_defaults(verb=_validate)
    diff = actions.add_parser("diff", help="keys in which two profiles differ")
    diff.add_argument("profiles", nargs=2, metavar="NAME|FILE", help="shipped profiles or JSON files")
    add_json_flag(diff)
    diff.set_defaults(verb=_diff)
    schema = actions.add_parser("schema", help="the JSON schema of profiles, for editors")
    schema.set_defaults(verb=_schema)


def _show(args: argparse.Namespace) -> int:
    from ds_rvqvae.config.profile import load_profile, profile_file
    from ds_rvqvae.gpu.sizes import parameter_count
    from ds_rvqvae.runs.start import flat_keys

    profile = load_profile(args.profile, args.set)
    part = profile.rvqvae.data.body_part
    columns = count = None
    try:
        columns = columns_of(args, profile)
        count = parameter_count(columns, profile.rvqvae.model)
        size = f"{count:,} ({columns} columns, body part {part})"
    except UserError as error:
        if args.in_features is not None or args.data_path is not None:
            raise
        # A profile can be shown without its motion.
        size = f"not known: {error}"
    result = {"profile": profile.to_dict(), "in_features": columns, "parameter_count": count}
    lines: list[Block] = [(str(profile_file(args.profile)), "path")]
    lines += [f"  {key} = {json.dumps(value)}" for key, value in flat_keys(profile.to_dict()).items()]
    lines.append(f"trainable parameters: {size}")
    lines += [f"note: {note}" for note in profile.notes()]
    lines += [[("warning:", "warning"), f" {warning}"] for warning in profile.warnings()]
    print_result(args, result, lines)
    return ExitStatus.DONE


def _validate(args: argparse.Namespace) -> int:
    from ds_rvqvae.config.profile import load_profile
    from ds_rvqvae.tokenizer.foreign.formats import check_for

    result: dict[str, dict[str, Any]] = {}
    lines: list[Block] = []
    for name in args.profiles:
        try:
            profile = load_profile(name)
            for idle in profile.without_effect():
                raise UserError(f"{name}: {idle}")
            if args.system is not None:
                profile = profile.with_values({"rvqvae.training.export_for": args.system})
            try:
                check_for(profile)
            except UserError as error:
                raise UserError(f"{name}: {error}") from None
            warnings = profile.warnings()
            result[name] = {"valid": True, "warnings": warnings}
            lines.append([f"{name}: ", ("valid", "good")])
            lines += [[f"{name}: ", ("warning:", "warning"), f" {warning}"] for warning in warnings]
        except UserError as error:
            result[name] = {"valid": False, "error": str(error)}
            print(f"error: {error}", file=sys.stderr)
    if lines or args.json:
        print_result(args, result, lines)
    return ExitStatus.DONE if all(one["valid"] for one in result.values()) else ExitStatus.BAD_INPUT


def _diff(args: argparse.Namespace) -> int:
    from ds_rvqvae.config.profile import load_profile
    from ds_rvqvae.runs.start import flat_keys

    first, second = (flat_keys(load_profile(name).to_dict()) for name in args.profiles)
    keys = [key for key in {**first, **second} if first.get(key) != second.get(key)]
    result = {key: [first.get(key), second.get(key)] for key in keys}
    lines: list[Block] = [
        [f"{key}: ", (json.dumps(old), "bad"), " -> ", (json.dumps(new), "good")] for key, (old, new) in result.items()
    ]
    print_result(args, result, lines or ["no difference"])
    return ExitStatus.DONE


def _schema(args: argparse.Namespace) -> int:
    from ds_rvqvae.config.profile import json_schema

    print_out(json.dumps(json_schema(), indent=2) + "\n")
    return ExitStatus.DONE
