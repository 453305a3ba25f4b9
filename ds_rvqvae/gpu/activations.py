"""The bytes that a training step keeps for its backward pass, by shape arithmetic and without torch.

The walk below goes through the operations of `model/nets.py`, the quantizer and `model/losses.py` in order, and counts
the tensors that torch's autograd saves for each: a convolution its input, ReLU its output, SiLU and GELU their input, a
norm its input and statistics, dropout its mask. A tensor that two operations save counts once.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from ds_rvqvae.config.profile import Profile
from ds_rvqvae.gpu.quantizers import quantizer_pass

LAYERS = (
    *("RVQVAE", "Encoder", "Decoder", "ResidualStack", "Blocks", "ResidualBlock"),
    *("Convolution", "DownSample", "Upsample", "ReLU", "SiLU", "GELU", "Identity", "ChannelNorm", "GroupNorm"),
    "Dropout",
)
"""Classes of the model's modules that the walk knows, in addition to `gpu.quantizers.QUANTIZERS`."""
_FP32 = 4
_GROUPS = 32
"""Groups of group norm, as in `model/nets.py`."""
_ROTATION_BYTES = {"matrix": 116, "geodesic": 128}
"""Bytes per joint and frame that autograd keeps for the rotation loss: six numbers, lengths, products, matrix."""


@dataclass
class Layer:
    """A section of the forward pass, in bytes and floating point operations of one micro batch."""

    name: str
    kept: int = 0
    """Bytes that autograd keeps from this layer's forward to its backward pass, unless an earlier layer counts them."""
    recomputed: int = 0
    """Bytes that its backward pass recomputes under activation checkpointing, and then frees."""
    offloaded: int = 0
    """Bytes kept in the host's memory instead."""
    forward_working: int = 0
    """Bytes that its forward pass holds temporarily."""
    backward_working: int = 0
    """Bytes of gradients that its backward pass holds temporarily."""
    flops: int = 0
    """Operations of the forward pass; a multiplication and an addition count as two."""
    backward_flops: int = 0
    parameters: list[tuple[int, int]] = field(default_factory=list)
    """Elements of each parameter in the model's order, and operations of the backward pass between the gradient of the
    next parameter and its own. A convolution's weight and bias get their gradients together."""


@dataclass(frozen=True)
class Activations:
    """Memory and operations of one micro batch through the model and its losses."""

    layers: list[Layer]

    @property
    def kept_bytes(self) -> int:
        """Bytes that autograd keeps for the backward pass, without parameters, buffers and the batch itself."""
        return sum(layer.kept for layer in self.layers)

    @property
    def offloaded_bytes(self) -> int:
        """Bytes of checkpoints in the host's memory."""
        return sum(layer.offloaded for layer in self.layers)

    @property
    def flops(self) -> int:
        """Floating point operations of forward and backward pass, without recomputation."""
        return sum(layer.flops + layer.backward_flops for layer in self.layers)

    @property
    def recomputed_flops(self) -> int:
        """Floating point operations that checkpointing does again."""
        return sum(layer.flops for layer in self.layers if layer.recomputed)

    def gradient_shares(self, at_once: bool = False) -> list[float]:
        """Share of the backward pass, recomputation included, after which each parameter's gradient is complete, in the
        model's order; by floating point operations.

        Args:
            at_once: whether the gradients of a recomputed stack are complete together.
        """
        shares, done = list[int](), 0
        for layer in reversed(self.layers):
            done += layer.flops if layer.recomputed else 0
            own = []
            for _, flops in reversed(layer.parameters):
                done += flops
                own.append(done)
            shares += [done] * len(own) if at_once and layer.recomputed else own
        return [share / done for share in reversed(shares)]

    def forward_peak(self) -> int:
        """Most bytes held at once in the forward pass."""
        kept = peak = 0
        for layer in self.layers:
            kept += layer.kept
            peak = max(peak, kept + layer.forward_working)
        return peak

    def backward_peak(self) -> int:
        """Most bytes held at once in the backward pass, which frees a layer's bytes after that layer."""
        kept = peak = 0
        for layer in self.layers:
            kept += layer.kept
            peak = max(peak, kept + layer.recomputed + layer.backward_working)
        return peak


def activations_of(
    profile: Profile, in_features: int, micro_batch: int, device: str = "cuda", window_size: int | None = None
) -> Activations:
    """Activations of one micro batch in training, all levels of the quantizer in use.

    Args:
        in_features: columns of the motion.
        micro_batch: windows.
        device: "cuda", or "cpu", whose layer norm keeps its statistics in the tensor's type, while CUDA keeps fp32.
        window_size: frames per window; by default the profile's.
    """
    walk = _Walk(profile, micro_batch, device)
    motion = _Tensor(in_features, window_size or profile.rvqvae.data.window_size, _FP32)
    walk.holds(motion)
    latents = _encoder(walk, motion)
    quantized = _quantizer(walk, latents)
    _losses(walk, motion, _decoder(walk, quantized, in_features))
    return Activations(walk.layers)


