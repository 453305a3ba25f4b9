"""What readers have in common: matrices, frame rates, keys that are missing, files below a folder."""

import numpy as np
import pytest

from ds_rvqvae.data.formats.base import matrix
from ds_rvqvae.motion.clip import ClipError


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.zeros((3, 4, 5)), r"shape \[3, 4, 5\], not \[frames, 4\]"),
        (np.zeros(()), r"shape \[\]"),
        (np.zeros((3, 5)), r"shape \[3, 5\]"),
        (np.zeros((0, 4)), "empty"),
        (np.full((3, 4), "x"), "<U1, not numbers"),
        (np.zeros((3, 4), "datetime64[s]"), "not numbers"),
        (np.zeros((3, 4), complex), "complex128, not numbers"),
        (np.zeros((3, 4), bool), "bool, not numbers"),
    ],
)
def test_a_matrix_is_real_numbers_in_rows_and_columns(values, reason):
    with pytest.raises(ClipError, match=reason):
        matrix(values, "poses", 4)
