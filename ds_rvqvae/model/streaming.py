"""Encoding and decoding piece by piece, as motion comes in. Whole clips take the same way, so that both agree."""

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
"""A clip's last chunk, which also brings out what lags behind, is a multiple of so many codes: few different shapes."""

_Past = tuple[Tensor, ...]
"""What a layer keeps of its input for the next chunk; it is never written to."""


class _State(NamedTuple):
    """Where a stream stands. None is ever changed: a call makes another, which counts once all went well."""

    rows: Tensor
    """`[chunk, …]`, of which the first `filled` wait for the rest of a chunk. What lies behind them means nothing, so
    that later states of the same chunk share it."""
    filled: int = 0
    first: int = 0
    """Rows that have gone through the net: where the next chunk begins."""
    pasts: tuple[_Past, ...] = ()
    """What the net's layers keep; none before the first chunk."""
    known: int = 0
    """Samples that have come out."""
    levels: int | None = None
    """Of a decoder's codes, once there were any."""

    @property
    def length(self) -> int:
        """Rows so far."""
        return self.first + self.filled

    @property
    def waiting(self) -> Tensor:
        """Less than a chunk."""
        return self.rows[: self.filled]

    def filled_with(self, more: Tensor, size: int) -> "_State":
        """The state with rows that find room in its chunk; they are copied, since the caller's may change."""
        if not len(more):
            return self
        rows = self.rows
        if not self.filled:
            with torch.inference_mode(False):  # made inside that mode, it could not be written to outside
                rows = torch.empty(size, *more.shape[1:], dtype=more.dtype, device=more.device)
        rows[self.filled : self.filled + len(more)] = more
        return self._replace(rows=rows, filled=self.filled + len(more))


