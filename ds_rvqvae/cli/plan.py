"""`ds-rvqvae plan`: compute the memory that a profile takes per GPU."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ds_rvqvae.cli.common import add_column_flags, add_json_flag, columns_of, print_result
from ds_rvqvae.errors import ExitStatus, UserError
from ds_rvqvae.gpu.cards import CARDS

if TYPE_CHECKING:
    from ds_rvqvae.gpu.plan import Plan


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Fills the command's parser."""
    parser.add_argument("profile", metavar="PROFILE", help="a shipped profile or a JSON file")
    parser.add_argument(
        "--gpus", type=int, default=7, metavar="N", help="number of GPUs, with one rank each (default: 7)"
    )
    parser.add_argument("--card", choices=CARDS, help="GPU model (default: 4090)")
    parser.add_argument("--gpu_memory", metavar="SIZE", help="memory per GPU, as 24GiB (default: that of the model)")
    add_column_flags(parser)
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override a key; repeatable")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="also draw the memory as a stacked bar")
    add_json_flag(parser)
    parser.set_defaults(verb=_plan)


def _plan(args: argparse.Namespace) -> int:
    from ds_rvqvae.config.profile import load_profile
    from ds_rvqvae.gpu.cards import parse_bytes
    from ds_rvqvae.gpu.plan import make_plan
    from ds_rvqvae.gpu.plan_table import plan_blocks
    from ds_rvqvae.host import bf16_arithmetic_text, has_bf16_arithmetic
    from ds_rvqvae.process.terminal import terminal_of

    profile = load_profile(args.profile, args.set)
    if args.gpus < 1:
        raise UserError(f"--gpus {args.gpus}: give 1 or more")
    profile.check_world_size(args.gpus)
    card = CARDS[args.card or "4090"]
    if args.gpu_memory is not None:
        card = card.with_memory(parse_bytes(args.gpu_memory))
    columns = columns_of(args, profile)
    plan = make_plan(profile, columns, args.gpus, card)
    text = plan_blocks(plan, terminal_of())
    if args.picture is not None:
        text.append(["picture: ", (str(_draw(plan, args.profile, args.picture)), "path")])
    text.append(bf16_arithmetic_text())
    print_result(args, {**plan.to_dict(), "cpu_bf16_native": has_bf16_arithmetic()}, text)
    return ExitStatus.DONE


def _draw(plan: "Plan", name: str, file: Path) -> Path:
    from ds_rvqvae.files import whole_file
    from ds_rvqvae.viz.canvas import write_png
    from ds_rvqvae.viz.plan import plan_figure

    if file.suffix.lower() != ".png":
        raise UserError(f"--picture {file}: pictures are PNG; give a name that ends in .png")
    figure = plan_figure(plan, f"{Path(name).stem} on {plan.gpus} GPUs")
    try:
        with whole_file(file) as content:
            write_png(figure, content, dpi=110)
    except OSError as error:
        raise UserError(f"--picture {file}: cannot be written: {error.strerror or error}") from None
    return file
