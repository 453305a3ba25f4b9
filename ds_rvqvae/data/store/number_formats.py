"""How a store keeps numbers on disk."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class NumberFormat(NamedTuple):
    """Numbers on disk and in memory."""

    stored: np.dtype[Any]
    encode: Callable[[NDArray[np.float32]], NDArray[Any]]
    """float32 to what is stored."""
    decode: Callable[[NDArray[Any]], NDArray[np.float32]]
    """What is stored to float32."""


_LARGEST_BFLOAT16 = np.float32(2.0**128 - 2.0**120)
"""Float32 has larger ones, which would be rounded to infinity."""


def _as_is(values: NDArray[Any]) -> NDArray[Any]:
    return values


def _to_float16(values: NDArray[np.float32]) -> NDArray[Any]:
    limit = np.finfo(np.float16).max
    return np.clip(values, -limit, limit).astype("<f2")


def _from_float16(values: NDArray[Any]) -> NDArray[np.float32]:
    return values.astype(np.float32)


def _to_bfloat16(values: NDArray[np.float32]) -> NDArray[Any]:
    """The upper half of a float32, rounded to the nearest, ties to even; values are finite."""
    bits = np.clip(values, -_LARGEST_BFLOAT16, _LARGEST_BFLOAT16).astype("<f4", copy=False).view("<u4")
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype("<u2")


def _from_bfloat16(values: NDArray[Any]) -> NDArray[np.float32]:
    return (values.astype(np.uint32) << 16).view(np.float32)


NUMBER_FORMATS = {
    "float32": NumberFormat(np.dtype("<f4"), _as_is, _as_is),
    "float16": NumberFormat(np.dtype("<f2"), _to_float16, _from_float16),
    "bfloat16": NumberFormat(np.dtype("<u2"), _to_bfloat16, _from_bfloat16),
}
"""By `rvqvae.data.store_dtype`. numpy has no bfloat16: its bits stand in a `uint16`."""
