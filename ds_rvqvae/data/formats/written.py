"""Definitions that all writers of motion files share, and the writing of plain matrices."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.files import whole_file
from ds_rvqvae.motion.layout import Layout


class Written(NamedTuple):
    """The result of writing a file."""

    source_fps: float
    """The frame rate of the source; 0 without one."""
    notes: tuple[str, ...] = ()
    """Remarks that quote nothing from the source."""
    details: tuple[str, ...] = ()
    """The same remarks with words from the source, for users who named it themselves; empty if there are none."""


Write = Callable[[Path, NDArray[Any], Layout, float, Path | None, DataConfig], Written]
"""Writes a file, complete or not at all: `(file, motion, layout, fps, source, config)`.

`motion` is `[T, C]` at `fps`, `layout` names its columns, `source` is the motion file that was encoded, or None, and
`config` says how that is read. Columns that `layout` does not name are those of the source, resampled to `fps`; without
a source they are at rest, and a note says so. Raises ClipError if the source cannot be read or is not finite, and
UnfitError if the motion does not fit it.
"""


class Writer(NamedTuple):
    """How motion is written in the format that a reader reads."""

    kind: str
    """One such file, in words: `a BVH file`."""
    suffix: str
    needs_source: bool
    """Whether a file cannot be written without a source, as that of BVH, which has the hierarchy."""
    write: Write


def at_rest(has_source: bool) -> tuple[str, ...]:
    """Returns a note on columns that neither the tokenizer nor a source gives."""
    words = "no source file, so columns that the tokenizer does not cover are at rest (--source names one)"
    return () if has_source else (words,)


def write_matrix(file: Path, motion: NDArray[Any]) -> None:
    """Writes a `.npy` feature matrix `[frames, features]`, float32."""
    with whole_file(file) as content:
        np.save(content, np.asarray(motion, np.float32), allow_pickle=False)
