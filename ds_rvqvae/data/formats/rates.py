"""Frame rates as npz files say them."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.data import to_say
from ds_rvqvae.motion.clip import ClipError
from ds_rvqvae.motion.rotations import same_rate

FPS_KEYS = ("mocap_frame_rate", "mocap_framerate", "fps", "mocap_fps", "frame_rate")
"""The keys of an npz that may say its frame rate."""


def frame_rate(values: NDArray[Any], key: str) -> float:
    """The one positive number in `values`; raises ClipError."""
    if values.dtype.kind not in "fiu":
        raise ClipError(f"{key} holds {str(values.dtype)[:40]}, not a number of frames a second")
    if values.size != 1 or not 0 < float(values.reshape(-1)[0]) < 1e5:
        raise ClipError(f"{key} is {str(values)[:40]}, not a number of frames a second")
    return float(values.reshape(-1)[0])


def rate_of(arrays: Mapping[str, NDArray[Any]]) -> float | None:
    """Frames a second by those of `FPS_KEYS` that are there, as numbers or as text (`b"30"`); None where none is.

    29.97 and 30 are read alike, so they agree.

    Raises:
        ClipError: no frame rate, or two keys that disagree.
    """
    rates = {key: frame_rate(_as_number(arrays[key]), key) for key in FPS_KEYS if key in arrays}
    key, rate = next(iter(rates.items()), ("", None))
    for other, fps in rates.items():
        if rate is not None and not same_rate(fps, rate):
            source_fps = to_say("source_fps", "N")
            raise ClipError(f"{key} is {rate:g} and {other} is {fps:g} frames a second; {source_fps} says which")
    return rate


def _as_number(values: NDArray[Any]) -> NDArray[Any]:
    """The number that a text of it stands for; all else as it is."""
    if values.dtype.kind in "SU" and values.size == 1:
        with suppress(ValueError):
            return values.astype(np.float64)
    return values
