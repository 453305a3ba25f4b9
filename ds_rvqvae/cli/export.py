"""`ds-rvqvae export`: write a run's tokenizer, for this program or for other systems."""

import argparse
from pathlib import Path

from ds_rvqvae.cli.common import TOKENIZER_HELP, add_json_flag, find_tokenizer, print_result
from ds_rvqvae.config.names import FOREIGN_FORMATS
from ds_rvqvae.errors import ExitStatus, UserError, printable


def add_export(parser: argparse.ArgumentParser) -> None:
    """Fills the command's parser."""
    parser.add_argument("run", metavar="RUN|TOKENIZER", help=TOKENIZER_HELP)
    parser.add_argument(
        "--checkpoint",
        metavar="latest|best|TAG",
        help="which checkpoint of the run (default: the newest; best: by L1 on held-out motion)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; it must not exist yet")
    parser.add_argument(
        "--format",
        choices=["ds_rvqvae", *FOREIGN_FORMATS],
        default="ds_rvqvae",
        help="momask, gesturelsm, t2mgpt: a checkpoint that their own code loads; gesturelsm also takes a body, with "
        "all its parts (default: ds_rvqvae)",
    )
    parser.add_argument(
        "--embedding_proj",
        choices=["on", "off"],
        help="gesturelsm: on: with that layer, as the identity; off: without it, for code before 2025 and for "
        "SynTalker (default: on, but off for a tokenizer that was imported without it)",
    )
    add_json_flag(parser)
    parser.set_defaults(verb=_export)


def _export(args: argparse.Namespace) -> int:
    from ds_rvqvae.runs.references import Kind
    from ds_rvqvae.runs.tokenizers import open_single, open_tokenizer
    from ds_rvqvae.tokenizer.body import BodyTokenizer
    from ds_rvqvae.tokenizer.foreign.bodies import save_foreign_body
    from ds_rvqvae.tokenizer.foreign.formats import BODY_FORMAT
    from ds_rvqvae.tokenizer.foreign.writing import save_foreign

    if args.out.exists():
        raise UserError(f"--out {args.out}: exists; name a new folder")
    reference = find_tokenizer(args.run, args.checkpoint)
    is_ours = args.format == "ds_rvqvae"
    takes_body = is_ours or args.format == BODY_FORMAT
    if reference.kind is Kind.BODY and not takes_body:
        parts = " ".join(part.name for part in reference.parts())
        raise UserError(
            f"--format {args.format}: takes one tokenizer, but {args.run} has those of a body; name one of its parts: "
            f"{parts}"
        )
    tokenizer = open_tokenizer(reference) if takes_body else open_single(reference)
    projected = None if args.embedding_proj is None else args.embedding_proj == "on"
    try:
        if is_ours:
            tokenizer.save_pretrained(args.out)
        elif isinstance(tokenizer, BodyTokenizer):
            save_foreign_body(tokenizer, args.out, embedding_proj=projected)
        else:
            save_foreign(tokenizer, args.format, args.out, embedding_proj=projected)
    except OSError as error:
        raise UserError(
            f"--out {args.out}: cannot be written: {error.strerror or error}; name another folder"
        ) from None
    files = sorted(str(file.relative_to(args.out)) for file in args.out.rglob("*") if file.is_file())
    tokenizers = [*tokenizer.parts.values()] if isinstance(tokenizer, BodyTokenizer) else [tokenizer]
    steps = {part.details.get("training_step") for part in tokenizers}
    # The parts of a body may have been trained for different numbers of steps.
    step = steps.pop() if len(steps) == 1 else None
    result = {
        "out": str(args.out),
        "format": args.format,
        "training_step": step,
        "fingerprint": tokenizer.fingerprint,
        "files": files,
    }
    line = f"{args.out}: {', '.join(files)}" + (f" (step {step:,})" if step is not None else "")
    print_result(args, result, printable(line), in_files=True)
    return ExitStatus.DONE
