"""Videos: written whole or not at all."""

import numpy as np
import pytest

from ds_rvqvae.errors import UserError
from ds_rvqvae.viz.video import write_video

SIZE = (480, 240)


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_video_that_breaks_off_leaves_the_older_one(tmp_path, suffix):
    class BreaksOff:
        def __len__(self):
            return 9

        def __iter__(self):
            yield np.zeros((240, 480, 4), np.uint8)
            yield np.full((240, 480, 4), 255, np.uint8)
            raise RuntimeError("no third picture")

    file = tmp_path / f"video{suffix}"
    file.write_bytes(b"older")
    with pytest.raises(RuntimeError, match="no third picture"):
        write_video(BreaksOff(), file, 30.0, SIZE)
    assert file.read_bytes() == b"older" and list(tmp_path.iterdir()) == [file]


def test_a_gif_beyond_memory_is_refused_before_it_is_drawn(tmp_path):
    with pytest.raises(UserError, match=r"use \.mp4"):
        write_video(range(100_000), tmp_path / "long.gif", 30.0, (960, 480))
    assert not list(tmp_path.iterdir())
