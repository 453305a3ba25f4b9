"""Motion data that are published as pickles, which are never loaded: the words that say how an npz is made of one.

A pickle runs any code that its author put into it, so its user decides whether to trust it.
"""

from pathlib import Path

_LINES = {
    (".pkl", ".pickle", ".p"): "import pickle, numpy; numpy.savez({npz}, **pickle.load(open({file}, 'rb')))",
    (".pt", ".pth"): "import torch, numpy; numpy.savez({npz}, **torch.load({file}, map_location='cpu'))",
}
SUFFIXES = tuple(suffix for suffixes in _LINES for suffix in suffixes)


def is_pickle(file: Path) -> bool:
    """Returns whether a file is a pickle by its suffix; it is not opened."""
    return file.suffix.lower() in SUFFIXES


def how_to_convert(file: Path) -> str:
    """Returns why a pickle is not read, and the line of Python that makes an npz of it, as one line."""
    suffix = file.suffix.lower()
    line = next(line for suffixes, line in _LINES.items() if suffix in suffixes)
    names = {"file": repr(file.name), "npz": repr(f"{file.stem}.npz")}
    return (
        f"{file.suffix} files are pickles, which can run any code and are never loaded; if you trust them, make an npz "
        f"of each in Python: {line.format(**names)}"
    )
