"""`ds-rvqvae data`: draw motion, to check it before training."""

import argparse
from pathlib import Path

from ds_rvqvae.cli.common import add_json_flag, count, print_result
from ds_rvqvae.errors import ExitStatus, UserError
from ds_rvqvae.process.terminal import warned


def add_data(parser: argparse.ArgumentParser) -> None:
    """Fills the command's parser."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    plot = actions.add_parser(
        "plot",
        help="a page about a store: hours by speaker, clip lengths, columns, the root's path and five figures, which "
        "shows a wrong unit or a swapped axis",
    )
    plot.add_argument("store", type=Path, metavar="STORE", help="folder of a prepared store")
    plot.add_argument(
        "--out", type=Path, metavar="FILE.png", help="the picture (default: STORE's name with .png, here)"
    )
    plot.add_argument(
        "--body_part", metavar="PART", help="show the columns of this part, and colour only its joints (default: all)"
    )
    plot.add_argument(
        "--window_size",
        type=count,
        metavar="N",
        help="frames per window, marked in the plot of clip lengths (default: 128)",
    )
    add_json_flag(plot)
    plot.set_defaults(verb=_plot)


def _plot(args: argparse.Namespace) -> int:
    from ds_rvqvae.config.data import DataConfig
    from ds_rvqvae.data.store.store import open_store

    out = args.out or Path(f"{args.store.resolve().name}.png")
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: pictures are PNG; give a name that ends in .png")
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder")
    store = open_store(args.store)

    from ds_rvqvae.data.look import look_at, look_text
    from ds_rvqvae.files import whole_file
    from ds_rvqvae.viz.canvas import write_png
    from ds_rvqvae.viz.store_page import store_page

    look = look_at(store, args.window_size or DataConfig().window_size, args.body_part)
    page = store_page(look)
    try:
        with whole_file(out) as content:
            write_png(page, content, dpi=100)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror or error}") from None
    print_result(
        args,
        {**look.facts, "picture": str(out)},
        [*map(warned, look_text(look).split("\n")), ["picture: ", (str(out), "path")]],
        in_files=True,
    )
    return ExitStatus.DONE
