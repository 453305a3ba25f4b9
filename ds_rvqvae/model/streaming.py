"""Encoding and decoding piece by piece, as motion comes in. Whole clips take the same way, so that both agree."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ds_rvqvae.model.exact import eager, exactly
from ds_rvqvae.model.nets import Convolution, ResidualBlock, ResidualStack, Upsample, convolve
from ds_rvqvae.model.rvqvae import RVQVAE

_LAST_CHUNK = 32
"""A clip's last chunk, which also brings out what lags behind, is a multiple of so many codes: few different shapes."""


def as_tensor(values: Tensor | NDArray[Any]) -> Tensor:
    """`values` on their own device, as they are in memory where torch can read that; float16 of a file as fp32."""
    if isinstance(values, Tensor):
        return values
    values = np.asarray(values)
    dtype = np.dtype(np.float32) if values.dtype == np.float16 else values.dtype.newbyteorder("=")
    return torch.from_numpy(np.ascontiguousarray(values, dtype))


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
        model.restore()
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

    @eager
    def push(self, motion: Tensor | NDArray[np.floating]) -> Tensor:
        """The next frames `[n, C]`, any number of them; gives the codes `[m, Q]` that are now known, int64.

        Raises:
            ValueError: another shape, values that are not finite, or the clip is finished.
        """
        motion, features = as_tensor(motion), self._model.in_features
        if motion.dim() != 2 or motion.shape[1] != features:
            raise ValueError(f"motion is {tuple(motion.shape)}; this tokenizer takes [frames, {features}]")
        if len(motion):
            self._last = motion[-1:].clone()
        with exactly(self._model):
            return self._joined([self._run(chunk) for chunk in self._chunker.push(motion)])

    @eager
    def finish(self) -> Tensor:
        """The clip's last codes. Frames that do not fill a code are padded with copies of the last."""
        stride, found = self._model.config.code_stride, []
        missing = -self._chunker.pushed % stride
        if missing and self._last is not None:
            found.append(self.push(self._last.expand(missing, -1)))
        length, rest = self._chunker.pushed, self._chunker.finish()
        with exactly(self._model):
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
        model.restore()
        self._model, self._denormalise = model, denormalise
        self._net = ChunkedNet(model.decoder)
        self._chunker = _Chunker(chunk)
        self._frames = 0
        self._levels: int | None = None

    @property
    def latency(self) -> int:
        """Frames that can follow a frame, as codes, before it comes out."""
        return self._chunker.size * self._model.config.code_stride - 1 + self._net.delay

    @eager
    def push(self, codes: Tensor | NDArray[np.integer]) -> Tensor:
        """The next codes `[m, q]`, any number of them; gives the frames `[n, C]` that are now known, fp32.

        Raises:
            ValueError: another shape or number of levels, codes that do not exist, or the clip is finished.
        """
        codes = as_tensor(codes)
        if codes.dim() != 2 or codes.is_floating_point() or self._levels not in (None, codes.shape[1]):
            raise ValueError(
                f"codes are {codes.dtype} {tuple(codes.shape)}; give integers [codes, {self._levels or 'levels'}]"
            )
        self._levels = codes.shape[1]
        with exactly(self._model):
            return self._joined([self._run(chunk) for chunk in self._chunker.push(codes)])

    @eager
    def finish(self) -> Tensor:
        """The clip's last frames."""
        stride, found = self._model.config.code_stride, []
        length, rest = self._chunker.pushed, self._chunker.finish()
        with exactly(self._model):
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


class ChunkedNet:
    """One pass of an encoder or decoder over one clip.

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
        self._position = 0

    def push(self, chunk: Tensor, length: int | None = None) -> tuple[Tensor, int]:
        """The next chunk `[1, channels, samples]`, `samples` being a multiple of the down-sampling.

        Args:
            length: input samples of the clip, where its end is known; what is pushed past it counts as nothing.

        Returns:
            output `[1, channels, samples']`, and the position of its first sample; before 0 and past the end of the
            clip it means nothing.
        """
        first, self._position = self._position, self._position + chunk.shape[-1]
        for layer in self._layers:
            output = layer(chunk, first, length)
            first, length, chunk = layer.first_output(first), layer.output_length(length), output
        return chunk, first


class _Layer:
    """A layer without memory."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, chunk: Tensor, first: int, length: int | None) -> Tensor:
        """Output for samples `first` … of a clip of `length` samples."""
        output: Tensor = self.module(chunk)
        return output

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
        self.past: Tensor | None = None

    def __call__(self, chunk: Tensor, first: int, length: int | None) -> Tensor:
        chunk = _zero_outside(chunk, first, length)
        if self.past is None:
            self.past = chunk.new_zeros(*chunk.shape[:-1], self.kept)
        joined = _join(self.past, chunk)
        self.past = joined[..., chunk.shape[-1] :]
        return convolve(joined, self.weight, self.bias, self.stride, dilation=self.dilation)

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
        self.past: Tensor | None = None

    def __call__(self, chunk: Tensor, first: int, length: int | None) -> Tensor:
        block, late = self.block, first - self.first_output(first)
        if self.past is None:
            self.past = chunk.new_zeros(*chunk.shape[:-1], late)
        inner = self.convolution(block.activation1(block.norm1(chunk)), first, length)
        joined = _join(self.past, chunk)
        skip, self.past = joined[..., : chunk.shape[-1]], joined[..., chunk.shape[-1] :]
        added: Tensor = block.conv2(block.activation2(block.norm2(inner)))
        return skip + added

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


def _join(past: Tensor, chunk: Tensor) -> Tensor:
    """Both in turn, each frame's channels side by side in memory, as `convolve` wants them."""
    return torch.cat([past.transpose(1, 2), chunk.transpose(1, 2)], dim=1).transpose(1, 2)


def _zero_outside(chunk: Tensor, first: int, length: int | None) -> Tensor:
    """The chunk with zeros at positions before 0 and from `length` on."""
    samples = chunk.shape[-1]
    before = max(-first, 0)
    after = samples if length is None else max(length - first, 0)
    if not before and after >= samples:
        return chunk
    chunk = chunk.clone()
    chunk[..., :before] = 0
    chunk[..., after:] = 0
    return chunk
