"""Read the option files and find the statistics that MoMask, T2M-GPT and GestureLSM keep beside their weights.

Without torch. As published: MoMask writes `opt.txt` above the folder `model/`, with lines `key: value`, and beside it
`meta/mean.npy` and `meta/std.npy`. T2M-GPT and GestureLSM write `run.log`, which begins with all options as JSON.
GestureLSM's yaml files name the checkpoints of the body parts, the statistics and the frame rate.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from ds_rvqvae.config.names import BODY_PARTS
from ds_rvqvae.errors import UserError
from ds_rvqvae.tokenizer.foreign.formats import DATASETS, ForeignFormat

_MOST_BYTES = 1 << 24
"""Maximum bytes read of an option file; a log of 300,000 steps has a hundredth of this."""
_ROOTS = 4
"""Number of parent folders that may be the one in which the system's scripts are run."""
_SHARED_STATISTICS = "checkpoints/{dataset}/VQVAEV3_CB1024_CMT_H1024_NRES3/meta"
"""Folder from which T2M-GPT's scripts read mean and std."""
_PART_PATH = re.compile(r"vqvae_(\w+)_path")
STATISTICS_KEYS = {
    "mean": ("mean_pose_path", "mean_trans_path", "mean_exps_path"),
    "std": ("std_pose_path", "std_trans_path", "std_exps_path"),
}
"""Options of GestureLSM that name files of statistics: the joints, then the translation. Those of the expressions exist
only in our own exports."""


@dataclass(frozen=True, slots=True)
class Said:
    """One option in an option file."""

    value: Any
    """The value, converted to ours."""
    text: str
    """The line in the file, as `vq_act: silu`."""
    file: Path

    @property
    def where(self) -> str:
        return f"{self.file.name} ({self.text})"


@dataclass(frozen=True)
class Options:
    """The contents of the option files around a checkpoint."""

    files: tuple[Path, ...]
    said: Mapping[str, list[Said]]
    """By the names of `ModelConfig` (`norm` is "none" for no norm), and `dataset`, `fps`, `body_part` and GestureLSM's
    keys of statistics. A key has several entries if files give different values."""

    def of(self, key: str) -> list[Said]:
        return self.said.get(key, [])


def checkpoint_in(path: Path, known: ForeignFormat) -> Path:
    """Returns the checkpoint that a file or folder stands for; raises UserError if there is none, or more than one."""
    if not path.is_dir():
        return path
    for file in (path / known.weights_file, path / Path(known.weights_file).name):
        if file.is_file():
            return file
    suffix = Path(known.weights_file).suffix
    folders = [path, path / "model"]
    try:
        found = [file for folder in folders for file in _entries(folder) if file.suffix.lower() == suffix]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    if len(found) == 1:
        return found[0]
    names = ", ".join(str(file.relative_to(path)) for file in found[:6]) + (", …" if len(found) > 6 else "")
    if found:
        raise UserError(f"{path}: holds {len(found)} checkpoints: {names}; name the one to import")
    raise UserError(f"{path}: holds no {known.weights_file} and no other {suffix} file; name the checkpoint")


def read_options(file: Path, known: ForeignFormat, named: Path | None = None, given: Collection[str] = ()) -> Options:
    """Reads the option files of a checkpoint where its system puts them, or the one named.

    Args:
        given: keys given by flags; invalid values of these in the files do not matter.

    Raises:
        UserError: a file cannot be read, or a value in it is not valid.
    """
    said: dict[str, list[Said]] = {}
    files = []
    for option_file in [named] if named is not None else _option_files(file, known):
        entries = list(_read(option_file, file, known, given))
        if named is not None and not entries:
            raise UserError(f"--options {named}: has no options of a {known.title} model")
        for key, entry in entries:
            if all(entry.value != other.value for other in said.setdefault(key, [])):
                said[key].append(entry)
        files += [option_file] if entries else []
    return Options(tuple(files), said)


def model_folder(file: Path) -> Path:
    """Returns the folder of a checkpoint's model; MoMask has the weights one folder deeper, in `model/`."""
    return file.absolute().parent.parent if file.absolute().parent.name == "model" else file.absolute().parent


