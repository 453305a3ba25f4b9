"""`ds-rvqvae encode` and `ds-rvqvae decode`: convert motion files to codes files and back."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ds_rvqvae.cli.common import (
    TOKENIZER_HELP,
    add_device_flag,
    add_json_flag,
    chosen_device,
    count,
    find_tokenizer,
    positive_number,
    print_result,
)
from ds_rvqvae.errors import ExitStatus

if TYPE_CHECKING:
    from ds_rvqvae.data.files import Rate
    from ds_rvqvae.tokenizer.convert import Report


def add_encode(parser: argparse.ArgumentParser) -> None:
    """Fills the command's parser."""
    _add_flags(parser, "motion files of any format, or folders of them", "codes")
    parser.set_defaults(verb=_encode)


def add_decode(parser: argparse.ArgumentParser) -> None:
    """Fills the command's parser."""
    _add_flags(parser, "codes files, or folders of them", "motion")
    parser.add_argument(
        "--source",
        type=Path,
        metavar="FOLDER|FILE",
        help="motion in the encoded format, for the columns that the tokenizer does not cover (default: the encoded "
        "file, if it still exists)",
    )
    parser.add_argument(
        "--fps",
        type=_rate,
        metavar="source|N",
        help="frames per second of the files: that of the encoded motion, or N (default: the tokenizer's)",
    )
    parser.add_argument("--matrices", action="store_true", help="write .npy matrices, for any encoded format")
    parser.add_argument("--any_tokenizer", action="store_true", help="also decode codes of another tokenizer")
    parser.set_defaults(verb=_decode)


def _add_flags(verb: argparse.ArgumentParser, files: str, results: str) -> None:
    verb.add_argument("tokenizer", metavar="TOKENIZER", help=TOKENIZER_HELP)
    verb.add_argument("files", nargs="+", type=Path, metavar="FILE|FOLDER", help=files)
    verb.add_argument("--out", type=Path, required=True, metavar="DIR", help=f"folder of the {results}")
    verb.add_argument("--levels", type=int, metavar="N", help="only the first N levels (default: all)")
    verb.add_argument("--workers", type=count, default=2, metavar="N", help="files at the same time (default: 2)")
    verb.add_argument("--overwrite", action="store_true", help="also files that are already done")
    add_device_flag(verb)
    add_json_flag(verb)


def _rate(text: str) -> "Rate":
    if text == "source":
        return "source"
    try:
        return positive_number(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}; give a number of frames per second, or source") from None


def _encode(args: argparse.Namespace) -> int:
    device = chosen_device(args)

    from ds_rvqvae.runs.tokenizers import open_tokenizer
    from ds_rvqvae.tokenizer.encode import encode_files

    tokenizer = open_tokenizer(find_tokenizer(args.tokenizer), device)
    settings = {"levels": args.levels, "overwrite": args.overwrite, "workers": args.workers}
    return _finish(args, encode_files(tokenizer, args.files, args.out, **settings))


def _decode(args: argparse.Namespace) -> int:
    device = chosen_device(args)

    from ds_rvqvae.runs.tokenizers import open_tokenizer
    from ds_rvqvae.tokenizer.decode import decode_files

    tokenizer = open_tokenizer(find_tokenizer(args.tokenizer), device)
    settings = {"levels": args.levels, "overwrite": args.overwrite, "workers": args.workers}
    settings |= {"source": args.source, "any_tokenizer": args.any_tokenizer, "matrices": args.matrices}
    settings |= {"fps": args.fps}
    return _finish(args, decode_files(tokenizer, args.files, args.out, **settings))


def _finish(args: argparse.Namespace, report: "Report") -> int:
    if report.failed:
        print(report.failures(), file=sys.stderr)
    print_result(args, report.to_dict(), report.text(), in_files=True)
    if report.stopped is not None:
        raise report.stopped
    return ExitStatus.PARTLY_DONE if report.failed else ExitStatus.DONE
