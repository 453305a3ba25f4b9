"""`ds-rvqvae evaluate`: score and draw one tokenizer, or compare several."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ds_rvqvae.cli.common import (
    TOKENIZER_HELP,
    add_device_flag,
    add_json_flag,
    chosen_device,
    count,
    find_tokenizer,
    output_file,
    print_result,
    write_output,
)
from ds_rvqvae.errors import ExitStatus, UserError, say
from ds_rvqvae.process.command import print_out
from ds_rvqvae.process.tolerance import tolerated

if TYPE_CHECKING:
    from ds_rvqvae.config.data import DataConfig
    from ds_rvqvae.data.dataset import MotionData
    from ds_rvqvae.motion.skeleton import Skeleton
    from ds_rvqvae.process.terminal import Block
    from ds_rvqvae.runs.references import Reference
    from ds_rvqvae.tokenizer.scores.frechet import FrechetFeatures
    from ds_rvqvae.tokenizer.scores.papers import PaperTable
    from ds_rvqvae.tokenizer.scores.published.loading import Evaluator
    from ds_rvqvae.tokenizer.scores.spread import ClipScore
    from ds_rvqvae.tokenizer.tokenizer import MotionTokenizer


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Fills the command's parser."""
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="RUN|TOKENIZER",
        help=f"{TOKENIZER_HELP}; several, or the parts of a body, are compared",
    )
    parser.add_argument(
        "--split", choices=["train", "val", "test", "all"], default="val", help="which clips (default: val)"
    )
    parser.add_argument("--data_path", metavar="PATH", help="motion to score (default: what the run trained on)")
    parser.add_argument(
        "--skeleton",
        type=Path,
        metavar="FILE",
        help="JSON or npz with joint_names, parents and offsets in metres, for joint positions (default: that of the "
        "motion's own files, else a built-in figure)",
    )
    _add_encoder_flags(parser)
    add_device_flag(parser)
    parser.add_argument(
        "--pictures",
        type=Path,
        metavar="DIR",
        help="folder for pictures (default: RUN/eval for a single run, else none)",
    )
    add_json_flag(parser)
    for form, words in (("markdown", "Markdown"), ("latex", "LaTeX, with booktabs")):
        parser.add_argument(
            f"--{form}",
            nargs="?",
            const="-",
            type=output_file,
            metavar="FILE",
            help=f"the table for a paper in {words}, to FILE or standard output",
        )
    parser.set_defaults(verb=_evaluate)


