"""Encoding and decoding piece by piece, as motion comes in. Complete clips use the same code, so both give the same."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ds_rvqvae.model.exact import as_tensor, eager, exactly
from ds_rvqvae.model.nets import Convolution, ResidualBlock, ResidualStack, Upsample, convolve, join_past, zero_outside
from ds_rvqvae.model.rvqvae import RVQVAE
from ds_rvqvae.model.vq import checked_latents

_LAST_CHUNK = 32
"""A clip's last chunk, which also flushes the delayed output, is a multiple of so many codes: shapes are few."""

_Past = tuple[Tensor, ...]
"""The part of its input that a layer keeps for the next chunk; it is never written to."""


class _State(NamedTuple):
    """The state of a stream. It never changes: a call makes a new one, which replaces it if the call succeeds."""

    rows: Tensor
    """`[chunk, …]`; the first `filled` rows wait for the rest of a chunk. The others have no meaning, so later states
    of the same chunk can share the memory."""
    filled: int = 0
    first: int = 0
    """Rows that have gone through the net; the next chunk begins here."""
    pasts: tuple[_Past, ...] = ()
    """The input that each layer of the net keeps; empty before the first chunk."""
    known: int = 0
    """Samples that have come out."""
    levels: int | None = None
    """Number of levels of a decoder's codes; None before the first codes."""

    @property
    def length(self) -> int:
        """Rows so far."""
        return self.first + self.filled

    @property
    def waiting(self) -> Tensor:
        """The rows that wait for the rest of a chunk."""
        return self.rows[: self.filled]

    def filled_with(self, more: Tensor, size: int) -> "_State":
        """The state with more rows, which must fit into its chunk; it copies them, since the caller may change them."""
        if not len(more):
            return self
        rows = self.rows
        if not self.filled:
            with torch.inference_mode(False):  # made inside that mode, it could not be written to outside
                rows = torch.empty(size, *more.shape[1:], dtype=more.dtype, device=more.device)
        rows[self.filled : self.filled + len(more)] = more
        return self._replace(rows=rows, filled=self.filled + len(more))


