"""The tokenizers of several body parts as one tokenizer of the body."""

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
"""How often a body is read anew where its table is replaced meanwhile."""


class BodyTokenizer(KeepsFloatType):
    """Tokenizers of body parts that share nothing, as one tokenizer of the whole motion.

    All parts take one frame rate; their code rates may differ, and with them the numbers of codes a clip has. In a
    second stage it is what each `MotionTokenizer` is there.

    Args:
        parts: the tokenizers by body part.
        layout: of the whole motion, in which each part's channels are found by name. Without it that is SMPL-X's (433
            columns, `smplx_layout()`) where it has them all, else the parts' own channels one after another.

    Attributes:
        parts: the tokenizers by body part.
        layout: of the C columns of the whole motion.
        fps: frames a second of the motion.

    Raises:
        UserError: no part, one under another's name, parts that overlap or take what the layout does not have, or
            unlike rates or rules of reading.
    """

    def __init__(self, parts: Mapping[str, MotionTokenizer], layout: Layout | None = None) -> None:
        super().__init__()
        self.parts = dict(parts)
        if not self.parts:
            raise UserError("a body's tokenizer needs a part")
        for part, tokenizer in self.parts.items():
            trained = tokenizer.details.get("body_part")
            if not is_part_name(part):
                raise UserError(f"no body part {part!r}; name parts with letters, digits, - and _")
            if trained not in (None, part):
                raise UserError(f"the tokenizer of {part} is that of body part {trained}")
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
            raise UserError(f"the parts take different frames a second ({found}); train them with one --fps")
        self.fps = next(iter(rates.values()))
        for part, tokenizer in self.parts.items():
            # No part may be called like an attribute of a module.
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
        """What the parts' config files say beside their nets, which of the motion is the same in all."""
        return next(iter(self.parts.values())).details

    @property
    def code_rates(self) -> dict[str, float]:
        """Codes a second and level by part."""
        return {part: tokenizer.code_rate for part, tokenizer in self.parts.items()}

    @property
    def fingerprint(self) -> str:
        """A sha256 of the parts' names and fingerprints, whatever their order."""
        fingerprints = sorted((part, tokenizer.fingerprint) for part, tokenizer in self.parts.items())
        return hashlib.sha256(json.dumps(fingerprints).encode()).hexdigest()

    @eager
    def encode(self, motion: Array, lengths: Lengths | None = None) -> dict[str, Array]:
        """Motion to the codes of each part.

        Args:
            motion: one clip `[T, C]` or a padded batch `[B, T, C]`, array or tensor.
            lengths: frames of each clip of a batch, `[B]`, or of the one clip; all by default.

        Returns:
            by part what its `MotionTokenizer.encode` gives: `[ceil(T / code_stride), Q]`, or a batch of such.

        Raises:
            ValueError: for another shape, or lengths that do not fit it.
            TypeError: a path.
        """
        self._check_width(motion, "motion")
        return {part: self.parts[part].encode(motion[..., columns], lengths) for part, columns in self._columns.items()}

    @eager
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
            `[T, C]` or `[B, T, C]`, T being the longest of `lengths`; zeros past a clip's end.

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
        """The codes of a clip by part, as `encode`; raises ClipError where it has not all their columns."""
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
        """Codes of one clip to its motion `[frames, C]`, and which channels of it the codes cover."""
        covered = {own.name for part in codes for own in self.parts[part].layout}
        layout = tuple(channels for channels in self.layout if channels.name in covered)
        return self.decode(codes, frames), layout

    def encode_file(self, file: str | Path) -> dict[str, NDArray[np.int64]]:
        """The codes of a file with one clip by part, `[ceil(T / code_stride), Q]`; another frame rate is resampled.

        Raises:
            UserError: naming the file and what is wrong with it.
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
        """Writes codes of one clip as a motion file, whole or not at all.

        Args:
            codes: by part, `[T', q]`.
            file: `.npy`, a matrix of the columns of `layout`; `.bvh`, such a file; `.npz`, one of BEAT2.
            source: the file that was encoded: gives the clip's length and what the codes do not cover, for a BEAT2 npz
                also all other keys, for BVH the hierarchy. Without it, which a BVH file does not do, the rest is at
                rest and the length what the codes of every part reach.
            fps: frames a second of the file, or "source" for those of `source`; by default the tokenizer's.

        Raises:
            UserError: another suffix; a source that cannot be read, of another length, or `file` itself; no such rate;
                a BEAT2 npz of joints that it has not.
            ValueError: as `decode`.
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
        """Writes each part's tokenizer into a folder of its name, and `body.json`. The folder holds one whole body at
        every instant, the new one or that of ours which was there; files of others in it stay as they are.

        Raises:
            UserError: the folder exists and holds something else, or something else under the name of one of the files.
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
        """Loads what `save_pretrained` wrote.

        Args:
            dtype: of the nets; codebooks, distances and normalisation stay fp32.
            trainable: as of `MotionTokenizer`.

        Raises:
            UserError: naming the folder or file and what is wrong with it.
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
            # Parts are those of the table only where no other has taken its place meanwhile.
            if read_body_table(folder).text == table.text:
                break
        else:
            refusal = UserError(f"{folder}: another process writes it all the time; try again")
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
            raise ValueError(f"{name} is {tuple(motion.shape)}; give [frames, {self._width}], or a batch of such")

    def _frames_of(self, codes: Mapping[str, Array]) -> int:
        """The frames that the codes of every part reach."""
        if not isinstance(codes, Mapping):
            given = f"{codes!r}" if isinstance(codes, str | Path) else type(codes).__name__
            raise TypeError(
                f"codes are {given}, not arrays by part; ds_rvqvae.read_body_codes(path) has those of a file, each "
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
        """The motion that columns without codes keep."""
        if source is None:
            motion = torch.zeros(shape, dtype=torch.float32, device=device)
            columns = rotation_columns(self.layout)
            motion[..., columns[:, [0, 4]].reshape(-1)] = 1.0  # of the first two rows of the identity
            return motion
        self._check_width(source, "source")
        motion = as_tensor(source).to(device, torch.float32)
        if motion.shape[:-2] != shape[:-2] or motion.shape[-2] < shape[-2]:
            raise ValueError(f"source is {tuple(motion.shape)}, the codes give {shape}")
        return motion[..., : shape[-2], :].clone()

    def _read(self, file: Path, tell: bool = False) -> Clip:
        """The one clip of a file, at this tokenizer's frame rate; raises UserError."""
        return read_clip(file, reading_config(self.details, self.fps, str(file)), tell)


def _whole_layout(tokenizers: Iterable[MotionTokenizer]) -> Layout:
    """SMPL-X's layout where it has all channels of the tokenizers, else these one after another."""
    channels = [own for tokenizer in tokenizers for own in tokenizer.layout]
    if missing_channels(smplx_layout(), channels) is None:
        return smplx_layout()
    starts = np.cumsum([0, *(own.width for own in channels)]).tolist()
    return tuple(Channels(own.name, own.kind, *span) for own, span in zip(channels, pairwise(starts), strict=True))