@dataclass(eq=False, frozen=True)
class _Tensor:
    """A tensor `[micro batch, channels, time]` with a storage of its own."""

    channels: int
    time: int
    element_bytes: int


class _Walk:
    """The operations in order, and the storages that autograd keeps for them."""

    def __init__(self, profile: Profile, micro_batch: int, device: str) -> None:
        self.model, self.loss = profile.rvqvae.model, profile.rvqvae.loss
        self.micro_batch = micro_batch
        self.element_bytes = 2 if profile.bf16.enabled else _FP32
        self.on_cuda = device == "cuda"
        self.checkpoints = profile.rvqvae.training.gradient_checkpointing
        self.to_host = profile.activation_checkpointing.cpu_checkpointing
        self.layers: list[Layer] = []
        self._kept: set[_Tensor] = set()
        self._recomputed: set[_Tensor] | None = None

    @property
    def layer(self) -> Layer:
        return self.layers[-1]

    def start(self, name: str) -> None:
        self.layers.append(Layer(name))

    def holds(self, tensor: _Tensor) -> None:
        """Notes that `tensor` exists anyway, so that keeping it costs nothing."""
        self._kept.add(tensor)

    def bytes_of(self, *tensors: _Tensor) -> int:
        return sum(self.micro_batch * one.channels * one.time * one.element_bytes for one in tensors)

    def made(self, channels: int, time: int) -> _Tensor:
        return _Tensor(channels, time, self.element_bytes)

    def keep(self, *tensors: _Tensor) -> None:
        """Counts tensors that autograd saves, each once."""
        for tensor in tensors:
            if tensor in self._kept or (self._recomputed is not None and tensor in self._recomputed):
                continue
            if self._recomputed is None:
                self._kept.add(tensor)
                self.layer.kept += self.bytes_of(tensor)
            else:
                self._recomputed.add(tensor)
                self.layer.recomputed += self.bytes_of(tensor)

    def keep_bytes(self, count: int) -> None:
        """Counts bytes that autograd saves and no other operation shares."""
        if self._recomputed is None:
            self.layer.kept += count
        else:
            self.layer.recomputed += count

    def checkpoint(self, tensor: _Tensor) -> None:
        """Starts a region that is recomputed from `tensor`; it lasts until `end_checkpoint`."""
        if self.to_host:
            self.layer.offloaded += self.bytes_of(tensor)
            self.layer.recomputed += self.bytes_of(tensor)
        else:
            self.keep(tensor)
        self._recomputed = {tensor}

    def end_checkpoint(self) -> None:
        self._recomputed = None

    def works(self, *tensors: _Tensor) -> None:
        """Notes that the backward pass holds gradients of these sizes at once."""
        self.layer.backward_working = max(self.layer.backward_working, self.bytes_of(*tensors))

    def conv(self, inner: _Tensor, channels: int, kernel: int, time: int, first: bool = False) -> _Tensor:
        """Adds a convolution; the input of the `first` one needs no gradient."""
        self.keep(inner)
        outer = self.made(channels, time)
        self.works(inner, outer)
        flops = 2 * self.micro_batch * time * channels * inner.channels * kernel
        backward_flops = flops if first else 2 * flops
        self.layer.flops += flops
        self.layer.backward_flops += backward_flops
        self.layer.parameters += [(channels * inner.channels * kernel, 0), (channels, backward_flops)]
        return outer

    def activation(self, inner: _Tensor, kind: str) -> _Tensor:
        outer = self.made(inner.channels, inner.time)
        self.keep(outer if kind == "relu" else inner)
        self.works(inner, outer)
        return outer

    def norm(self, inner: _Tensor) -> _Tensor:
        if self.model.norm is None:
            return inner
        self.keep(inner)
        statistics = 2 * self.micro_batch * (inner.time if self.model.norm == "LN" else _GROUPS)
        self.keep_bytes(statistics * self._statistics_bytes())
        self.layer.parameters += [(inner.channels, 0)] * 2
        outer = self.made(inner.channels, inner.time)
        self.works(inner, outer)
        return outer

    def _statistics_bytes(self) -> int:
        return _FP32 if self.on_cuda and self.model.norm == "LN" else self.element_bytes

    def dropout(self, inner: _Tensor) -> _Tensor:
        if self.model.dropout == 0:
            return inner
        self.keep_bytes(self.bytes_of(inner) // inner.element_bytes)
        return self.made(inner.channels, inner.time)


def _encoder(walk: _Walk, motion: _Tensor) -> _Tensor:
    model = walk.model
    walk.start("encoder, first convolution")
    same = walk.element_bytes == _FP32 and not model.input_noise
    inner = motion if same else walk.made(motion.channels, motion.time)
    hidden = walk.activation(walk.conv(inner, model.width, 3, motion.time, first=True), model.activation_outside)
    for stage in range(model.down_t):
        walk.start(f"encoder stage {stage + 1}, down-sampling")
        time = hidden.time // model.stride_t
        if model.stride_t % 2:
            hidden = walk.made(model.width, hidden.time + 1)
        hidden = walk.conv(hidden, model.width, 2 * model.stride_t, time)
        walk.start(f"encoder stage {stage + 1}, residual stack")
        hidden = _residual_stack(walk, hidden)
    walk.start("encoder, last convolution")
    return walk.conv(hidden, model.code_dim, 3, hidden.time)


def _residual_stack(walk: _Walk, hidden: _Tensor) -> _Tensor:
    width, time, kind = hidden.channels, hidden.time, walk.model.activation
    if walk.checkpoints:
        walk.checkpoint(hidden)
    for _ in range(walk.model.depth):
        inner = walk.conv(walk.activation(walk.norm(hidden), kind), width, 3, time)
        inner = walk.dropout(walk.conv(walk.activation(walk.norm(inner), kind), width, 1, time))
        hidden = walk.made(width, time)
        # The gradient of the skip connection, and two inside the block.
        walk.works(hidden, inner, inner)
    walk.end_checkpoint()
    return hidden


def _quantizer(walk: _Walk, latents: _Tensor) -> _Tensor:
    through = quantizer_pass(walk.model, walk.micro_batch * latents.time)
    walk.layers.append(
        Layer(
            "quantizer",
            kept=through.kept,
            forward_working=through.forward_working,
            backward_working=through.backward_working,
            flops=through.flops,
        )
    )
    return walk.made(latents.channels, latents.time)


def _decoder(walk: _Walk, quantized: _Tensor, out_features: int) -> _Tensor:
    model = walk.model
    walk.start("decoder, first convolution")
    hidden = walk.activation(walk.conv(quantized, model.width, 3, quantized.time), model.activation_outside)
    for stage in range(model.down_t):
        walk.start(f"decoder stage {stage + 1}, residual stack")
        hidden = _residual_stack(walk, hidden)
        walk.start(f"decoder stage {stage + 1}, up-sampling")
        repeated = walk.made(model.width, hidden.time * model.stride_t)
        hidden = walk.conv(repeated, model.width, 3, repeated.time)
    walk.start("decoder, last convolutions")
    hidden = walk.activation(walk.conv(hidden, model.width, 3, hidden.time), model.activation_outside)
    return walk.conv(hidden, out_features, 3, hidden.time)


def _losses(walk: _Walk, motion: _Tensor, output: _Tensor) -> None:
    """Adds all losses, in fp32."""
    walk.start("losses")
    reconstruction = output if output.element_bytes == _FP32 else _Tensor(output.channels, output.time, _FP32)
    walk.works(reconstruction, reconstruction, output)
    for loss in LOSSES.values():
        loss(walk, reconstruction, motion)


def _reconstruction_loss(walk: _Walk, reconstruction: _Tensor, motion: _Tensor) -> None:
    if walk.loss.recons_loss == "l1":
        # torch computes it from a difference, whose sign the backward pass needs.
        walk.keep(_Tensor(motion.channels, motion.time, _FP32))
    else:
        walk.keep(reconstruction, motion)


def _velocity_loss(walk: _Walk, reconstruction: _Tensor, motion: _Tensor) -> None:
    _reconstruction_loss(walk, _differences(reconstruction, 1), _differences(motion, 1))


def _acceleration_loss(walk: _Walk, reconstruction: _Tensor, motion: _Tensor) -> None:
    if walk.loss.loss_acc:
        _reconstruction_loss(walk, _differences(reconstruction, 2), _differences(motion, 2))


def _differences(tensor: _Tensor, order: int) -> _Tensor:
    """Differences from frame to frame."""
    return _Tensor(tensor.channels, tensor.time - order, _FP32)


def _rotation_loss(walk: _Walk, reconstruction: _Tensor, motion: _Tensor) -> None:
    if not walk.loss.loss_rotation:
        return
    # It is not known here which columns are rotations; nearly all are, six per joint.
    joints = walk.micro_batch * motion.time * (motion.channels // 6)
    walk.keep_bytes(joints * _ROTATION_BYTES[walk.loss.rotation_distance])
    # Matrices of reconstruction and motion, intermediate results and their difference; as many bytes of gradients.
    walk.layer.forward_working += joints * 60 * _FP32
    walk.layer.backward_working += joints * 60 * _FP32


def _nothing_more(walk: _Walk, reconstruction: _Tensor, motion: _Tensor) -> None:
    """Adds nothing: the quantizer computes the commitment loss."""


LOSSES: dict[str, Callable[[_Walk, _Tensor, _Tensor], None]] = {
    "recons": _reconstruction_loss,
    "velocity": _velocity_loss,
    "acceleration": _acceleration_loss,
    "rotation": _rotation_loss,
    "commit": _nothing_more,
}
"""For each of `model.losses.Losses`, the function that adds it to the walk, from reconstruction and motion in fp32."""