def statistics_files(file: Path, known: ForeignFormat, options: Options) -> dict[str, list[Path]] | str:
    """Returns the files of `mean` and `std` of a checkpoint with an option file, or the reason why there are none."""
    if known.dataset_key is None:
        return _named_statistics(options)
    folders = [model_folder(file) / known.statistics]
    folders += [option_file.absolute().parent / known.statistics for option_file in options.files]
    if known.one_codebook:
        datasets = [entry.value for entry in options.of("dataset")]
        folders += [
            root / _SHARED_STATISTICS.format(dataset=datasets[0])
            for root in _roots(file)
            if len(datasets) == 1 and datasets[0] in DATASETS
        ]
    for folder in folders if options.files else []:
        found = {name: [folder / f"{name}.npy"] for name in STATISTICS_KEYS}
        if all(one.is_file() for files in found.values() for one in files):
            return found
    return f"{known.statistics}/mean.npy and {known.statistics}/std.npy are missing" if options.files else ""


def _named_statistics(options: Options) -> dict[str, list[Path]] | str:
    found: dict[str, list[Path]] = {}
    for name, keys in STATISTICS_KEYS.items():
        for key in keys:
            said = options.of(key)
            if len(said) > 1:
                return f"{', '.join(one.where for one in said)} differ"
            if not said:
                continue
            roots = [said[0].file.absolute().parent, *_roots(said[0].file)]
            there = [root / said[0].value for root in roots if (root / said[0].value).is_file()]
            if there:
                found.setdefault(name, []).append(there[0])
            elif key == keys[0]:
                return f"{said[0].where} is missing"
    return found if len(found) == len(STATISTICS_KEYS) else ""


def _roots(file: Path) -> list[Path]:
    return list(file.absolute().parents[:_ROOTS])


def _entries(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_file()) if folder.is_dir() else []


def _option_files(file: Path, known: ForeignFormat) -> Iterator[Path]:
    """Yields the option files beside the model, and GestureLSM's configs that name the checkpoint."""
    for entry in _readable_entries(model_folder(file)):
        if any(fnmatch(entry.name.lower(), pattern) for pattern in known.option_files):
            yield entry
    if known.dataset_key is None:
        for root in _roots(file)[1:]:
            for folder in ("configs", "configs_new"):
                for entry in _readable_entries(root / folder):
                    if entry.suffix.lower() in (".yaml", ".yml") and file.name in _text(entry):
                        yield from [entry] if _named_parts(_read_yaml(_text(entry), entry), entry, file) else []


def _readable_entries(folder: Path) -> list[Path]:
    try:
        return _entries(folder)
    except OSError:
        return []


def _read(option_file: Path, file: Path, known: ForeignFormat, given: Collection[str]) -> Iterator[tuple[str, Said]]:
    """Yields keys by our names, and their options."""
    readers: dict[str, Callable[[str, Path], list[tuple[str, Any]]]] = {
        ".txt": _read_lines,
        ".log": _read_log,
        ".yaml": _read_yaml,
        ".yml": _read_yaml,
    }
    if option_file.suffix.lower() not in readers:
        raise UserError(f"--options {option_file}: its suffix is not one of {', '.join(readers)}")
    pairs = readers[option_file.suffix.lower()](_text(option_file), option_file)
    for part, text in _named_parts(pairs, option_file, file):
        yield "body_part", Said(part, text, option_file)
    kinds = dict(_KINDS)
    kinds[known.fps_key] = ("fps", _positive)
    if known.dataset_key is not None:
        kinds[known.dataset_key] = ("dataset", _word)
    else:
        kinds["body_part"] = ("body_part", _part)
        kinds |= {key: (key, _word) for keys in STATISTICS_KEYS.values() for key in keys}
    for key, value in pairs:
        name, kind = kinds.get(key, ("", _word))
        text = f"{key}: {value}"
        # OmegaConf's references to other keys are not values.
        if not name or (isinstance(value, str) and "${" in value) or (value in (None, "None", "") and name != "norm"):
            continue
        try:
            yield name, Said(kind(value), text, option_file)
        except ValueError as error:
            if name not in given:
                raise UserError(f"{option_file}: {text}: {error}") from None
            yield name, Said(None, text, option_file)