class _Stream(ABC):
    """Runs the rows of one clip through a net, in chunks of `size`, whatever the sizes of the pieces pushed."""

    def __init__(self, model: RVQVAE, net: nn.Sequential, size: int, nothing: Tensor) -> None:
        model.restore()
        self._model, self._size, self._stride = model, size, model.config.code_stride
        self._net, self._parameters = ChunkedNet(net), net.parameters
        self._state: _State | None = _State(nothing)

    @eager
    def finish(self) -> Tensor:
        """Ends the clip; returns the remaining output. Missing frames of the last code are copies of the last frame."""
        state, known = self._unfinished(), list[Tensor]()
        with exactly(self._model):
            self._end(state, known)
            joined = self._joined(known)
        self._state = None
        return joined

    def _unfinished(self) -> _State:
        if self._state is None:
            raise ValueError("this stream is finished; a new clip takes a new one")
        return self._state

    def _take(self, state: _State, rows: Tensor, known: list[Tensor]) -> _State:
        """The state after more rows; the output that they complete is added to `known`."""
        while state.filled + len(rows) >= self._size:
            room = self._size - state.filled
            chunk = state.filled_with(rows[:room], self._size).rows if state.filled else rows[:room]
            state, rows = self._run(state._replace(filled=0), chunk, known), rows[room:]
        return state.filled_with(rows, self._size)

    def _run(
        self, state: _State, rows: Tensor, known: list[Tensor], length: int | None = None, size: int | None = None
    ) -> _State:
        """The state after a chunk of `size` rows: `rows`, and zeros after them if the clip ends at `length`."""
        inputs = self._inputs(rows)
        chunk = next(self._parameters()).new_zeros(1, inputs.shape[1], size or len(rows))
        chunk[0, :, : len(rows)] = inputs.t()
        output, first, pasts = self._net.push(chunk, state.first, state.pasts, length)
        # Samples before the clip and past its end have no meaning.
        last = output.shape[-1] if length is None else max(self._samples(length) - first, 0)
        output = output[..., max(-first, 0) : last]
        known.append(self._outputs(output[0].t()))
        return state._replace(first=state.first + chunk.shape[-1], known=state.known + output.shape[-1], pasts=pasts)

    def _run_last(self, state: _State, known: list[Tensor], rows: int, codes: int) -> None:
        """Runs the waiting rows in a chunk of at least so many codes, of so many rows each."""
        if state.known < self._samples(state.length):
            size = -(-codes // _LAST_CHUNK) * _LAST_CHUNK * rows
            self._run(state, state.waiting, known, state.length, size)

    @abstractmethod
    def _end(self, state: _State, known: list[Tensor]) -> None:
        """Adds the output that the end of the clip completes to `known`."""

    def _inputs(self, rows: Tensor) -> Tensor:
        """The net's input `[n, channels]` for some rows."""
        return rows

    @abstractmethod
    def _outputs(self, samples: Tensor) -> Tensor:
        """The stream's output for the net's output `[n, channels]`."""

    @abstractmethod
    def _samples(self, length: int) -> int:
        """Number of output samples of a clip of so many rows."""

    @abstractmethod
    def _joined(self, known: list[Tensor]) -> Tensor:
        """All outputs, concatenated."""


class EncoderStream(_Stream):
    """Motion of one clip in, its codes out; made by `MotionTokenizer.encoder_stream`.

    A call that raises, whatever it raises, leaves the stream as it was before.

    Args:
        model: in eval mode.
        normalise: normalises frames `[n, C]` in the data's own units, on the model's device; refuses non-finite values.
        chunk: codes computed at a time.

    Raises:
        ValueError: for a model with group norm, which needs the whole clip.
    """

    def __init__(self, model: RVQVAE, normalise: Callable[[Tensor], Tensor], chunk: int) -> None:
        nothing = next(model.encoder.parameters()).new_zeros(0, model.in_features)
        super().__init__(model, model.encoder, chunk * model.config.code_stride, nothing)
        self._normalise = normalise

    @property
    def latency(self) -> int:
        """Most frames that may follow a code's last frame before the code comes out."""
        return self._size - self._stride + self._net.delay * self._stride

    @eager
    def push(self, motion: Tensor | NDArray[np.floating]) -> Tensor:
        """Takes the next frames `[n, C]`, any number of them; returns the codes `[m, Q]` that are now known, int64.

        Raises:
            ValueError: the shape is wrong, values are not finite or too large, or the clip is finished.
            TypeError: the motion was rounded, as `MotionTokenizer.encode` says.
        """
        state, motion, features = self._unfinished(), as_tensor(motion), self._model.in_features
        if motion.dim() != 2 or motion.shape[1] != features:
            raise ValueError(f"motion is {tuple(motion.shape)}; this tokenizer takes [frames, {features}]")
        known, largest = list[Tensor](), 0.0
        with exactly(self._model):
            most = torch.finfo(next(self._parameters()).dtype).max
            for part in torch.split(motion, self._size):
                rows = self._normalised(part)
                largest = max(largest, float(rows.abs().amax()) if len(rows) else 0.0)
                state = self._take(state, rows, known)
            if largest > most**0.25:
                self._end(state, [])  # such values may overflow in the nets: refuse them now, not in a later chunk
            codes = self._joined(known)
        self._state = state
        return codes

    def _normalised(self, motion: Tensor) -> Tensor:
        rows = self._normalise(motion)
        cast = rows.to(next(self._parameters()).dtype)
        if cast.dtype != rows.dtype and not torch.isfinite(cast).all():
            raise ValueError(f"motion has values too large for nets in {cast.dtype}")
        return cast

    def _end(self, state: _State, known: list[Tensor]) -> None:
        if missing := -state.length % self._stride:
            state = self._take(state, state.waiting[-1:].expand(missing, -1), known)
        self._run_last(state, known, self._stride, self._samples(state.filled) + self._net.delay)

    def _outputs(self, samples: Tensor) -> Tensor:
        return self._model.quantizer.encode(checked_latents(samples))

    def _samples(self, length: int) -> int:
        return length // self._stride

    def _joined(self, known: list[Tensor]) -> Tensor:
        empty = self._model.quantizer.updates.new_zeros(0, self._model.config.num_quantizers)
        return torch.cat([empty, *known])


class DecoderStream(_Stream):
    """Codes of one clip in, its motion out; made by `MotionTokenizer.decoder_stream`.

    A call that raises, whatever it raises, leaves the stream as it was before.

    Args:
        model: in eval mode.
        denormalise: converts frames `[n, C]` from the model to the data's own units.
        chunk: codes computed at a time.

    Raises:
        ValueError: for a model with group norm, which needs the whole clip.
    """

    def __init__(self, model: RVQVAE, denormalise: Callable[[Tensor], Tensor], chunk: int) -> None:
        super().__init__(model, model.decoder, chunk, model.quantizer.updates.new_zeros(0, 1))
        self._denormalise = denormalise

    @property
    def latency(self) -> int:
        """Most frames, as codes, that may follow a frame before it comes out."""
        return self._size * self._stride - 1 + self._net.delay

    @eager
    def push(self, codes: Tensor | NDArray[np.integer]) -> Tensor:
        """Takes the next codes `[m, q]`, any number of them; returns the frames `[n, C]` that are now known, fp32.

        Raises:
            ValueError: the shape or number of levels is wrong, a code does not exist, the first level has -1, or the
                clip is finished.
        """
        state, codes, known = self._unfinished(), as_tensor(codes), list[Tensor]()
        if codes.dim() != 2 or state.levels not in (None, codes.shape[1]):
            raise ValueError(
                f"codes are {codes.dtype} {tuple(codes.shape)}; give integers [codes, {state.levels or 'levels'}]"
            )
        with exactly(self._model):
            rows = self._model.quantizer.checked_codes(codes).to(next(self._parameters()).device)
            state = self._take(state, rows, known)
            motion = self._joined(known)
        self._state = state._replace(levels=codes.shape[1])
        return motion

    def _end(self, state: _State, known: list[Tensor]) -> None:
        self._run_last(state, known, 1, state.filled - -self._net.delay // self._stride)

    def _inputs(self, rows: Tensor) -> Tensor:
        return self._model.quantizer.decode(rows)

    def _outputs(self, samples: Tensor) -> Tensor:
        return self._denormalise(samples.float())

    def _samples(self, length: int) -> int:
        return length * self._stride

    def _joined(self, known: list[Tensor]) -> Tensor:
        empty = self._denormalise(self._model.quantizer.usage_counts.new_zeros(0, self._model.in_features))
        return torch.cat([empty, *known])


class ChunkedNet:
    """The layers of an encoder or decoder, for passes over clips in chunks; the caller holds the state of a pass.

    Args:
        net: in eval mode; no norm over time (`GN`).

    `delay`: number of output samples by which the output lags behind: the right half of the receptive field.

    Raises:
        ValueError: a layer cannot run in chunks.
    """

    def __init__(self, net: nn.Sequential) -> None:
        self._layers: list[_Layer] = []
        first = 0
        for module in net:
            for layer in _layers_of(module, first):
                first = layer.first_output(first)
                self._layers.append(layer)
        self.delay = -first

    def push(
        self, chunk: Tensor, first: int, pasts: tuple[_Past, ...], length: int | None = None
    ) -> tuple[Tensor, int, tuple[_Past, ...]]:
        """Runs the next chunk `[1, channels, samples]`; `samples` is a multiple of the down-sampling.

        Args:
            first: position of the chunk's first sample.
            pasts: as returned for the chunk before; empty for the first.
            length: input samples of the clip, if its end is known; samples past it are ignored.

        Returns:
            output `[1, channels, samples']`; the position of its first sample; `pasts` for the next chunk. Output
            before 0 and past the end of the clip has no meaning.
        """
        kept: list[_Past] = []
        for layer, past in zip(self._layers, pasts or [()] * len(self._layers), strict=True):
            output, past = layer(chunk, first, length, past)
            kept.append(past)
            first, length, chunk = layer.first_output(first), layer.output_length(length), output
        return chunk, first, tuple(kept)


class _Layer:
    """A layer without memory."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, chunk: Tensor, first: int, length: int | None, past: _Past) -> tuple[Tensor, _Past]:
        """Output for the samples from `first` on, of a clip of `length` samples, and `past` for the next chunk."""
        output: Tensor = self.module(chunk)
        return output, past

    def first_output(self, first: int) -> int:
        """Position of the first output sample for a chunk that begins at `first`."""
        return first

    def output_length(self, length: int | None) -> int | None:
        """Number of output samples of a clip of `length`."""
        return length


class _Upsample(_Layer):
    def __init__(self, module: Upsample) -> None:
        super().__init__(module)
        self.scale = int(module.scale_factor)

    def first_output(self, first: int) -> int:
        return first * self.scale

    def output_length(self, length: int | None) -> int | None:
        return None if length is None else length * self.scale


class _Convolution(_Layer):
    """A convolution that keeps the last `kept` samples of its input.

    These are as many as the kernel reaches back. With a stride they are a few more, so that the kernel has the same
    positions in the next chunk as in a pass over the complete clip.
    """

    def __init__(self, module: Convolution, first: int) -> None:
        super().__init__(module)
        self.weight, self.bias = module.weight, module.bias
        self.stride, self.dilation = module.stride[0], module.dilation[0]
        least = module.dilation[0] * (module.kernel_size[0] - 1) + 1 - self.stride
        self.padding = module.padding[0]
        self.kept = least + (self.padding + first - least) % self.stride

    def __call__(self, chunk: Tensor, first: int, length: int | None, past: _Past) -> tuple[Tensor, _Past]:
        chunk = zero_outside(chunk, first, length)
        joined, past = join_past(past, chunk, self.kept)
        return convolve(joined, self.weight, self.bias, self.stride, dilation=self.dilation), past

    def first_output(self, first: int) -> int:
        return (first - self.kept + self.padding) // self.stride

    def output_length(self, length: int | None) -> int | None:
        return None if length is None else length // self.stride


class _ResidualBlock(_Layer):
    """A residual block whose skip connection waits for its dilated convolution."""

    def __init__(self, module: ResidualBlock, first: int) -> None:
        super().__init__(module)
        self.block = module
        self.convolution = _Convolution(module.conv1, first)

    def __call__(self, chunk: Tensor, first: int, length: int | None, past: _Past) -> tuple[Tensor, _Past]:
        block, late = self.block, first - self.first_output(first)
        inner, kept = self.convolution(block.activation1(block.norm1(chunk)), first, length, past[:1])
        joined, skipped = join_past(past[1:], chunk, late)
        added: Tensor = block.conv2(block.activation2(block.norm2(inner)))
        return joined[..., : chunk.shape[-1]] + added, kept + skipped

    def first_output(self, first: int) -> int:
        return self.convolution.first_output(first)


def _layers_of(module: nn.Module, first: int) -> list[_Layer]:
    """The layers of one module of a net; the first layer gets samples from `first` on."""
    if isinstance(module, ResidualStack):
        layers: list[_Layer] = []
        for block in module.blocks:
            assert isinstance(block, ResidualBlock)
            if isinstance(block.norm1, nn.GroupNorm):
                raise ValueError("group norm needs the complete clip at once and cannot run in chunks")
            layers.append(_ResidualBlock(block, first))
            first = layers[-1].first_output(first)
        return layers
    if isinstance(module, Convolution):
        return [_Convolution(module, first)]
    return [_Upsample(module) if isinstance(module, Upsample) else _Layer(module)]
