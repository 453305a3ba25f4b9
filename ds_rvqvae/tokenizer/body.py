"""The tokenizers of several body parts as one tokenizer of the body."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ds_rvqvae import __version__
from ds_rvqvae.data.clips import Clip, ClipError, LeftOut
from ds_rvqvae.data.layout import (
    BODY_PART_CHANNELS,
    Layout,
    check_disjoint,
    rotation_columns,
    select_columns,
    smplx_layout,
)
from ds_rvqvae.data.motion_files import BEAT2, open_motion_file, read_beat2_source, rest_source, write_beat2
from ds_rvqvae.errors import UserError
from ds_rvqvae.profile import BODY_PARTS, DataConfig
from ds_rvqvae.tokenizer.folder import BODY, CONFIG, FORMAT_VERSION, whole_folder
from ds_rvqvae.tokenizer.tokenizer import Array, Lengths, MotionTokenizer


class BodyTokenizer:
    """Tokenizers of body parts that share nothing, as one tokenizer of SMPL-X's body.

    Motion has the 433 columns of `smplx_layout()`. All parts take one frame rate; their code rates may differ, and with
    them the numbers of codes a clip has.

    Attributes:
        parts: the tokenizers by body part.
        fps: frames a second of the motion.

    Raises:
        UserError: no part, an unknown one, parts that overlap, other columns than their name says, or unlike rates.
    """

    formats = (BEAT2,)

    def __init__(self, parts: Mapping[str, MotionTokenizer]):
        self.parts = dict(parts)
        if not self.parts:
            raise UserError("a body's tokenizer needs a part")
        self._layout = smplx_layout()
        self._columns: dict[str, np.ndarray] = {}
        for part, tokenizer in self.parts.items():
            if part not in BODY_PARTS:
                raise UserError(f"no body part {part!r}; known are {', '.join(BODY_PARTS)}")
            self._columns[part], layout = select_columns(self._layout, part)
            if tokenizer.layout != layout:
                raise UserError(f"the tokenizer of {part} takes other columns than that body part has")
        check_disjoint(list(self.parts))
        rates = {part: tokenizer.fps for part, tokenizer in self.parts.items()}
        if len(set(rates.values())) > 1:
            found = ", ".join(f"{part} {fps:g}" for part, fps in rates.items())
            raise UserError(f"the parts take different frames a second ({found}); train them with one --fps")
        self.fps = next(iter(rates.values()))

    @property
    def code_rates(self) -> dict[str, float]:
        """Codes a second and level by part."""
        return {part: tokenizer.code_rate for part, tokenizer in self.parts.items()}

    @property
    def fingerprint(self) -> str:
        """A sha256 of the parts' names and fingerprints, whatever their order."""
        fingerprints = sorted((part, tokenizer.fingerprint) for part, tokenizer in self.parts.items())
        return hashlib.sha256(json.dumps(fingerprints).encode()).hexdigest()

    def encode(self, motion: Array, lengths: Lengths | None = None) -> dict[str, Array]:
        """Motion to the codes of each part.

        Args:
            motion: one clip `[T, 433]` or a padded batch `[B, T, 433]`, array or tensor.
            lengths: frames of each clip of a batch, `[B]`, or of the one clip; all by default.

        Returns:
            by part what its `MotionTokenizer.encode` gives: `[ceil(T / code_stride), Q]`, or a batch of such.

        Raises:
            ValueError: for another shape, or lengths that do not fit it.
        """
        self._check_width(motion, "motion")
        return {part: self.parts[part].encode(motion[..., columns], lengths) for part, columns in self._columns.items()}

    def decode(self, codes: Mapping[str, Array], lengths: Lengths | None = None, source: Array | None = None) -> Array:
        """Codes of the parts to motion of the whole body, fp32.

        Args:
            codes: by part `[T', q]`, or batches `[B, T', q]`; arrays or tensors. A part left out counts as one that is
                not covered.
            lengths: frames of each clip of a batch, `[B]`, or of the one clip; by default those of `source`, and
                without it what the codes of every part reach.
            source: motion of as many clips, at least as long, that columns without codes are taken from. Without it
                these are at rest: rotations of none, translation and expressions of 0.

        Returns:
            `[T, 433]` or `[B, T, 433]`, T being the longest of `lengths`; zeros past a clip's end.

        Raises:
            ValueError: unknown parts, codes of clips of different lengths, or lengths that do not fit.
        """
        given = next(iter(codes.values()), None)
        most = self._frames_of(codes)
        clips = given.shape[:-2]
        if lengths is None:
            frames = most if source is None else source.shape[-2]
            lengths = [frames] * clips[0] if clips else frames
        decoded = {part: torch.as_tensor(self.parts[part].decode(codes[part], lengths)) for part in codes}
        frames = next(iter(decoded.values())).shape[-2]
        motion = self._background(source, (*clips, frames, self._width), next(iter(decoded.values())).device)
        for part, columns in decoded.items():
            motion[..., self._columns[part]] = columns
        if clips:
            for row, count in zip(motion, np.asarray(lengths).tolist(), strict=True):
                row[count:] = 0
        return motion.cpu().numpy() if isinstance(given, np.ndarray) else motion

    def encode_clip(self, clip: Clip) -> dict[str, np.ndarray]:
        """The codes of a clip by part, as `encode`; raises ClipError where its columns are not SMPL-X's."""
        if clip.layout != self._layout:
            raise ClipError("not a BEAT2 clip, which the body's tokenizer takes")
        return self.encode(clip.motion)

    def decode_clip(self, codes: Mapping[str, np.ndarray], frames: int) -> tuple[np.ndarray, Layout]:
        """Codes of one clip to its motion `[frames, 433]`, and which channels of it the codes cover."""
        covered = {name for part in codes for name in BODY_PART_CHANNELS[part]}
        layout = tuple(channels for channels in self._layout if channels.name in covered)
        return self.decode(codes, frames), layout

    def encode_file(self, file: str | Path) -> dict[str, np.ndarray]:
        """The codes of a BEAT2 npz by part, `[ceil(T / code_stride), Q]`; motion at another rate is resampled.

        Raises:
            UserError: naming the file and what is wrong with it.
        """
        return self.encode(self._read(Path(file)))

    def decode_to_file(
        self, codes: Mapping[str, np.ndarray], file: str | Path, source: str | Path | None = None
    ) -> None:
        """Writes codes of one clip as a BEAT2 npz at this tokenizer's frame rate, whole or not at all.

        Args:
            codes: by part, `[T', q]`.
            source: the BEAT2 npz that was encoded: gives the clip's length, what the codes do not cover and all other
                keys. Without it the rest is at rest and the length what the codes of every part reach.

        Raises:
            UserError: a source that cannot be read, or of another length.
            ValueError: as `decode`.
        """
        frames = self._frames_of(codes) if source is None else len(self._read(Path(source)))
        try:
            kept = rest_source(frames, self.fps) if source is None else read_beat2_source(Path(source))
            motion, layout = self.decode_clip(codes, frames)
            write_beat2(Path(file), motion, layout, self.fps, kept)
        except ClipError as error:
            raise UserError(f"{source or file}: {error}") from None

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes each part's tokenizer into a folder of its name, and `body.json`; all of it or nothing is there.

        Raises:
            UserError: the folder exists and holds something else than a body's tokenizer.
        """
        with whole_folder(Path(folder), BODY) as unfinished:
            for part, tokenizer in self.parts.items():
                tokenizer.save_pretrained(unfinished / part)
            values = {
                "format_version": FORMAT_VERSION,
                "ds_rvqvae_version": __version__,
                "parts": list(self.parts),
                "fps": self.fps,
                "code_rates": self.code_rates,
            }
            (unfinished / BODY).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> "BodyTokenizer":
        """Loads what `save_pretrained` wrote.

        Args:
            dtype: of the nets; codebooks, distances and normalisation stay fp32.

        Raises:
            UserError: naming the folder or file and what is wrong with it.
        """
        folder = Path(folder)
        if not (folder / BODY).is_file():
            single = (folder / CONFIG).is_file()
            hint = "; it is the tokenizer of one part, which MotionTokenizer loads" if single else ""
            raise UserError(f"{folder}: not a body's tokenizer: {BODY} is missing{hint}")
        parts = {}
        for part in _parts_in(folder / BODY):
            parts[part] = MotionTokenizer.from_pretrained(folder / part, dtype=dtype, device=device)
        try:
            return cls(parts)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from None

    @property
    def _width(self) -> int:
        return self._layout[-1].stop

    def _check_width(self, motion: Array, name: str) -> None:
        if motion.ndim not in (2, 3) or motion.shape[-1] != self._width:
            raise ValueError(f"{name} is {tuple(motion.shape)}; give [frames, {self._width}], or a batch of such")

    def _frames_of(self, codes: Mapping[str, Array]) -> int:
        """The frames that the codes of every part reach."""
        if not codes or not codes.keys() <= self.parts.keys():
            raise ValueError(f"codes of {', '.join(codes) or 'no part'}; this tokenizer has {', '.join(self.parts)}")
        strides = {part: self.parts[part].code_stride for part in codes}
        reach = {part: codes[part].shape[-2] * strides[part] for part in codes}
        least = min(reach.values())
        if any(reach[part] - least >= stride for part, stride in strides.items()):
            found = ", ".join(f"{part} {frames}" for part, frames in reach.items())
            raise ValueError(f"codes are not of one clip: they stand for different numbers of frames ({found})")
        return least

    def _background(self, source: Array | None, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """The motion that columns without codes keep."""
        if source is None:
            motion = torch.zeros(shape, device=device)
            columns = rotation_columns(self._layout)
            motion[..., columns[:, [0, 4]].reshape(-1)] = 1.0  # of the first two rows of the identity
            return motion
        self._check_width(source, "source")
        motion = torch.as_tensor(source, dtype=torch.float32, device=device)
        if motion.shape[:-2] != shape[:-2] or motion.shape[-2] < shape[-2]:
            raise ValueError(f"source is {tuple(motion.shape)}, the codes give {shape}")
        return motion[..., : shape[-2], :].clone()

    def _read(self, file: Path) -> np.ndarray:
        """The motion `[T, 433]` of a BEAT2 npz at this tokenizer's frame rate."""
        try:
            (clip,) = open_motion_file(file, DataConfig(fps=self.fps)).clips()
        except (ClipError, ValueError) as error:
            raise UserError(f"{file}: not one BEAT2 clip: {error}") from None
        if isinstance(clip, LeftOut):
            raise UserError(f"{file}: {clip.reason}")
        if clip.layout != self._layout:
            raise UserError(f"{file}: not a BEAT2 clip, which the body's tokenizer takes")
        return clip.motion


def _parts_in(file: Path) -> list[str]:
    """The parts that a `body.json` names."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        version, parts = values["format_version"], values["parts"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not a body's: {type(error).__name__}: {error}") from None
    if version != FORMAT_VERSION:
        raise UserError(f"{file}: format_version {version}, known here: {FORMAT_VERSION}")
    # Names of folders: none that leads out of this one.
    if not isinstance(parts, list) or not parts or not all(part in BODY_PARTS for part in parts):
        raise UserError(f"{file}: parts are {json.dumps(parts)}; known are {', '.join(BODY_PARTS)}")
    return parts
