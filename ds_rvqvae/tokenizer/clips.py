"""The interface of a tokenizer for encoding and decoding files: one for a single tokenizer and for a body's."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.motion.clip import Clip
from ds_rvqvae.motion.layout import Layout
from ds_rvqvae.tokenizer.body import BodyTokenizer
from ds_rvqvae.tokenizer.codes import ONLY_PART
from ds_rvqvae.tokenizer.folder import own_columns
from ds_rvqvae.tokenizer.tokenizer import MotionTokenizer


class ClipTokenizer(Protocol):
    """Encodes complete clips into codes by part, and decodes them."""

    fps: float

    @property
    def parts(self) -> Mapping[str, MotionTokenizer]:
        """The tokenizers by body part; a single tokenizer has the part `ONLY_PART`."""
        ...

    @property
    def details(self) -> Mapping[str, Any]:
        """The settings in the config files, without the nets."""
        ...

    @property
    def fingerprint(self) -> str:
        """Differs between any two tokenizers whose codes differ."""
        ...

    def encode_clip(self, clip: Clip) -> dict[str, NDArray[np.int64]]:
        """Returns int64 `[ceil(frames / code_stride), Q]` by part; raises ClipError if the clip has other columns."""
        ...

    def decode_clip(self, codes: Mapping[str, NDArray[np.int64]], frames: int) -> tuple[NDArray[np.float32], Layout]:
        """Returns motion float32 `[frames, C]`, and the layout of the columns that the codes cover."""
        ...


class SingleTokenizer:
    """A `MotionTokenizer` as a `ClipTokenizer`."""

    def __init__(self, tokenizer: MotionTokenizer) -> None:
        self.parts = {ONLY_PART: tokenizer}
        self.fps, self.fingerprint, self.details = tokenizer.fps, tokenizer.fingerprint, tokenizer.details
        self._tokenizer = tokenizer

    def encode_clip(self, clip: Clip) -> dict[str, NDArray[np.int64]]:
        """See `ClipTokenizer`."""
        columns = own_columns(self._tokenizer.layout, clip, self.details)
        return {ONLY_PART: self._tokenizer.encode(np.ascontiguousarray(clip.motion[:, columns]))}

    def decode_clip(self, codes: Mapping[str, NDArray[np.int64]], frames: int) -> tuple[NDArray[np.float32], Layout]:
        """See `ClipTokenizer`."""
        return self._tokenizer.decode(codes[ONLY_PART], frames), self._tokenizer.layout


def as_clip_tokenizer(tokenizer: MotionTokenizer | BodyTokenizer) -> ClipTokenizer:
    """Wraps a single tokenizer; a body's tokenizer is returned as it is."""
    return SingleTokenizer(tokenizer) if isinstance(tokenizer, MotionTokenizer) else tokenizer