def _add_encoder_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of encoders whose features are compared."""
    parser.add_argument(
        "--features",
        type=Path,
        metavar="FILE",
        help="TorchScript encoder, motion [B, T, C] in the data's own units to [B, D] or [B, T', D]: adds the Fréchet "
        "distance of its features. Loading it runs its code: give only your own",
    )
    parser.add_argument(
        "--feature_window",
        type=count,
        default=64,
        metavar="FRAMES",
        help="frames T per input of the encoder of --features (default: 64)",
    )
    parser.add_argument(
        "--evaluator",
        type=Path,
        metavar="FILE",
        help="published weights that you have: finest.tar of HumanML3D's or KIT's text-motion matching adds FID, "
        "diversity and matching; AESKConv_240_100.bin of EMAGE adds FGD",
    )
    for value in ("mean", "std"):
        parser.add_argument(
            f"--evaluator_{value}",
            type=Path,
            metavar="FILE",
            help=f"the {value}.npy of the text-motion matching (default: Comp_v6_KLD01/meta/{value}.npy or "
            f"Comp_v6_KLD005/meta/{value}.npy beside text_mot_match)",
        )


@dataclass
class _Subject:
    """A tokenizer and the motion it is scored on."""

    name: str
    tokenizer: MotionTokenizer
    data: MotionData


def _evaluate(args: argparse.Namespace) -> int:
    from ds_rvqvae.data.formats.bvh.skeletons import load_skeleton
    from ds_rvqvae.motion.skeleton import check_skeleton
    from ds_rvqvae.runs.references import distinct_names
    from ds_rvqvae.tokenizer.scores.comparison import (
        all_differences,
        common_stride,
        scored_notes,
        spread_blocks,
        spread_notes,
    )
    from ds_rvqvae.tokenizer.scores.frechet import FrechetFeatures
    from ds_rvqvae.tokenizer.scores.papers import paper_table
    from ds_rvqvae.tokenizer.scores.protocols import protocol_lines_of_all
    from ds_rvqvae.tokenizer.scores.published.loading import check_fits
    from ds_rvqvae.tokenizer.scores.tables import comparison_blocks, score_blocks

    # All inputs are checked before the first clip is scored.
    _check_outputs(args)
    device = chosen_device(args)
    skeleton = load_skeleton(args.skeleton) if args.skeleton else None
    features = FrechetFeatures(args.features, args.feature_window) if args.features else None
    evaluator = _evaluator(args)
    references = [part for name in args.paths for part in find_tokenizer(name).parts()]
    names = distinct_names(references)
    subjects = [_open(name, reference, args, device) for name, reference in zip(names, references, strict=True)]
    for subject in subjects:
        check_skeleton(skeleton, subject.data.layout)
        check_fits(evaluator, subject.data.store.layout, subject.data.fps, str(subject.data.config.path))
    folder = _picture_folder(args, references)
    multiple = common_stride([subject.tokenizer for subject in subjects])
    clips: list[list[ClipScore]] = [[] for _ in subjects]
    results = [
        _score(subject, subjects[0], args.split, skeleton, (features, evaluator), own, multiple)
        for subject, own in zip(subjects, clips, strict=True)
    ]
    found, notes = all_differences(results, clips), scored_notes(results)
    for warning in dict.fromkeys(warning for result in results for warning in result["warnings"]):
        say(f"warning: {warning}")
    pictures: list[Path] = []
    missing: list[str] = []
    with tolerated(f"--pictures {folder}: not all pictures are drawn", warn=missing.append):
        pictures.extend(_draw(subjects, results, notes, folder, skeleton) if folder else ())
    if len(results) == 1:
        result, text = results[0], [*score_blocks(results[0]), ""]
    else:
        result = {"tokenizers": results, "differences": found, "notes": [*notes, *spread_notes(results)]}
        text = [block for one in results for block in (*score_blocks(one, name=one["name"]), "")]
        text += [*comparison_blocks(results, notes), ""]
    text += [*spread_blocks(results, found), "", *protocol_lines_of_all(results)]
    text += [["picture: ", (str(picture), "path")] for picture in pictures]
    _write(args, result, text, lambda: paper_table(results, found, notes))
    if missing and args.pictures:  # the user asked for them
        raise UserError(missing[0])
    for warning in missing:
        say(f"warning: {warning}")
    return ExitStatus.DONE


def _check_outputs(args: argparse.Namespace) -> None:
    """Raises UserError if two results would go to the same place."""
    places: dict[str, str] = {}
    for flag in ("json", "markdown", "latex"):
        place = getattr(args, flag)
        if place in places:
            words = "standard output" if place == "-" else place
            raise UserError(f"--{places[place]} and --{flag}: both go to {words}; name a file of its own for one")
        if place is not None:
            places[place] = flag


def _write(
    args: argparse.Namespace, result: dict[str, Any], text: Sequence[Block], table: Callable[[], PaperTable]
) -> None:
    """Prints the scores and writes the files of `--json`, `--markdown` and `--latex`; a table for a paper that goes to
    standard output is printed instead of the scores."""
    forms = [form for form in ("markdown", "latex") if getattr(args, form)]
    tables = {form: getattr(table(), form)() for form in forms}
    printed = next((form for form in forms if getattr(args, form) == "-"), None)
    if printed is None:
        print_result(args, result, text)
    else:
        print_out(tables[printed])
        if args.json:
            write_output("--json", args.json, json.dumps(result, indent=2) + "\n")
    for form, content in tables.items():
        if form != printed:
            write_output(f"--{form}", getattr(args, form), content)


def _evaluator(args: argparse.Namespace) -> Evaluator | None:
    """Loads `--evaluator`; None without it."""
    from ds_rvqvae.tokenizer.scores.published.loading import load_evaluator

    if args.evaluator:
        return load_evaluator(args.evaluator, args.evaluator_mean, args.evaluator_std)
    if args.evaluator_mean or args.evaluator_std:
        raise UserError("--evaluator_mean and --evaluator_std belong to --evaluator; give it too")
    return None


def _picture_folder(args: argparse.Namespace, references: Sequence[Reference]) -> Path | None:
    """Returns the folder for pictures, created and writable; None if none are drawn."""
    from ds_rvqvae.runs.references import Kind

    run = references[0].run if len(references) == 1 and references[0].kind is Kind.RUN else None
    folder: Path | None = args.pictures or (run and run / "eval")
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(0, "Permission denied")
    except OSError as error:
        text = f"--pictures {folder}: {(error.strerror or str(error)).lower()}; name another folder"
        if args.pictures:
            raise UserError(text) from None
        say(f"warning: {text}")
        return None
    if args.pictures:
        import ds_rvqvae.viz.canvas  # noqa: F401  # fails before scoring if nothing can be drawn
    return folder


def _open(name: str, reference: Reference, args: argparse.Namespace, device: str) -> _Subject:
    """Loads one tokenizer, onto `device`, and opens its motion.

    Raises:
        UserError: a tokenizer cannot be loaded, there is no motion, columns do not fit, or the split is empty.
    """
    from ds_rvqvae.data.dataset import MotionData
    from ds_rvqvae.data.store.prepare import prepare_store
    from ds_rvqvae.motion.layout import missing_channels
    from ds_rvqvae.motion.rotations import same_rate
    from ds_rvqvae.runs.tokenizers import open_single

    tokenizer = open_single(reference, device)
    config = _data_config(reference, tokenizer, args.data_path)
    store = prepare_store(config)
    if not same_rate(store.fps, tokenizer.fps):
        raise UserError(
            f"{config.path}: {store.fps:g} fps, but {name} takes {tokenizer.fps:g}; give --data_path with motion at "
            "that frame rate"
        )
    if missing_channels(store.layout, tokenizer.layout) is None and store.layout != tokenizer.layout:
        # Columns by name, whatever body part the profile beside the tokenizer has.
        part = tokenizer.details.get("body_part") or "tokenizer"
        columns = {part: [channels.name for channels in tokenizer.layout]}
        config = config.with_values({"body_part": part, "body_parts": columns})
    data = MotionData(store, config)
    _check_columns(data, tokenizer)
    data.use_normalisation(tokenizer.mean.cpu().numpy(), tokenizer.std.cpu().numpy())
    if not data.segments(args.split):
        raise UserError(f"{config.path}: no clip of 16 frames or more is in {args.split}{_splits_there(data)}")
    return _Subject(name, tokenizer, data)


def _data_config(reference: Reference, tokenizer: MotionTokenizer, data_path: str | None) -> DataConfig:
    """Returns the data settings of the run, if its profile exists, else of the tokenizer, with the tokenizer's own
    frame rate and body part."""
    from ds_rvqvae.runs.folder import read_profile
    from ds_rvqvae.tokenizer.folder import READING_KEYS, reading_config

    run, reading = reference.run, tokenizer.details["reading"]
    config = read_profile(run).rvqvae.data if run else reading_config(tokenizer.details, tokenizer.fps)
    path = data_path or config.path or os.environ.get("DS_RVQVAE_DATA") or None
    if path is None:
        raise UserError(
            f"{reference.name}: no motion to score, and no profile.json of its run beside it; give --data_path"
        )
    part = tokenizer.details.get("body_part") or config.body_part
    # The tokenizer brings its own normalisation; the files it came from may be gone.
    own = {"mean_file": None, "std_file": None, "body_part": part, "fps": tokenizer.fps}
    # From the tokenizer: a run may train on a store that was read in another way than its profile says.
    own |= {key: reading[key] for key in READING_KEYS if key in reading}
    return config.with_values({"path": path, **own})


def _check_columns(data: MotionData, tokenizer: MotionTokenizer) -> None:
    """Raises UserError if the motion's columns are not the tokenizer's."""
    advice = "give --data_path with motion like its training data"
    width = len(tokenizer.mean)
    if data.in_features != width:
        raise UserError(f"{data.config.path}: {data.in_features} columns, but the tokenizer takes {width}; {advice}")
    if any(all(part.kind == "feature" for part in layout) for layout in (data.layout, tokenizer.layout)):
        return  # the number of columns is equal, and one side has no names for them
    for there, wanted in zip(data.layout, tokenizer.layout, strict=False):
        if there != wanted:
            raise UserError(
                f"{data.config.path}: column {there.start} is {there.name} ({there.kind}), but the tokenizer takes "
                f"{wanted.name} ({wanted.kind}); {advice}"
            )


def _splits_there(data: MotionData) -> str:
    there = sorted({segment.split for segment in data.store.segments})
    return f" (there is {', '.join(there)})" if there else ""


def _score(
    subject: _Subject,
    first: _Subject,
    split: str,
    skeleton: Skeleton | None,
    encoders: tuple[FrechetFeatures | None, Evaluator | None],
    clips: list[ClipScore],
    multiple: int,
) -> dict[str, Any]:
    """Returns the scores and facts of one tokenizer; in the units of the first tokenizer if the columns are the
    same. `clips` gets the scores of each clip; clips are cut to a multiple of `multiple` frames."""
    from ds_rvqvae.gpu.sizes import parameter_count
    from ds_rvqvae.tokenizer.scores.comparison import latencies, spread_of
    from ds_rvqvae.tokenizer.scores.evaluation import evaluate_split
    from ds_rvqvae.tokenizer.scores.frechet import frechet_warning
    from ds_rvqvae.tokenizer.scores.protocols import protocols_of

    tokenizer, data = subject.tokenizer, subject.data
    shares_units = data.layout == first.data.layout
    unit_std = first.data.std if shares_units and subject is not first else None
    features, evaluator = encoders
    for further in encoders:
        if further is not None:
            further.clear()
    device = tokenizer.mean.device
    more: dict[str, Any] = {"skeleton": skeleton, "unit_std": unit_std, "features": features, "evaluator": evaluator}
    scores = evaluate_split(tokenizer.model, data, split, device, clips=clips, multiple=multiple, **more)
    warnings = [frechet_warning(scores, "frechet")] if features is not None else []
    warnings += [frechet_warning(scores, "evaluator")] if evaluator is not None else []
    model = tokenizer.model.config
    return {
        "name": subject.name,
        **scores,
        "parameter_count": parameter_count(tokenizer.model.in_features, model),
        "num_quantizers": model.num_quantizers,
        "nb_code": model.nb_code,
        "training_step": tokenizer.details.get("training_step"),
        "data_path": str(data.config.path),
        "normalised_by": first.name if shares_units else subject.name,
        "protocols": protocols_of(scores),
        "clips_cut_to": multiple,
        **latencies(tokenizer),
        **spread_of(clips),
        "warnings": [f"{subject.name}: {warning}" for warning in warnings if warning],
    }


def _draw(
    subjects: Sequence[_Subject],
    results: Sequence[dict[str, Any]],
    notes: Sequence[str],
    folder: Path,
    skeleton: Skeleton | None,
) -> Iterator[Path]:
    """Draws reconstructions, rate against distortion and, for several tokenizers, their table; yields the files."""
    from ds_rvqvae.viz.reconstruction import reconstruction_pictures, save_figure
    from ds_rvqvae.viz.scores import comparison_figure, rate_distortion_figure

    split, is_single = results[0]["split"], len(subjects) == 1
    for subject in subjects:
        suffix = "" if is_single else "_" + re.sub(r"[^\w.-]+", "-", subject.name).strip("-")
        model, data = subject.tokenizer.model, subject.data
        for name, figure in reconstruction_pictures(model, data, (split,), model.device, skeleton):
            picture = folder / f"reconstruction_{name}{suffix}.png"
            save_figure(figure, picture)
            yield picture
    title = f"{subjects[0].name}, {notes[0]}" if is_single else f"{len(subjects)} tokenizers, {split}"
    figures = {f"rate_distortion_{split}.png": rate_distortion_figure(results, title)}
    if not is_single:
        figures[f"comparison_{split}.png"] = comparison_figure(results, f"Scores, {split}", notes)
    for file, figure in figures.items():
        save_figure(figure, folder / file)
        yield folder / file
