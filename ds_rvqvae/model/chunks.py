"""Encoder and decoder over motion of any length, in chunks of one fixed size.

Every convolution keeps the samples of earlier chunks that its kernel still reaches, as in the streaming convolutions
of EnCodec (Défossez et al. 2022), so that nothing is computed twice. The nets are not causal: a layer that looks ahead
gives its output late instead. Ends of a clip are zeros at the input of each convolution, which is what padding means in
a pass over the whole clip.
"""

import torch
from torch import Tensor, nn

from ds_rvqvae.model.nets import Convolution, ResidualBlock, ResidualStack, Upsample, convolve


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
