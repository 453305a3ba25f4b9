"""Videos: written completely or not at all."""

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from ds_rvqvae.errors import UserError
from ds_rvqvae.viz.video import check_video_file, write_video

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


def _grey(*shades):
    return [np.full((240, 480, 4), shade, np.uint8) for shade in shades]


def test_an_mp4_shows_the_pictures_in_order(tmp_path):
    write_video(_grey(20, 120, 220), tmp_path / "a.mp4", 10.0, SIZE)
    frames = imageio_ffmpeg.read_frames(str(tmp_path / "a.mp4"))
    meta = next(frames)
    assert meta["size"] == SIZE and meta["fps"] == 10.0
    shades = [np.frombuffer(frame, np.uint8).mean() for frame in frames]
    assert shades == pytest.approx([20, 120, 220], abs=4)


def test_a_gif_shows_the_pictures_in_order_and_keeps_time(tmp_path):
    # From black to white, a third further in each picture.
    ramp = np.broadcast_to(np.linspace(0, 255, 480)[None, :, None], (240, 480, 4)).astype(np.uint8)
    write_video([np.roll(ramp, -160 * step, axis=1) for step in range(3)], tmp_path / "a.GIF", 30.0, SIZE)
    shades, durations = [], []
    with Image.open(tmp_path / "a.GIF") as image:
        assert image.size == SIZE and image.n_frames == 3 and image.info["loop"] == 0
        for frame in range(3):
            image.seek(frame)
            durations.append(image.info["duration"])
            shades.append(int(image.convert("RGB").getpixel((0, 100))[0]))
    # A tenth of a second in hundredths.
    assert durations == [30, 40, 30] and shades == pytest.approx([0, 85, 170], abs=3)


@pytest.mark.parametrize("name", ["a.avi", "a", "folder.gif"])
def test_other_files_are_refused(tmp_path, name):
    (tmp_path / "folder.gif").mkdir()
    with pytest.raises(UserError, match="a folder; name a file in it" if name == "folder.gif" else r"\.mp4 or \.gif"):
        check_video_file(tmp_path / name)


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_folder_that_is_a_file_is_refused_in_one_line(tmp_path, suffix):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written: ") as raised:
        write_video(_grey(0), tmp_path / "file" / f"a{suffix}", 30.0, SIZE)
    assert "\n" not in str(raised.value)
