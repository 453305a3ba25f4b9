"""What encoding and decoding of files ask of a tokenizer, be it one by itself or a body's."""

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
    """Whole clips to codes by part, and back."""

    fps: float

    @property
    def parts(self) -> Mapping[str, MotionTokenizer]:
        """The tokenizers by body part; one by itself is that of `ONLY_PART`."""
        ...

    @property
    def details(self) -> Mapping[str, Any]:
        """What config files say beside the nets."""
        ...

    @property
    def fingerprint(self) -> str:
        """Another for every tokenizer with other codes."""
        ...

    def encode_clip(self, clip: Clip) -> dict[str, NDArray[np.int64]]:
        """By part int64 `[ceil(frames / code_stride), Q]`; raises ClipError where the clip has other columns."""
        ...

    def decode_clip(self, codes: Mapping[str, NDArray[np.int64]], frames: int) -> tuple[NDArray[np.float32], Layout]:
        """Motion float32 `[frames, C]`, and the layout of those of its columns that the codes say."""
        ...


class SingleTokenizer:
    """A `MotionTokenizer` as a `ClipTokenizer`."""

    def __init__(self, tokenizer: MotionTokenizer) -> None:
        self.parts = {ONLY_PART: tokenizer}
        self.fps, self.fingerprint, self.details = tokenizer.fps, tokenizer.fingerprint, tokenizer.details
        self._tokenizer = tokenizer

    def encode_clip(self, clip: Clip) -> dict[str, NDArray[np.int64]]:
        """As the protocol says."""
        columns = own_columns(self._tokenizer.layout, clip, self.details)
        return {ONLY_PART: self._tokenizer.encode(np.ascontiguousarray(clip.motion[:, columns]))}

    def decode_clip(self, codes: Mapping[str, NDArray[np.int64]], frames: int) -> tuple[NDArray[np.float32], Layout]:
        """As the protocol says."""
        return self._tokenizer.decode(codes[ONLY_PART], frames), self._tokenizer.layout


def as_clip_tokenizer(tokenizer: MotionTokenizer | BodyTokenizer) -> ClipTokenizer:
    """A body's tokenizer is one as it is."""
    return SingleTokenizer(tokenizer) if isinstance(tokenizer, MotionTokenizer) else tokenizer
