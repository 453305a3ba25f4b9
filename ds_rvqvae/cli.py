"""`ds-rvqvae VERB`: one short function a verb. Imports are late, so that help and profiles answer at once."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ds_rvqvae import __version__
from ds_rvqvae.errors import ExitStatus, UserError, exit_status_of
from ds_rvqvae.flags import FlagParser


def main(argv: list[str] | None = None) -> int:
    """Runs one verb and gives its exit status (see `ExitStatus`)."""
    args = _parser().parse_args(argv)
    return exit_status_of(lambda: args.verb(args))


def _parser() -> FlagParser:
    parser = FlagParser(prog="ds-rvqvae", description="Tools round the training of motion tokenizers.")
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    prepare = verbs.add_parser("prepare", help="pack motion files into a store that training reads")
    prepare.add_argument("data", metavar="DATA", help="BEAT2 folder, folder of .npy matrices, or packed npz")
    prepare.add_argument("--out", type=Path, required=True, metavar="STORE", help="folder of the store")
    prepare.add_argument("--fps", type=float, default=30.0, help="frames a second (default: 30)")
    prepare.add_argument("--split", choices=["auto", "time", "hash"], default="auto", help="see rvqvae.data.split")
    prepare.add_argument("--speakers", metavar="N,N,…", help="only BEAT2 clips of these speakers")
    _add_json_flag(prepare)
    prepare.set_defaults(verb=_prepare)

    evaluate = verbs.add_parser("evaluate", help="score a run on a split of its data, or of other data")
    evaluate.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    evaluate.add_argument("--split", choices=["train", "val", "test", "all"], default="val")
    evaluate.add_argument("--data_path", metavar="PATH", help="motion to score (default: what the run trained on)")
    evaluate.add_argument("--pictures", type=Path, metavar="DIR", help="where pictures go (default: RUN/eval)")
    _add_json_flag(evaluate)
    evaluate.set_defaults(verb=_evaluate)

    profile = verbs.add_parser("profile", help="show, validate or compare profiles")
    actions = profile.add_subparsers(metavar="ACTION", required=True)
    show = actions.add_parser("show", help="every setting, and the size of the model")
    show.add_argument("profile", metavar="NAME|FILE")
    show.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override a key; repeatable")
    _add_json_flag(show)
    show.set_defaults(verb=_profile_show)
    validate = actions.add_parser("validate", help="check profiles")
    validate.add_argument("profiles", nargs="+", metavar="NAME|FILE")
    validate.set_defaults(verb=_profile_validate)
    diff = actions.add_parser("diff", help="keys in which two profiles differ")
    diff.add_argument("profiles", nargs=2, metavar="NAME|FILE")
    _add_json_flag(diff)
    diff.set_defaults(verb=_profile_diff)
    schema = actions.add_parser("schema", help="the JSON schema of profiles, for editors")
    schema.set_defaults(verb=_profile_schema)
    return parser


def _add_json_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="results as JSON, to FILE or standard output"
    )


def _print_result(args: argparse.Namespace, result: Any, text: str) -> None:
    """Text for people; with `--json` the same for programs, alone on standard output where no file is named."""
    if args.json == "-":
        print(json.dumps(result, indent=2))
        return
    print(text)
    if args.json:
        try:
            Path(args.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"--json {args.json}: cannot be written: {error.strerror}") from None


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
    _print_result(args, result, "\n".join(lines))
    return ExitStatus.PARTLY_DONE if result["left_out"] else ExitStatus.DONE


def _evaluate(args: argparse.Namespace) -> int:
    from ds_rvqvae.data.motion_data import MotionData
    from ds_rvqvae.profile import load_profile
    from ds_rvqvae.tokenizer.evaluation import evaluate_split, reconstruction_pictures
    from ds_rvqvae.tokenizer.pictures import save_figure
    from ds_rvqvae.tokenizer.tables import score_table
    from ds_rvqvae.train.export import tokenizer_of_run

    tokenizer = tokenizer_of_run(args.run)
    config = load_profile(args.run / "profile.json").rvqvae.data
    if args.data_path:
        config.path = args.data_path
    data = MotionData.open(config)
    data.use_normalisation(tokenizer.mean.numpy(), tokenizer.std.numpy())
    if not data.segments(args.split):
        raise UserError(f"{config.path}: no clip of 16 frames or more is in {args.split}")
    scores = evaluate_split(tokenizer.model, data, args.split, "cpu")
    folder = args.pictures or args.run / "eval"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--pictures {folder}: {error.strerror.lower()}; name another folder") from None
    pictures = []
    for name, figure in reconstruction_pictures(tokenizer.model, data, (args.split,), "cpu"):
        pictures.append(folder / f"reconstruction_{name}.png")
        save_figure(figure, pictures[-1])
    text = "\n".join([score_table(scores), *(f"picture: {picture}" for picture in pictures)])
    _print_result(args, scores, text)
    return ExitStatus.DONE


def _profile_show(args: argparse.Namespace) -> int:
    from ds_rvqvae.data.layout import select_columns, smplx_layout
    from ds_rvqvae.model.shapes import parameter_count
    from ds_rvqvae.profile import load_profile, profile_file
    from ds_rvqvae.resuming import flat_keys

    profile = load_profile(args.profile, args.set)
    part = profile.rvqvae.data.body_part
    columns = len(select_columns(smplx_layout(), part)[0])
    count = parameter_count(columns, profile.rvqvae.model)
    result = {"profile": profile.to_dict(), "in_features": columns, "parameter_count": count}
    lines = [str(profile_file(args.profile))]
    lines += [f"  {key} = {json.dumps(value)}" for key, value in flat_keys(profile.to_dict()).items()]
    lines.append(f"trainable parameters: {count:,} ({columns} columns, body part {part})")
    lines += [f"warning: {warning}" for warning in profile.warnings()]
    _print_result(args, result, "\n".join(lines))
    return ExitStatus.DONE


def _profile_validate(args: argparse.Namespace) -> int:
    from ds_rvqvae.profile import load_profile

    status = ExitStatus.DONE
    for name in args.profiles:
        try:
            warnings = load_profile(name).warnings()
            print(f"{name}: valid")
            for warning in warnings:
                print(f"{name}: warning: {warning}")
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            status = ExitStatus.BAD_INPUT
    return status


def _profile_diff(args: argparse.Namespace) -> int:
    from ds_rvqvae.profile import load_profile
    from ds_rvqvae.resuming import flat_keys

    first, second = (flat_keys(load_profile(name).to_dict()) for name in args.profiles)
    keys = [key for key in {**first, **second} if first.get(key) != second.get(key)]
    result = {key: [first.get(key), second.get(key)] for key in keys}
    lines = [f"{key}: {json.dumps(old)} -> {json.dumps(new)}" for key, (old, new) in result.items()]
    _print_result(args, result, "\n".join(lines) or "no difference")
    return ExitStatus.DONE


def _profile_schema(args: argparse.Namespace) -> int:
    from ds_rvqvae.profile import json_schema

    print(json.dumps(json_schema(), indent=2))
    return ExitStatus.DONE


if __name__ == "__main__":
    sys.exit(main())
