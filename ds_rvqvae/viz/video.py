"""Writing videos, completely or not at all: mp4 through ffmpeg, gif through Pillow."""

import shutil
import subprocess
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ds_rvqvae.errors import UserError
from ds_rvqvae.files import whole_file

SUFFIXES = (".mp4", ".gif")
_GIF_BYTES = 2**31
"""The most bytes of a GIF's frames, because Pillow holds all of them in memory until the last."""


def check_video_file(file: Path) -> None:
    """Raises UserError if this file cannot become a video: another suffix, a folder, or ffmpeg missing for an mp4."""
    if file.suffix.lower() not in SUFFIXES:
        raise UserError(f"--out {file}: a video is .mp4 or .gif")
    if file.is_dir():
        raise UserError(f"--out {file}: a folder; name a file in it")
    if file.suffix.lower() == ".mp4":
        _ffmpeg()


def write_video(pictures: Collection[NDArray[np.uint8]], file: Path, fps: float, size: tuple[int, int]) -> None:
    """Writes an mp4 (H.264, yuv420p) or a gif, by the file's suffix, completely or not at all.

    Args:
        pictures: uint8 `[height, width, 4]` RGBA each; each is used before the next is taken.
        size: width and height in pixels; both even for mp4.

    Raises:
        UserError: another suffix, a folder that cannot be written to, a full disk, no ffmpeg, or a gif too large for
            memory.
    """
    check_video_file(file)
    try:
        with whole_file(file) as content:
            if file.suffix.lower() == ".mp4":
                _write_mp4(pictures, content.name, fps, size)
            else:
                _write_gif(pictures, content, fps, size)
    except OSError as error:
        raise UserError(f"--out {file}: cannot be written: {error.strerror or error}") from None


def _ffmpeg() -> str:
    """Returns the path of ffmpeg; raises UserError if there is none."""
    try:
        import imageio_ffmpeg

        program: str = imageio_ffmpeg.get_ffmpeg_exe()
        return program
    except (ImportError, RuntimeError):
        found = shutil.which("ffmpeg")
        if found:
            return found
        raise UserError(
            "mp4 needs ffmpeg: pip install 'ds_rvqvae[render]' installs it; --out FILE.gif works without it"
        ) from None


def _write_mp4(pictures: Iterable[NDArray[np.uint8]], file: str, fps: float, size: tuple[int, int]) -> None:
    """Pipes raw pictures to ffmpeg, which encodes them while the next ones are drawn."""
    raw = ["-f", "rawvideo", "-pix_fmt", "rgba", "-s", f"{size[0]}x{size[1]}", "-r", f"{fps:.6f}", "-i", "-"]
    coded = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    command = [_ffmpeg(), "-hide_banner", "-loglevel", "error", "-y", *raw, *coded, "-f", "mp4", file]
    with tempfile.TemporaryFile() as complaints:
        try:
            ffmpeg = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                start_new_session=True,  # Ctrl-C reaches only us, and we end ffmpeg
            )
        except OSError as error:
            raise UserError(f"{command[0]}: cannot be run: {error.strerror or error}; use --out FILE.gif") from None
        with ffmpeg:
            assert ffmpeg.stdin is not None
            try:
                for picture in pictures:
                    ffmpeg.stdin.write(picture.data)
                ffmpeg.stdin.close()
            except BrokenPipeError:
                pass  # ffmpeg has ended; its reason is read below
            except BaseException:
                ffmpeg.kill()
                raise
        if ffmpeg.returncode:
            complaints.seek(0)
            lines = complaints.read().decode(errors="replace").split("\n")
            reason = next((line for line in reversed(lines) if line.strip()), f"exit status {ffmpeg.returncode}")
            raise OSError(f"ffmpeg: {reason.strip()}")


def _write_gif(pictures: Collection[NDArray[np.uint8]], content: BinaryIO, fps: float, size: tuple[int, int]) -> None:
    """Writes a gif with one palette; frames last whole hundredths of a second, rounded so that the total is right."""
    if len(pictures) * size[0] * size[1] > _GIF_BYTES:
        raise UserError(
            f"a gif of {len(pictures)} frames is too large; use .mp4, or a smaller --seconds, --fps or --size"
        )
    ends = np.round(100.0 * np.arange(len(pictures) + 1) / fps)
    images = (Image.fromarray(picture[..., :3]) for picture in pictures)
    first = next(images).quantize(255, dither=Image.Dither.NONE)
    rest = (image.quantize(palette=first, dither=Image.Dither.NONE) for image in images)
    durations = (10 * np.diff(ends)).astype(int).tolist()
    first.save(content, "GIF", save_all=True, append_images=rest, duration=durations, loop=0, optimize=False)