class _Stream(ABC):
    """Rows of one clip through a net, in chunks of `size` whatever the pieces that they come in."""

    def __init__(self, model: RVQVAE, net: nn.Sequential, size: int, nothing: Tensor) -> None:
        model.restore()
        self._model, self._size, self._stride = model, size, model.config.code_stride
        self._net, self._parameters = ChunkedNet(net), net.parameters
        self._state: _State | None = _State(nothing)

    @eager
    def finish(self) -> Tensor:
        """What the end of the clip makes known. Frames that do not fill a code are padded with copies of the last."""
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
        """The state after more rows; what they make known is added to `known`."""
        while state.filled + len(rows) >= self._size:
            room = self._size - state.filled
            chunk = state.filled_with(rows[:room], self._size).rows if state.filled else rows[:room]
            state, rows = self._run(state._replace(filled=0), chunk, known), rows[room:]
        return state.filled_with(rows, self._size)

    def _run(
        self, state: _State, rows: Tensor, known: list[Tensor], length: int | None = None, size: int | None = None
    ) -> _State:
        """The state after a chunk of `size` rows; where the clip ends at `length`, those after `rows` are past it."""
        inputs = self._inputs(rows)
        chunk = next(self._parameters()).new_zeros(1, inputs.shape[1], size or len(rows))
        chunk[0, :, : len(rows)] = inputs.t()
        output, first, pasts = self._net.push(chunk, state.first, state.pasts, length)
        # Samples before the clip and past its end mean nothing.
        last = output.shape[-1] if length is None else max(self._samples(length) - first, 0)
        output = output[..., max(-first, 0) : last]
        known.append(self._outputs(output[0].t()))
        return state._replace(first=state.first + chunk.shape[-1], known=state.known + output.shape[-1], pasts=pasts)

    def _run_last(self, state: _State, known: list[Tensor], rows: int, codes: int) -> None:
        """What waits, in a chunk of at least so many codes of so many rows each."""
        if state.known < self._samples(state.length):
            size = -(-codes // _LAST_CHUNK) * _LAST_CHUNK * rows
            self._run(state, state.waiting, known, state.length, size)

    @abstractmethod
    def _end(self, state: _State, known: list[Tensor]) -> None:
        """Adds what the end of the clip makes known."""

    def _inputs(self, rows: Tensor) -> Tensor:
        """What the net takes, `[n, channels]`."""
        return rows

    @abstractmethod
    def _outputs(self, samples: Tensor) -> Tensor:
        """What is given of the net's `[n, channels]`."""

    @abstractmethod
    def _samples(self, length: int) -> int:
        """Samples that come out of a clip of so many rows."""

    @abstractmethod
    def _joined(self, known: list[Tensor]) -> Tensor:
        """All in turn."""


class EncoderStream(_Stream):
    """Motion of one clip in, its codes out; made by `MotionTokenizer.encoder_stream`.

    A call that raises, whatever it raises, leaves the stream as it was before.

    Args:
        model: in eval mode.
        normalise: of frames `[n, C]` in the data's own units, to the model's device; refuses what is not finite.
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
        """Frames that can follow a code's last frame before the code comes out."""
        return self._size - self._stride + self._net.delay * self._stride

    @eager
    def push(self, motion: Tensor | NDArray[np.floating]) -> Tensor:
        """The next frames `[n, C]`, any number of them; gives the codes `[m, Q]` that are now known, int64.

        Raises:
            ValueError: another shape, values that are not finite or too large, or the clip is finished.
            TypeError: motion that was rounded, as of `MotionTokenizer.encode`.
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
                self._end(state, [])  # far from all motion, its sums may overflow: refused now, not in a later chunk
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
        denormalise: of frames `[n, C]` as the model gives them, to the data's own units.
        chunk: codes computed at a time.

    Raises:
        ValueError: for a model with group norm, which needs the whole clip.
    """

    def __init__(self, model: RVQVAE, denormalise: Callable[[Tensor], Tensor], chunk: int) -> None:
        super().__init__(model, model.decoder, chunk, model.quantizer.updates.new_zeros(0, 1))
        self._denormalise = denormalise

    @property
    def latency(self) -> int:
        """Frames that can follow a frame, as codes, before it comes out."""
        return self._size * self._stride - 1 + self._net.delay

    @eager
    def push(self, codes: Tensor | NDArray[np.integer]) -> Tensor:
        """The next codes `[m, q]`, any number of them; gives the frames `[n, C]` that are now known, fp32.

        Raises:
            ValueError: another shape or number of levels, codes that do not exist, -1 on the first level, or the clip
                is finished.
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
    """The layers of an encoder or decoder, for passes over clips chunk by chunk; what a pass keeps is not in it.

    Args:
        net: in eval mode; no norm over time (`GN`).

    `delay`: output samples by which the output lags behind the input: the right half of the receptive field.

    Raises:
        ValueError: a layer that cannot run in chunks.
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
        """The next chunk `[1, channels, samples]`, `samples` being a multiple of the down-sampling.

        Args:
            first: position of the chunk's first sample.
            pasts: what the chunk before gave; empty for the first.
            length: input samples of the clip, where its end is known; what is pushed past it counts as nothing.

        Returns:
            output `[1, channels, samples']`; the position of its first sample; what the next chunk takes as `pasts`.
            Output before 0 and past the end of the clip means nothing.
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
        """Output for samples `first` … of a clip of `length` samples, and the next chunk's `past`, empty at first."""
        output: Tensor = self.module(chunk)
        return output, past

    def first_output(self, first: int) -> int:
        """Position of the first output sample for a chunk that begins at `first`."""
        return first

    def output_length(self, length: int | None) -> int | None:
        """Output samples of a clip of `length`."""
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

    As many as the kernel reaches back; with a stride, as many as also make the next chunk's windows begin where those
    of a pass over the whole clip do.
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
    """The layers of one module of a net, the first of which gets samples from `first` on."""
    if isinstance(module, ResidualStack):
        layers: list[_Layer] = []
        for block in module.blocks:
            assert isinstance(block, ResidualBlock)
            if isinstance(block.norm1, nn.GroupNorm):
                raise ValueError("group norm looks at the whole clip at once and cannot run in chunks")
            layers.append(_ResidualBlock(block, first))
            first = layers[-1].first_output(first)
        return layers
    if isinstance(module, Convolution):
        return [_Convolution(module, first)]
    return [_Upsample(module) if isinstance(module, Upsample) else _Layer(module)]
