"""`ds-rvqvae import`: convert checkpoints of other systems to tokenizers."""

import argparse
from pathlib import Path

from ds_rvqvae.cli.common import add_json_flag, positive_number, print_result
from ds_rvqvae.config.names import BODY_PARTS
from ds_rvqvae.errors import ExitStatus, UserError
from ds_rvqvae.process.tables import Column, Table


def add_import(parser: argparse.ArgumentParser) -> None:
    """Fills the command's parser."""
    parser.description = (
        "Converts a checkpoint of MoMask, GestureLSM or T2M-GPT to a tokenizer. Settings that do not follow from the "
        "shapes of its weights are read from the system's option file beside it (MoMask: opt.txt; T2M-GPT: run.log; "
        "GestureLSM: run.log or yaml), or given by flags, which override the option file. Nothing is assumed."
    )
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="the saved checkpoint (.tar, .pth), or the folder of the model"
    )
    parser.add_argument(
        "--format", choices=["momask", "gesturelsm", "t2mgpt"], required=True, help="the system that saved it"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; it must not exist yet")
    parser.add_argument(
        "--options", type=Path, metavar="FILE", help="the option file, in place of those beside the checkpoint"
    )
    for flag in ("mean", "std"):
        parser.add_argument(
            f"--{flag}",
            type=Path,
            nargs="+",
            metavar="FILE",
            help=f"the {flag} of its normalisation, .npy, used unchanged; several are concatenated; with a body part, "
            "of all of SMPL-X's columns",
        )
    parser.add_argument("--no_normalisation", action="store_true", help="its input is not normalised")
    parser.add_argument("--fps", type=positive_number, metavar="N", help="frames per second of its motion")
    parser.add_argument("--body_part", choices=BODY_PARTS, help="its columns are those of this part of SMPL-X")
    parser.add_argument("--activation", choices=["relu", "silu", "gelu"], help="activation in its residual blocks")
    parser.add_argument(
        "--norm", choices=["none", "LN", "GN"], help="normalisation in its residual blocks: none, layer or group"
    )
    parser.add_argument("--dilation_growth_rate", type=int, metavar="N", help="dilation growth in its residual blocks")
    add_json_flag(parser)
    parser.set_defaults(verb=_import)


def _import(args: argparse.Namespace) -> int:
    from ds_rvqvae.tokenizer.foreign.formats import FORMATS
    from ds_rvqvae.tokenizer.foreign.reading import import_foreign

    if args.out.exists():
        raise UserError(f"--out {args.out}: exists; name a new folder")
    tokenizer = import_foreign(
        args.file,
        args.format,
        options=args.options,
        mean=args.mean,
        std=args.std,
        no_normalisation=args.no_normalisation,
        fps=args.fps,
        body_part=args.body_part,
        activation=args.activation,
        norm=args.norm,
        dilation_growth_rate=args.dilation_growth_rate,
    )
    try:
        tokenizer.save_pretrained(args.out)
    except OSError as error:
        raise UserError(
            f"--out {args.out}: cannot be written: {error.strerror or error}; name another folder"
        ) from None
    model = tokenizer.model.config
    settings = tokenizer.details["imported_from"]["settings"]
    result = {
        "tokenizer": str(args.out),
        "format": args.format,
        "file": str(args.file),
        "in_features": tokenizer.model.in_features,
        "body_part": tokenizer.details["body_part"],
        "fps": tokenizer.fps,
        "code_rate": tokenizer.code_rate,
        "normalised": "mean" in settings,
        "fingerprint": tokenizer.fingerprint,
        "model": model.model_dump(mode="json"),
        "settings": settings,
    }
    lines = [
        f"{args.out}: {FORMATS[args.format].title} tokenizer, {tokenizer.model.in_features} columns at "
        f"{tokenizer.fps:g} fps, {model.num_quantizers} x {model.nb_code:,} codes of {model.code_dim}"
        f"{', one codebook for all levels' if model.shared_codebook else ''}",
        f"nets: width {model.width}, depth {model.depth}, down_t {model.down_t}, stride_t {model.stride_t}; "
        f"{tokenizer.code_rate:g} codes per second and level",
    ]
    if not result["normalised"]:
        lines.append("no mean and std: it takes motion that is already normalised")
    lines.append("sources of the settings:")
    columns = [Column(left=True), Column(left=True, shrinks=True), Column(wraps=True)]
    rows = [[key, f"{one['value']}", f"from {one['from']}"] for key, one in settings.items()]
    print_result(args, result, [*lines, Table(columns, rows, indent=2, headed=False)], in_files=True)
    return ExitStatus.DONE
