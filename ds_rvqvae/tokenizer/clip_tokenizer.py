"""What encoding and decoding of files ask of a tokenizer, be it one by itself or a body's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from ds_rvqvae.data.clips import Clip, ClipError
from ds_rvqvae.data.layout import Layout, feature_layout, select_columns
from ds_rvqvae.data.motion_files import FORMATS
from ds_rvqvae.errors import UserError
from ds_rvqvae.tokenizer.body import BodyTokenizer
from ds_rvqvae.tokenizer.code_files import ONLY_PART
from ds_rvqvae.tokenizer.folder import BODY
from ds_rvqvae.tokenizer.tokenizer import MotionTokenizer


class ClipTokenizer(Protocol):
    """Whole clips to codes by part, and back."""

    parts: Mapping[str, MotionTokenizer]
    """The tokenizers by body part; one by itself is that of `ONLY_PART`."""
    fps: float
    formats: tuple[str, ...]
    """Of the motion files it takes: values of `motion_files.FORMATS`."""

    @property
    def fingerprint(self) -> str:
        """Another for every tokenizer with other codes."""
        ...

    def encode_clip(self, clip: Clip) -> dict[str, np.ndarray]:
        """By part int64 `[ceil(frames / code_stride), Q]`; raises ClipError where the clip has other columns."""
        ...

    def decode_clip(self, codes: Mapping[str, np.ndarray], frames: int) -> tuple[np.ndarray, Layout]:
        """Motion float32 `[frames, C]`, and the layout of those of its columns that the codes say."""
        ...


class SingleTokenizer:
    """A `MotionTokenizer` as a `ClipTokenizer`."""

    formats = tuple(FORMATS.values())

    def __init__(self, tokenizer: MotionTokenizer):
        self.parts = {ONLY_PART: tokenizer}
        self.fps, self.fingerprint = tokenizer.fps, tokenizer.fingerprint
        self._tokenizer = tokenizer

    def encode_clip(self, clip: Clip) -> dict[str, np.ndarray]:
        """As the protocol says."""
        return {ONLY_PART: self._tokenizer.encode(self._columns(clip))}

    def decode_clip(self, codes: Mapping[str, np.ndarray], frames: int) -> tuple[np.ndarray, Layout]:
        """As the protocol says."""
        return self._tokenizer.decode(codes[ONLY_PART], frames), self._tokenizer.layout

    def _columns(self, clip: Clip) -> np.ndarray:
        """The clip's motion `[frames, C]` in the tokenizer's columns; raises ClipError where they are not the same."""
        wanted, width = self._tokenizer.layout, clip.motion.shape[1]
        body_part = self._tokenizer.details.get("body_part")
        if body_part is None and clip.layout == feature_layout(width) and width == wanted[-1].stop:
            return clip.motion
        columns, layout = np.arange(width), clip.layout
        if body_part is not None:
            columns, layout = select_columns(clip.layout, body_part)
        if layout != wanted:
            raise ClipError(_difference(layout, wanted))
        return clip.motion[:, columns]


def as_clip_tokenizer(tokenizer: MotionTokenizer | BodyTokenizer) -> ClipTokenizer:
    """A body's tokenizer is one as it is."""
    return SingleTokenizer(tokenizer) if isinstance(tokenizer, MotionTokenizer) else tokenizer


def load_any_tokenizer(name: str) -> MotionTokenizer | BodyTokenizer:
    """The tokenizer in a folder, a body's or one by itself, or that of a repository on the Hugging Face hub.

    Raises:
        UserError: naming the folder or file and what is wrong with it.
    """
    folder = Path(name)
    if (folder / BODY).is_file():
        return BodyTokenizer.from_pretrained(folder)
    if (folder / "tokenizer" / BODY).is_file():
        raise UserError(f"{folder}: not a tokenizer folder; the tokenizer of these runs is {folder / 'tokenizer'}")
    return MotionTokenizer.from_pretrained(name)


def _difference(layout: Layout, wanted: Layout) -> str:
    if layout[-1].stop != wanted[-1].stop:
        return f"{layout[-1].stop} columns, this tokenizer takes {wanted[-1].stop}"
    there, here = next(pair for pair in zip(layout, wanted, strict=False) if pair[0] != pair[1])
    return (
        f"column {there.start} is of {there.name} ({there.kind}), this tokenizer takes {here.name} ({here.kind}) there"
    )
