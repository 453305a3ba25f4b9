"""`ds-rvqvae evaluate`: scores and pictures."""

import argparse
from pathlib import Path

from ds_rvqvae.commands.results import Verbs, add_json_flag, print_result
from ds_rvqvae.errors import ExitStatus, UserError


def add_to(verbs: Verbs) -> None:
    """Adds the verb."""
    evaluate = verbs.add_parser("evaluate", help="score a run on a split of its data, or of other data")
    evaluate.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    evaluate.add_argument("--split", choices=["train", "val", "test", "all"], default="val")
    evaluate.add_argument("--data_path", metavar="PATH", help="motion to score (default: what the run trained on)")
    evaluate.add_argument("--pictures", type=Path, metavar="DIR", help="where pictures go (default: RUN/eval)")
    add_json_flag(evaluate)
    evaluate.set_defaults(verb=_evaluate)


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
    print_result(args, scores, text)
    return ExitStatus.DONE