def _text(file: Path) -> str:
    try:
        if not file.is_file():
            raise UserError(f"{file}: is not a file; name an option file")
        with file.open("rb") as content:
            return content.read(_MOST_BYTES).decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {(error.strerror or str(error)).lower()}") from None


def _read_lines(text: str, file: Path) -> list[tuple[str, Any]]:
    pairs = (line.partition(":") for line in text.splitlines())
    return [(key.strip(), value.strip()) for key, colon, value in pairs if colon]


def _read_log(text: str, file: Path) -> list[tuple[str, Any]]:
    """Returns the options of each script that wrote into a log."""
    decoder, pairs, end = json.JSONDecoder(), [], 0
    for brace in re.finditer(r'\{\s*"', text):
        if brace.start() < end:
            continue
        try:
            values, end = decoder.raw_decode(text, brace.start())
        except (ValueError, RecursionError):
            continue
        pairs += list(values.items())
    return pairs


def _read_yaml(text: str, file: Path) -> list[tuple[str, Any]]:
    """Returns the keys of all sections."""
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file}: not yaml: {reason}; name the option file with --options") from None
    pairs: list[tuple[str, Any]] = []
    sections, seen = [content], set()
    while sections:
        section = sections.pop(0)
        # Aliases may repeat a section, even inside itself; it is read once.
        if id(section) in seen or not isinstance(section, dict | list):
            continue
        seen.add(id(section))
        for key, value in section.items() if isinstance(section, dict) else enumerate(section):
            if isinstance(value, dict | list):
                sections.append(value)
            elif isinstance(key, str):
                pairs.append((key, value))
    return pairs


def _named_parts(pairs: list[tuple[str, Any]], option_file: Path, file: Path) -> list[tuple[str, str]]:
    """Returns the body parts whose checkpoint in a GestureLSM yaml is `file`, each with the line that says so."""
    found = []
    roots = [option_file.absolute().parent, *_roots(option_file)]
    for key, value in pairs:
        part = _PART_PATH.fullmatch(key)
        if (
            part
            and part[1] in BODY_PARTS
            and isinstance(value, str)
            and any((root / value).resolve() == file.resolve() for root in roots)
        ):
            found.append((part[1], f"{key}: {value}"))
    return found


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("is not text")
    return value


def _activation(value: Any) -> str:
    if value not in ("relu", "silu", "gelu"):
        raise ValueError("is not one of relu, silu, gelu; give --activation")
    return str(value)


def _norm(value: Any) -> str:
    if value in (None, False, "None", "False", "null", "none", ""):
        return "none"
    if value == "BN":
        raise ValueError("is batch norm (BatchNorm), which these nets do not have")
    if value not in ("LN", "GN"):
        raise ValueError("is not one of None, LN, GN; give --norm")
    return str(value)


def _whole(value: Any) -> int:
    number = _number(value)
    if number != int(number):
        raise ValueError("is not an integer")
    return int(number)


def _number(value: Any) -> float:
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not abs(number) < float("inf"):
        raise ValueError("is not a number")
    return number


def _positive(value: Any) -> float:
    number = _number(value)
    if number <= 0:
        raise ValueError("is not above 0")
    return number


def _switch(value: Any) -> bool:
    if str(value) not in ("True", "False"):
        raise ValueError("is neither True nor False")
    return str(value) == "True"


def _part(value: Any) -> str:
    """Returns a body part by the rule of GestureLSM's script, which accepts a piece of a name for the name (`hand`)."""
    fitting = [part for part in BODY_PARTS if isinstance(value, str) and value and value in part]
    if not fitting:
        raise ValueError(f"is not one of {', '.join(BODY_PARTS)}; give --body_part")
    return fitting[0]


_KINDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "vq_act": ("activation", _activation),
    "vq_norm": ("norm", _norm),
    "shared_codebook": ("shared_codebook", _switch),
    **{
        key: (key, _whole)
        for key in (
            *("width", "depth", "down_t", "stride_t", "dilation_growth_rate"),
            *("code_dim", "nb_code", "num_quantizers"),
        )
    },
    **{key: (key, _number) for key in ("mu", "quantize_dropout_prob")},
}
"""Options by their names in all three systems, with our names and the functions that convert their values."""
