"""Shared by the commands: values of flags, columns of motion, and results as text and as JSON."""

import argparse
import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ds_rvqvae.errors import UserError, say
from ds_rvqvae.process.command import print_out, print_summary

if TYPE_CHECKING:
    from ds_rvqvae.config.profile import Profile
    from ds_rvqvae.process.terminal import Block
    from ds_rvqvae.runs.references import Reference

TOKENIZER_HELP = (
    "folder of a run, of a tokenizer, or of a body's tokenizers; a run's checkpoint, as "
    "RUN/checkpoints/global_step5000 or RUN/checkpoints/best; or a tokenizer's id on the Hugging Face hub"
)
"""The names of a tokenizer that every command accepts; `ds_rvqvae.runs.references` resolves them."""


def find_tokenizer(name: str, checkpoint: str | None = None) -> "Reference":
    """Finds the tokenizer with a name; warns on stderr if the name may not mean what the user expects.

    Raises:
        UserError: as `find_reference` raises.
    """
    from ds_rvqvae.runs.references import find_reference

    reference = find_reference(name, checkpoint)
    for note in reference.notes:
        say(f"warning: {note}")
    return reference


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--json [FILE]`."""
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        type=output_file,
        metavar="FILE",
        help="results as JSON, to FILE or standard output",
    )


def output_file(text: str) -> str:
    """Parses a file to write, or `-` for standard output, for a flag; refuses a file that cannot be written before any
    work is done."""
    file = Path(text)
    if text != "-" and (file.is_dir() or not os.access(file.parent, os.W_OK | os.X_OK)):
        reason = "is a folder" if file.is_dir() else f"{file.parent} is not a folder that can be written to"
        raise argparse.ArgumentTypeError(f"{text}: cannot be written: {reason}")
    return text


def print_result(
    args: argparse.Namespace, result: Any, text: "str | Iterable[Block]", *, in_files: bool = False
) -> None:
    """Prints a result as text; with `--json` writes it as JSON, to the named file or, without the text, to standard
    output.

    Args:
        text: lines and tables, which are fitted to the terminal. If it is a plain text, names in it that may contain a
            line break have passed `printable` or `text_of`.
        in_files: whether the result itself is in files, so that a failure to print the text is only a warning.

    Raises:
        UserError: the result cannot be written.
    """
    if args.json == "-":
        print_out(json.dumps(result, indent=2) + "\n")
        return
    from ds_rvqvae.process.terminal import terminal_of

    blocks = text.split("\n") if isinstance(text, str) else text
    (print_summary if in_files or args.json else print_out)(terminal_of().text(blocks) + "\n")
    if args.json:
        write_output("--json", args.json, json.dumps(result, indent=2) + "\n")


def write_output(flag: str, file: str, text: str) -> None:
    """Writes the file that a flag names, completely or not at all.

    Raises:
        UserError: it cannot be written.
    """
    from ds_rvqvae.files import whole_file

    try:
        with whole_file(Path(file)) as content:
            content.write(text.encode())
    except OSError as error:
        raise UserError(f"{flag} {file}: cannot be written: {error.strerror}") from None


def add_device_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--device`; `chosen_device` checks it."""
    parser.add_argument(
        "--device",
        type=_device,
        default="cpu",
        metavar="cpu|cuda|cuda:N",
        help="where the nets run: cpu, cuda (the first GPU) or cuda:1, as nvidia-smi counts (default: cpu)",
    )


def _device(text: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d{1,4})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a device; give cpu, cuda or cuda:1")
    return text


def chosen_device(args: argparse.Namespace) -> str:
    """Returns the device of `--device`, after a test that it computes. torch is imported only for a GPU.

    Raises:
        UserError: there is no such GPU, torch cannot use it, or it does not compute.
    """
    device: str = args.device
    if device == "cpu":
        return device
    # Otherwise CUDA counts the fastest GPU first.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    import torch

    if torch.version.cuda is None:
        raise UserError(
            f"--device {device}: torch {torch.__version__} is built without CUDA and cannot use a GPU: install a build "
            "for CUDA, or leave --device out"
        )
    build = f"torch {torch.__version__}, built for CUDA {torch.version.cuda},"
    if not torch.cuda.is_available():
        raise UserError(f"--device {device}: {build} finds no GPU that it can use{_gpus_of_driver()}")
    names = [f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())]
    if device not in ("cuda", *(name.partition(" ")[0] for name in names)):
        raise UserError(f"--device {device}: there is no such GPU{_visible()}; there are {', '.join(names)}")
    try:
        torch.ones(2, device=device).sum().item()
    except (AssertionError, RuntimeError) as error:  # it is full, lost, or too old or too new for this build
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"--device {device}: {build} cannot compute on it: {reason}") from None
    return device


def _gpus_of_driver() -> str:
    """Returns the GPUs that NVIDIA's driver knows, in words; with them, why torch may find none."""
    from ds_rvqvae.gpu.nvml import NoDriverError, list_gpus

    try:
        gpus = list_gpus()
    except NoDriverError as error:
        return f": no NVIDIA driver answers ({error})"
    if not gpus:
        return ": the NVIDIA driver has none"
    found = ", ".join(f"{gpu.index} {gpu.name}" for gpu in gpus)
    reason = _visible() or "; the driver may be too old for this CUDA"
    return f": the NVIDIA driver has GPU {found}{reason}"


def _visible() -> str:
    from ds_rvqvae.host import VISIBLE, shown_visible

    text = os.environ.get(VISIBLE)
    return "" if text is None else f" with {shown_visible(text)}"


def number(text: str) -> float:
    """Parses a finite number, for a flag."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def positive_number(text: str) -> float:
    """Parses a finite number above 0, for a flag."""
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def count(text: str) -> int:
    """Parses a whole number from 1, for a flag."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def add_column_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `--in_features` and `--data_path`."""
    parser.add_argument(
        "--in_features", type=int, metavar="N", help="columns of the motion (default: those of the body part in SMPL-X)"
    )
    parser.add_argument("--data_path", metavar="PATH", help="motion or a store whose columns are counted")


def columns_of(args: argparse.Namespace, profile: "Profile") -> int:
    """Returns the number of columns that the flags ask for.

    Raises:
        UserError: the columns cannot be known; see `columns_in_use`.
    """
    given: int | None = args.in_features
    if given is not None:
        if given < 1:
            raise UserError(f"--in_features {given}: give 1 or more")
        return given
    from ds_rvqvae.data.columns import columns_in_use

    data = profile.rvqvae.data
    # The motion that a profile names may be on another machine, and is read only if nothing else gives the columns.
    is_own = data.body_part in (data.body_parts or ())
    return columns_in_use(data, args.data_path or (data.path if is_own else None))
