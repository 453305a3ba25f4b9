"""The tokenizers of several body parts, joined into one tokenizer of the body."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self, override

from ds_rvqvae import __version__
from ds_rvqvae.config.data import is_part_name
from ds_rvqvae.data.files import Rate, read_clip, write_clip
from ds_rvqvae.errors import UserError
from ds_rvqvae.model.exact import Lengths, as_tensor, check_not_padded, eager
from ds_rvqvae.model.frozen import KeepsFloatType
from ds_rvqvae.motion.clip import Clip, ClipError
from ds_rvqvae.motion.layout import (
    Channels,
    Layout,
    check_disjoint,
    feature_layout,
    layout_to_json,
    missing_channels,
    rotation_columns,
    smplx_layout,
    take_channels,
)
from ds_rvqvae.tokenizer.folder import (
    BODY,
    CONFIG,
    FORMAT_VERSION,
    check_same_reading,
    columns_for,
    read_body_table,
    reading_config,
)
from ds_rvqvae.tokenizer.hub import model_card
from ds_rvqvae.tokenizer.saved.writing import save_body
from ds_rvqvae.tokenizer.tokenizer import Array, MotionTokenizer

_LOOKS = 20
"""How many times a body is read again when another process replaces its table while it is read."""


class BodyTokenizer(KeepsFloatType):
    """Tokenizers of separate body parts, used as one tokenizer of the full motion.

    All parts take the same frame rate. Their code rates may differ, and so may the number of codes per clip. In a
    second stage it behaves like a `MotionTokenizer`.

    Args:
        parts: the tokenizers by body part.
        layout: layout of the full motion; each part's columns are found in it by name. By default SMPL-X's layout (433
            columns, `smplx_layout()`) if it has them all, else the parts' own columns one after another.

    Attributes:
        parts: the tokenizers by body part.
        layout: layout of the C columns of the full motion.
        fps: frame rate of the motion.

    Raises:
        UserError: no part, parts under wrong names, parts that overlap, columns that the layout does not
            have, or parts with different frame rates or reading rules.
    """

    def __init__(self, parts: Mapping[str, MotionTokenizer], layout: Layout | None = None) -> None:
        super().__init__()
        self.parts = dict(parts)
        if not self.parts:
            raise UserError("a body's tokenizer needs at least one part")
        for part, tokenizer in self.parts.items():
            trained = tokenizer.details.get("body_part")
            if not is_part_name(part):
                raise UserError(f"{part!r} is not the name of a body part; use letters, digits, - and _")
            if trained not in (None, part):
                raise UserError(f"the tokenizer given for {part} was trained on body part {trained}")
        check_disjoint((part, [own.name for own in tokenizer.layout]) for part, tokenizer in self.parts.items())
        self.layout = _whole_layout(self.parts.values()) if layout is None else layout
        self._columns: dict[str, NDArray[np.int64]] = {}
        for part, tokenizer in self.parts.items():
            missing = missing_channels(self.layout, tokenizer.layout)
            if missing is not None:
                raise UserError(f"the tokenizer of {part} takes {missing.name}, which is not in the layout of the body")
            self._columns[part] = take_channels(self.layout, [own.name for own in tokenizer.layout])[0]
        check_same_reading({part: tokenizer.details["reading"] for part, tokenizer in self.parts.items()})
        rates = {part: tokenizer.fps for part, tokenizer in self.parts.items()}
        if len(set(rates.values())) > 1:
            found = ", ".join(f"{part} {fps:g}" for part, fps in rates.items())
            raise UserError(f"the parts take different frame rates ({found}); train them with one --fps")
        self.fps = next(iter(rates.values()))
        for part, tokenizer in self.parts.items():
            # The prefix keeps a part's name from hiding an attribute of the module.
            self.add_module(f"part_{part}", tokenizer)

    @override
    def float_type(self) -> torch.dtype | None:
        return next((kept for one in self.parts.values() if (kept := one.float_type()) is not None), None)

    @override
    def requires_grad_(self, requires_grad: bool = True) -> Self:
        for tokenizer in self.parts.values():
            tokenizer.requires_grad_(requires_grad)
        return self

    @property
    def details(self) -> dict[str, Any]:
        """The first part's config file without its net; what it says of the motion is the same in all parts."""
        return next(iter(self.parts.values())).details

    @property
    def code_rates(self) -> dict[str, float]:
        """Codes per second and level, by part."""
        return {part: tokenizer.code_rate for part, tokenizer in self.parts.items()}

    @property
    def fingerprint(self) -> str:
        """A sha256 of the parts' names and fingerprints; it does not depend on their order."""
        fingerprints = sorted((part, tokenizer.fingerprint) for part, tokenizer in self.parts.items())
        return hashlib.sha256(json.dumps(fingerprints).encode()).hexdigest()

    @eager
    def encode(self, motion: Array, lengths: Lengths | None = None) -> dict[str, Array]:
        """Encodes motion into the codes of each part.

        Args:
            motion: one clip `[T, C]` or a padded batch `[B, T, C]`, array or tensor.
            lengths: frames of each clip of a batch, `[B]`, or of the one clip; all by default.

        Returns:
            by part, the result of its `MotionTokenizer.encode`: `[ceil(T / code_stride), Q]`, or a batch of these.

        Raises:
            ValueError: another shape, or lengths that do not fit it.
            TypeError: a path was given.
        """
        self._check_width(motion, "motion")
        return {part: self.parts[part].encode(motion[..., columns], lengths) for part, columns in self._columns.items()}

    @eager
    def decode(self, codes: Mapping[str, Array], lengths: Lengths | None = None, source: Array | None = None) -> Array:
        """Decodes the codes of the parts into motion of the full body, fp32.

        Args:
            codes: by part `[T', q]`, or batches `[B, T', q]`; arrays or tensors. Parts may be missing; their columns
                then come from `source`.
            lengths: frames of each clip of a batch, `[B]`, or of the one clip; by default those of `source`, and
                without a source the number of frames that the codes of every part cover.
            source: motion of the same number of clips, at least as long, for the columns without codes. Without it
                these columns are at rest: identity rotations, translation and expressions of 0.

        Returns:
            `[T, C]` or `[B, T, C]`, where T is the longest of `lengths`; zeros past a clip's end.

        Raises:
            ValueError: unknown parts, codes of clips of different lengths, lengths that do not fit, or, without
                lengths, a row that is -1 on all levels.
        """
        most = self._frames_of(codes)
        given = next(iter(codes.values()))
        clips: tuple[int, ...] = tuple(given.shape[:-2])
        if lengths is None:
            for own in codes.values():
                check_not_padded(as_tensor(own))
            frames = most if source is None else source.shape[-2]
            lengths = [frames] * clips[0] if clips else frames
        decoded = {part: as_tensor(self.parts[part].decode(codes[part], lengths)) for part in codes}
        frames = next(iter(decoded.values())).shape[-2]
        motion = self._background(source, (*clips, frames, self._width), next(iter(decoded.values())).device)
        for part, columns in decoded.items():
            motion[..., self._columns[part]] = columns
        if clips:
            for row, count in zip(motion, np.asarray(lengths).tolist(), strict=True):
                row[count:] = 0
        return motion.cpu().numpy() if isinstance(given, np.ndarray) else motion

    def encode_clip(self, clip: Clip) -> dict[str, NDArray[np.int64]]:
        """Encodes a clip, by part, as `encode` does; raises ClipError if a part's columns are missing."""
        width = clip.motion.shape[1]
        if clip.layout == feature_layout(width):
            if width != self._width:
                raise ClipError(f"{width} columns, this tokenizer takes {self._width}")
            return self.encode(clip.motion)
        codes = {}
        for part, tokenizer in self.parts.items():
            columns = columns_for(tokenizer.layout, clip.layout, takes_bare=False)
            codes[part] = tokenizer.encode(np.ascontiguousarray(clip.motion[:, columns]))
        return codes

    def decode_clip(self, codes: Mapping[str, NDArray[np.int64]], frames: int) -> tuple[NDArray[np.float32], Layout]:
        """Decodes one clip into motion `[frames, C]`, and returns the layout of the columns that the codes cover."""
        covered = {own.name for part in codes for own in self.parts[part].layout}
        layout = tuple(channels for channels in self.layout if channels.name in covered)
        return self.decode(codes, frames), layout

    def encode_file(self, file: str | Path) -> dict[str, NDArray[np.int64]]:
        """Encodes a file that holds one clip, by part, `[ceil(T / code_stride), Q]`; another frame rate is resampled.

        Raises:
            UserError: names the file and the problem.
        """
        try:
            return self.encode_clip(self._read(Path(file), tell=True))
        except ClipError as error:
            raise UserError(f"{file}: {error}") from None

    def decode_to_file(
        self,
        codes: Mapping[str, NDArray[np.int64]],
        file: str | Path,
        source: str | Path | None = None,
        fps: Rate | None = None,
    ) -> None:
        """Decodes one clip and writes it as a motion file, atomically.

        Args:
            codes: by part, `[T', q]`.
            file: the suffix says the format: `.npy` (a matrix of the columns of `layout`), `.bvh`, or `.npz` (BEAT2).
            source: the file that was encoded. It gives the clip's length and the columns without codes, for a BEAT2
                npz also all other keys, for BVH the hierarchy; BVH needs it. Without it the other columns are at rest,
                and the clip is as long as the codes of every part reach.
            fps: frame rate of the file, or "source" for that of `source`; by default the tokenizer's.

        Raises:
            UserError: another suffix; a source that cannot be read, has another length, or is `file` itself; a frame
                rate that cannot be written; columns that a BEAT2 npz has no place for.
            ValueError: as in `decode`.
        """
        clip = None if source is None else self._read(Path(source))
        frames = self._frames_of(codes) if clip is None else len(clip.motion)
        motion, layout = self.decode_clip(codes, frames)
        if clip is not None and Path(file).suffix.lower() == ".npy":
            try:
                rest = clip.motion[:, columns_for(self.layout, clip.layout)]
            except ClipError as error:
                raise UserError(f"{source}: {error}") from None
            motion, layout = self.decode(codes, frames, rest), self.layout
        config = reading_config(self.details, self.fps, str(source or file))
        write_clip(Path(file), motion, layout, config, None if source is None else Path(source), fps)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes each part's tokenizer into a folder of its name, and `body.json`. At every instant the folder holds
        one complete body: the new one or our older one. Other files in the folder are not touched.

        Raises:
            UserError: the folder holds something else, or has one of these names for something else.
            OSError: it cannot be written.
        """
        parts = {part: tokenizer._write for part, tokenizer in self.parts.items()}
        save_body(Path(folder), parts, self._table, model_card)

    def _table(self, contents: Mapping[str, str]) -> str:
        """The text of `body.json`."""
        values = {
            "format_version": FORMAT_VERSION,
            "ds_rvqvae_version": __version__,
            "parts": list(self.parts),
            "contents": dict(contents),
            "fps": self.fps,
            "code_rates": self.code_rates,
            "layout": layout_to_json(self.layout),
        }
        return json.dumps(values, indent=2) + "\n"

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        trainable: bool = False,
    ) -> "BodyTokenizer":
        """Loads a body that `save_pretrained` wrote.

        Args:
            dtype: of the nets; codebooks, distances and normalisation stay fp32.
            trainable: as in `MotionTokenizer`.

        Raises:
            UserError: names the folder or file and the problem.
        """
        folder = Path(folder)
        if not (folder / BODY).is_file():
            single = (folder / CONFIG).is_file()
            hint = "; it is the tokenizer of one part, which MotionTokenizer loads" if single else ""
            raise UserError(f"{folder}: not a body's tokenizer: {BODY} is missing{hint}")
        for _ in range(_LOOKS):
            table = read_body_table(folder)
            try:
                parts = {
                    part: MotionTokenizer._load(folder / part, dtype, device, trainable, table.contents.get(part))
                    for part in table.parts
                }
                refusal = None
            except UserError as error:
                refusal = error
            # The parts belong to this table only if it was not replaced meanwhile.
            if read_body_table(folder).text == table.text:
                break
        else:
            refusal = UserError(f"{folder}: another process keeps writing it; try again")
        if refusal is not None:
            raise refusal
        try:
            return cls(parts, table.layout)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from None

    @property
    def _width(self) -> int:
        return self.layout[-1].stop

    def _check_width(self, motion: Array, name: str) -> None:
        as_tensor(motion, "encode_file(path) encodes a file")  # a path is refused
        if motion.ndim not in (2, 3) or motion.shape[-1] != self._width:
            raise ValueError(f"{name} is {tuple(motion.shape)}; give [frames, {self._width}], or a batch of these")

    def _frames_of(self, codes: Mapping[str, Array]) -> int:
        """Returns the number of frames that the codes of every part cover."""
        if not isinstance(codes, Mapping):
            given = f"{codes!r}" if isinstance(codes, str | Path) else type(codes).__name__
            raise TypeError(
                f"codes are {given}, not arrays by part; ds_rvqvae.read_body_codes(path) reads those of a file, each "
                "under .codes"
            )
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
        """Returns the motion of the columns without codes."""
        if source is None:
            motion = torch.zeros(shape, dtype=torch.float32, device=device)
            columns = rotation_columns(self.layout)
            motion[..., columns[:, [0, 4]].reshape(-1)] = 1.0  # the ones of the identity's first two rows
            return motion
        self._check_width(source, "source")
        motion = as_tensor(source).to(device, torch.float32)
        if motion.shape[:-2] != shape[:-2] or motion.shape[-2] < shape[-2]:
            raise ValueError(f"source is {tuple(motion.shape)}, the codes give {shape}")
        return motion[..., : shape[-2], :].clone()

    def _read(self, file: Path, tell: bool = False) -> Clip:
        """Reads the one clip of a file, at this tokenizer's frame rate; raises UserError."""
        return read_clip(file, reading_config(self.details, self.fps, str(file)), tell)


def _whole_layout(tokenizers: Iterable[MotionTokenizer]) -> Layout:
    """Returns SMPL-X's layout if it has all columns of the tokenizers, else theirs one after another."""
    channels = [own for tokenizer in tokenizers for own in tokenizer.layout]
    if missing_channels(smplx_layout(), channels) is None:
        return smplx_layout()
    starts = np.cumsum([0, *(own.width for own in channels)]).tolist()
    return tuple(Channels(own.name, own.kind, *span) for own, span in zip(channels, pairwise(starts), strict=True))
