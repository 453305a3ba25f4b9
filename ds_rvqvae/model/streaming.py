"""Encoding and decoding piece by piece, as motion comes in. Whole clips take the same way, so that both agree."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ds_rvqvae.model.chunks import ChunkedNet
from ds_rvqvae.model.rvqvae import RVQVAE

_LAST_CHUNK = 32
"""A clip's last chunk, which also brings out what lags behind, is a multiple of so many codes: few different shapes."""


class EncoderStream:
    """Motion of one clip in, its codes out; made by `MotionTokenizer.encoder_stream`.

    Args:
        model: in eval mode.
        normalise: of frames `[n, C]` in the data's own units, to the model's device.
        chunk: codes computed at a time.

    Raises:
        ValueError: for a model with group norm, which needs the whole clip.
    """

    def __init__(self, model: RVQVAE, normalise: Callable[[Tensor], Tensor], chunk: int) -> None:
        self._model, self._normalise = model, normalise
        self._net = ChunkedNet(model.encoder)
        self._chunker = _Chunker(chunk * model.config.code_stride)
        self._codes = 0
        self._last: Tensor | None = None

    @property
    def latency(self) -> int:
        """Frames that can follow a code's last frame before the code comes out."""
        stride = self._model.config.code_stride
        return self._chunker.size - stride + self._net.delay * stride

    @torch.no_grad()
    def push(self, motion: Tensor | NDArray[np.floating]) -> Tensor:
        """The next frames `[n, C]`, any number of them; gives the codes `[m, Q]` that are now known, int64.

        Raises:
            ValueError: another shape, values that are not finite, or the clip is finished.
        """
        motion, features = torch.as_tensor(motion), self._model.in_features
        if motion.dim() != 2 or motion.shape[1] != features:
            raise ValueError(f"motion is {tuple(motion.shape)}; this tokenizer takes [frames, {features}]")
        if len(motion):
            self._last = motion[-1:].clone()
        return self._joined([self._run(chunk) for chunk in self._chunker.push(motion)])

    @torch.no_grad()
    def finish(self) -> Tensor:
        """The clip's last codes. Frames that do not fill a code are padded with copies of the last."""
        stride, found = self._model.config.code_stride, []
        missing = -self._chunker.pushed % stride
        if missing and self._last is not None:
            found.append(self.push(self._last.expand(missing, -1)))
        length, rest = self._chunker.pushed, self._chunker.finish()
        if self._codes < length // stride:
            found.append(self._run(rest, length, _last_size(len(rest) // stride + self._net.delay) * stride))
        return self._joined(found)

    def _run(self, frames: Tensor, length: int | None = None, size: int | None = None) -> Tensor:
        """Codes that a chunk of `size` frames makes known, those after `frames` being past the clip's end."""
        parameter = next(self._model.encoder.parameters())
        chunk = parameter.new_zeros(1, self._model.in_features, size or len(frames))
        chunk[0, :, : len(frames)] = self._normalise(frames).t()
        latents, first = self._net.push(chunk, length)
        latents = _known(latents, first, None if length is None else length // self._model.config.code_stride)
        self._codes += latents.shape[-1]
        return self._model.quantizer.encode(latents[0].t())

    def _joined(self, codes: list[Tensor]) -> Tensor:
        empty = self._model.quantizer.updates.new_zeros(0, self._model.config.num_quantizers)
        return torch.cat([empty, *codes])


class DecoderStream:
    """Codes of one clip in, its motion out; made by `MotionTokenizer.decoder_stream`.

    Args:
        model: in eval mode.
        denormalise: of frames `[n, C]` as the model gives them, to the data's own units.
        chunk: codes computed at a time.

    Raises:
        ValueError: for a model with group norm, which needs the whole clip.
    """

    def __init__(self, model: RVQVAE, denormalise: Callable[[Tensor], Tensor], chunk: int) -> None:
        self._model, self._denormalise = model, denormalise
        self._net = ChunkedNet(model.decoder)
        self._chunker = _Chunker(chunk)
        self._frames = 0
        self._levels: int | None = None

    @property
    def latency(self) -> int:
        """Frames that can follow a frame, as codes, before it comes out."""
        return self._chunker.size * self._model.config.code_stride - 1 + self._net.delay

    @torch.no_grad()
    def push(self, codes: Tensor | NDArray[np.integer]) -> Tensor:
        """The next codes `[m, q]`, any number of them; gives the frames `[n, C]` that are now known, fp32.

        Raises:
            ValueError: another shape or number of levels, codes that do not exist, or the clip is finished.
        """
        codes = torch.as_tensor(codes)
        if codes.dim() != 2 or codes.is_floating_point() or self._levels not in (None, codes.shape[1]):
            raise ValueError(
                f"codes are {codes.dtype} {tuple(codes.shape)}; give integers [codes, {self._levels or 'levels'}]"
            )
        self._levels = codes.shape[1]
        return self._joined([self._run(chunk) for chunk in self._chunker.push(codes)])

    @torch.no_grad()
    def finish(self) -> Tensor:
        """The clip's last frames."""
        stride, found = self._model.config.code_stride, []
        length, rest = self._chunker.pushed, self._chunker.finish()
        if self._frames < length * stride:
            found.append(self._run(rest, length, _last_size(len(rest) - -self._net.delay // stride)))
        return self._joined(found)

    def _run(self, codes: Tensor, length: int | None = None, size: int | None = None) -> Tensor:
        """Frames that a chunk of `size` codes makes known, those after `codes` being past the clip's end."""
        parameter = next(self._model.decoder.parameters())
        chunk = parameter.new_zeros(1, self._model.config.code_dim, size or len(codes))
        if len(codes):
            chunk[0, :, : len(codes)] = self._model.quantizer.decode(codes.to(parameter.device)).t()
        motion, first = self._net.push(chunk, length)
        motion = _known(motion, first, None if length is None else length * self._model.config.code_stride)
        self._frames += motion.shape[-1]
        return self._denormalise(motion[0].t().float())

    def _joined(self, motion: list[Tensor]) -> Tensor:
        empty = self._denormalise(self._model.quantizer.usage_counts.new_zeros(0, self._model.in_features))
        return torch.cat([empty, *motion])


class _Chunker:
    """Cuts rows that come in pieces of any length into chunks of `size`."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.pushed = 0
        """Rows so far."""
        self._waiting: Tensor | None = None
        """Less than a chunk; None before the first rows."""
        self._finished = False

    def push(self, rows: Tensor) -> list[Tensor]:
        """The chunks that `rows [n, …]` complete; they are views, what is left over is a copy."""
        if self._finished:
            raise ValueError("this stream is finished; a new clip takes a new one")
        self.pushed += len(rows)
        if self._waiting is not None:
            rows = torch.cat([self._waiting, rows])
        whole = len(rows) // self.size * self.size
        self._waiting = rows[whole:].clone()
        return list(torch.split(rows[:whole], self.size)) if whole else []

    def finish(self) -> Tensor:
        """What is left over, `[0]` where nothing ever came; nothing comes after it."""
        if self._finished:
            raise ValueError("this stream is finished; a new clip takes a new one")
        self._finished = True
        return torch.zeros(0) if self._waiting is None else self._waiting


def _last_size(codes: int) -> int:
    return -(-codes // _LAST_CHUNK) * _LAST_CHUNK


def _known(output: Tensor, first: int, length: int | None) -> Tensor:
    """The samples of `[1, channels, samples]`, the first at position `first`, that are inside the clip."""
    last = output.shape[-1] if length is None else max(length - first, 0)
    return output[..., max(-first, 0) : last]
