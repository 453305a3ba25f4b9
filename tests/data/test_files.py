"""Motion of single files, written at another frame rate."""

import numpy as np
import pytest

from ds_rvqvae.data.files import Timing, retimed
from ds_rvqvae.motion.clip import ClipError
from ds_rvqvae.motion.layout import Channels

LAYOUT = (Channels("hips", "rotation_6d", 0, 6),)


@pytest.mark.parametrize("source", [None, Timing(30.0, 4)])
def test_a_rate_that_is_far_too_high_is_refused(source):
    motion = np.tile(np.float32([1, 0, 0, 0, 1, 0]), (4, 1))
    with pytest.raises(ClipError, match=r"cannot be written at 1e\+06 fps: more than \d+ frames would be"):
        retimed(motion, LAYOUT, 30.0, 1e6, source)
    found, fps = retimed(motion, LAYOUT, 30.0, 60, source)
    assert len(found) == 7 and fps == 60
