"""The trained tokenizer: encodes motion into codes and decodes them, normalisation included."""

import hashlib
import json
import logging
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self, override

from ds_rvqvae import __version__
from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.config.facts import ModelFacts, keys_that
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.config.training import is_repository
from ds_rvqvae.model.exact import (
    Lengths,
    as_tensor,
    check_not_padded,
    checked_lengths,
    clips_of,
    eager,
    exactly,
    padded,
    plain_tensors,
)
from ds_rvqvae.model.frozen import KeepsFloatType, device_after
from ds_rvqvae.model.rvqvae import RVQVAE
from ds_rvqvae.model.streaming import DecoderStream, EncoderStream
from ds_rvqvae.model.vq import checked_latents
from ds_rvqvae.motion.layout import Layout, layout_to_json
from ds_rvqvae.tokenizer.folder import (
    CARD,
    CONFIG,
    FILES,
    FORMAT_VERSION,
    WEIGHTS,
    assumed_at_import,
    config_of,
    open_folder,
    own_columns,
    reading_config,
    reading_of,
)
from ds_rvqvae.tokenizer.hub import download, model_card, upload
from ds_rvqvae.tokenizer.saved.writing import Place, save_tokenizer, sealed
from ds_rvqvae.tokenizer.weights import check_fingerprint, load_model, save_model

if TYPE_CHECKING:
    from ds_rvqvae.data.files import Rate

# The order is that of the first tokenizers, whose fingerprints stay: the number of levels comes last.
_MEANING = sorted(
    keys_that(ModelConfig, ModelFacts, lambda facts: facts.codes == "setting"), key=lambda key: key == "num_quantizers"
)
"""Settings that change what the weights compute, apart from the weights' shapes."""
_MEANING_WHERE_SET = sorted(keys_that(ModelConfig, ModelFacts, lambda facts: facts.codes == "setting if set"))
"""More such settings, which count only if they are not the default, so that older fingerprints stay valid."""

Array = TypeVar("Array", Tensor, NDArray[Any])
_ROUNDED = (torch.bfloat16, torch.float16)


class MotionTokenizer(KeepsFloatType):
    """An RVQ-VAE with the normalisation it was trained with.

    Args:
        model: the trained net; it is frozen.
        mean, std: `[C]` of the training motion.
        layout: layout of the columns.
        fps: frame rate of the motion it takes.
        details: other entries of the config file (body part, training step, scores).
        trainable: do not freeze the net; parameters, modes and float types of `model` then behave as in any module.

    It runs in eval mode and fp32, unless `from_pretrained` is asked for bf16. Codes and motion do not depend on the
    module, mode, autocast or precision settings around it. As a submodule it moves to its parent's device and is saved
    in its parent's checkpoints, but hides its parameters, buffers and layers from the parent, so that nothing trains,
    initialises, averages or casts them.

    Raises:
        ValueError: `fps` is not a frame rate.
        TypeError: another float type was asked for, or gradients while frozen.

    `chunk`: codes computed at a time. Clips of any length, batches and streams run in chunks of this size (the last one
    may be shorter), so on a CPU their codes are equal bit for bit, and memory does not grow with a clip's length. A
    smaller chunk makes streams answer sooner and everything slower. A model with group norm takes complete clips only.
    """

    chunk: int = 512

    def __init__(
        self,
        model: RVQVAE,
        mean: Tensor,
        std: Tensor,
        layout: Layout,
        fps: float,
        details: dict[str, Any] | None = None,
        *,
        trainable: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < fps < math.inf:
            raise ValueError(f"fps is {fps}, not a frame rate")
        self.model = model.eval() if trainable else model.freeze()
        # Not buffers: a trainer casts and averages buffers and sends them to other ranks.
        self.mean, self.std = (torch.as_tensor(row, dtype=torch.float32) for row in (mean, std))
        # The reading rules are today's, unless `details` keep older ones.
        self.details = {"reading": reading_of(DataConfig().model_dump()), **(details or {})}
        self.layout, self.fps = layout, fps
        self._fp32_fingerprint: str | None = None
        self.training = False

    @override
    def float_type(self) -> torch.dtype | None:
        return self.model.float_type()

    @override
    def train(self, mode: bool = True) -> Self:
        return self if self.model.frozen else super().train(mode)

    @override
    def requires_grad_(self, requires_grad: bool = True) -> Self:
        self.model.requires_grad_(requires_grad)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        apply: Callable[..., Self] = super()._apply  # untyped in torch
        apply(fn, recurse)
        device = device_after(fn, self.mean.device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self

    @property
    def code_stride(self) -> int:
        """Frames per code."""
        return self.model.config.code_stride

    @property
    def code_rate(self) -> float:
        """Codes per second and level."""
        return self.fps / self.code_stride

    @property
    def fingerprint(self) -> str:
        """A sha256 of weights, codebooks, normalisation and frame rate; with equal ones, equal codes mean equal motion.

        It is computed at each call; in bf16 it is that of the weights before they were rounded.
        """
        return self._fp32_fingerprint or self._compute_fingerprint()

    @eager
    def encode(self, motion: Array, lengths: Lengths | None = None) -> Array:
        """Encodes motion in the data's own units into codes, int64.

        Args:
            motion: one clip `[T, C]`, or a padded batch `[B, T, C]`; arrays give arrays, tensors give tensors.
            lengths: frames of each clip of a batch, `[B]`, or of the one clip; all by default.

        Returns:
            `[ceil(T / code_stride), Q]` or `[B, ceil(T / code_stride), Q]`, -1 past a clip's end. Frames that do not
            fill a code are padded with copies of the last. A clip's codes do not depend on the rest of the batch.

        Raises:
            ValueError: another shape, lengths that do not fit it, or values that are not finite or too large.
            TypeError: a path, or a tensor in bf16 or fp16 (trainers cast batches to these), unless the nets have such
                a type too.
        """
        frames = as_tensor(motion, "encode_file(path) encodes a file")
        if frames.dim() not in (2, 3) or frames.shape[-1] != len(self.mean) or not frames.numel():
            raise ValueError(
                f"motion is {tuple(frames.shape)}; this tokenizer takes [frames, {len(self.mean)}], or a batch of these"
            )
        clips = clips_of(frames, lengths, frames.shape[-2])
        codes = padded([self._encode_clip(clip) for clip in clips], frames, -(-frames.shape[-2] // self.code_stride))
        return codes.cpu().numpy() if isinstance(motion, np.ndarray) else codes

    @eager
    def decode(self, codes: Array, lengths: Lengths | None = None) -> Array:
        """Decodes codes into motion in the data's own units, fp32.

        Args:
            codes: one clip `[T', q]`, or a padded batch `[B, T', q]`, q <= Q; -1 drops a level (never the first).
            lengths: frames of each clip of a batch, `[B]`, or of the one clip; `T' * code_stride` by default.

        Returns:
            `[T, C]` or `[B, T, C]`, where T is the longest of `lengths`; zeros past a clip's end.

        Raises:
            ValueError: another shape, codes that do not exist, lengths that do not fit, or, without lengths, a row
                that is -1 on all levels.
            TypeError: a path was given.
        """
        indices = as_tensor(codes, "ds_rvqvae.read_codes(path).codes reads those of a file")
        if indices.dim() not in (2, 3) or indices.is_floating_point() or not indices.numel():
            raise ValueError(f"codes are {indices.dtype} {tuple(indices.shape)}; give integers [codes, levels]")
        most = indices.shape[-2] * self.code_stride
        frames = checked_lengths(lengths, indices.shape[0] if indices.dim() == 3 else 1, most)
        if lengths is None:
            check_not_padded(indices)
        clips = clips_of(indices, [-(-count // self.code_stride) for count in frames], indices.shape[-2])
        motion = [self._decode_clip(clip)[:count] for clip, count in zip(clips, frames, strict=True)]
        found = padded(motion, indices, max(frames), padding=0)
        return found.cpu().numpy() if isinstance(codes, np.ndarray) else found

    def encode_file(self, file: str | Path) -> NDArray[np.int64]:
        """Encodes a motion file that holds one clip, `[ceil(T / code_stride), Q]`; another frame rate is resampled.

        Raises:
            UserError: names the file and the problem.
        """
        from ds_rvqvae.data.files import read_clip

        clip = read_clip(Path(file), reading_config(self.details, self.fps, str(file)), True, self.layout)
        return self.encode(np.ascontiguousarray(clip.motion[:, own_columns(self.layout, clip, self.details, file)]))

    def decode_to_file(
        self,
        codes: Array,
        file: str | Path,
        source: str | Path | None = None,
        fps: "Rate | None" = None,
    ) -> None:
        """Decodes one clip and writes it as a motion file, atomically; see `BodyTokenizer.decode_to_file`."""
        from ds_rvqvae.data.files import read_clip, write_clip

        config = reading_config(self.details, self.fps, str(source or file))
        frames = None if source is None else len(read_clip(Path(source), config, wanted=self.layout).motion)
        motion = np.asarray(as_tensor(self.decode(codes, frames)).cpu())
        write_clip(Path(file), motion, self.layout, config, None if source is None else Path(source), fps)

    def encoder_stream(self) -> EncoderStream:
        """Returns an encoder for one clip that arrives piece by piece; its codes equal those of `encode`."""
        return EncoderStream(self.model, self._normalise, self.chunk)

    def decoder_stream(self) -> DecoderStream:
        """Returns a decoder for one clip whose codes arrive piece by piece; its motion equals that of `decode`."""
        return DecoderStream(self.model, self._denormalise, self.chunk)

    def _encode_clip(self, frames: Tensor) -> Tensor:
        if self._needs_whole_clips:
            with exactly(self.model):
                frames = torch.cat([frames, frames[-1:].expand(-len(frames) % self.code_stride, -1)])
                latents = self.model.encode_latents(self._normalise(frames).unsqueeze(0))
                return self.model.quantizer.encode(checked_latents(latents[0]))
        stream = self.encoder_stream()
        return torch.cat([stream.push(frames), stream.finish()])

    def _decode_clip(self, codes: Tensor) -> Tensor:
        if self._needs_whole_clips:
            with exactly(self.model):
                codes = self.model.quantizer.checked_codes(codes).to(self.mean.device)
                return self._denormalise(self.model.decode(codes.unsqueeze(0))[0].float())
        stream = self.decoder_stream()
        return torch.cat([stream.push(codes), stream.finish()])

    @property
    def _needs_whole_clips(self) -> bool:
        return self.model.config.norm == "GN"

    def _normalise(self, frames: Tensor) -> Tensor:
        if frames.dtype in _ROUNDED and next(self.model.encoder.parameters()).dtype == torch.float32:
            raise TypeError(
                f"motion is {frames.dtype}, which rounds it and changes its codes; give the fp32 motion from before a "
                "trainer cast it, or motion.float() if it was stored in this type"
            )
        if frames.is_complex():
            raise TypeError(f"motion is {frames.dtype}; give real numbers")
        frames = frames.to(self.mean.device, torch.float32)
        normalised = (frames - self.mean) / self.std
        if not torch.isfinite(normalised).all():
            is_finite = bool(torch.isfinite(frames).all())
            raise ValueError(f"motion has {'values too large to normalise' if is_finite else 'NaN or infinite values'}")
        return normalised

    def _denormalise(self, frames: Tensor) -> Tensor:
        return frames * self.std + self.mean

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `model.safetensors`, `config.json` and a model card. At every instant the folder holds one complete
        tokenizer: the new one or our older one. Other files in the folder are not touched.

        Raises:
            UserError: the folder holds something else, or has one of these names for something else.
            OSError: it cannot be written.
        """
        save_tokenizer(Path(folder), self._write, model_card)

    def _write(self, place: Place) -> str:
        """Writes each file where `place` says, and returns the content hash of the weights."""
        config = self._config()
        text = json.dumps(config, indent=2) + "\n"
        content = save_model(self.model, text, place(WEIGHTS))
        place(CONFIG).write_text(text, encoding="utf-8")
        place(CARD).write_text(sealed(model_card(config)), encoding="utf-8")
        return content

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        trainable: bool = False,
    ) -> "MotionTokenizer":
        """Loads a tokenizer that `save_pretrained` wrote, from a folder or from the Hugging Face hub.

        Args:
            folder: a folder, or the id `owner/name` of a repository on the hub (needs the extra `hub`).
            dtype: of the nets; codebooks, distances and normalisation stay fp32.
            revision: branch, tag or commit of a repository on the hub.
            trainable: as in `MotionTokenizer`.

        torch's default device, default float type and inference mode do not affect the result.

        Raises:
            UserError: names the folder or file and the problem.
            ValueError: the meta device was asked for.
        """
        if is_repository(folder):
            folder = download(str(folder), revision, FILES)
        return cls._load(Path(folder), dtype, device, trainable)

    @classmethod
    def _load(
        cls, folder: Path, dtype: torch.dtype, device: str | torch.device, trainable: bool, content: str | None = None
    ) -> "MotionTokenizer":
        """`from_pretrained` of a folder; for a body's part, `content` is the content hash its weights must have."""
        with plain_tensors():
            saved = open_folder(folder, content)
            config = config_of(saved)
            if (assumed := assumed_at_import(config.details)) is not None:
                logging.getLogger("ds_rvqvae").warning("%s: %s", folder, assumed)
            model = load_model(config, saved)
            mean, std = torch.from_numpy(config.mean), torch.from_numpy(config.std)
            is_unchecked, fingerprint = saved.weights.content is None, None
            if is_unchecked or (dtype != torch.float32 and not trainable):
                whole = cls(model, mean, std, config.layout, config.fps, trainable=True)
                fingerprint = whole._compute_fingerprint()
            if is_unchecked:
                check_fingerprint(saved, fingerprint)
            # Normalisation stays in fp32; the codebooks keep themselves in it.
            model.to(dtype)
            tokenizer = cls(model, mean, std, config.layout, config.fps, config.details, trainable=trainable)
            if dtype != torch.float32 and not trainable:
                tokenizer._fp32_fingerprint = fingerprint
            return tokenizer.to(device)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
        """Uploads the tokenizer to the repository `owner/name` of the Hugging Face hub, which is created if needed.
        Needs the extra `hub`.

        Returns:
            the address of the commit.
        """
        with tempfile.TemporaryDirectory() as place:
            self.save_pretrained(Path(place) / "tokenizer")
            return upload(Path(place) / "tokenizer", repo_id, private=private, token=token)

    def _config(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "ds_rvqvae_version": __version__,
            "fingerprint": self._compute_fingerprint(),
            "model": self.model.config.model_dump(mode="json"),
            "in_features": self.model.in_features,
            "fps": self.fps,
            "code_rate": self.code_rate,
            "joint_names": [channels.name for channels in self.layout if channels.kind == "rotation_6d"],
            "layout": layout_to_json(self.layout),
            **self.details,
            "normalisation": {"mean": self.mean.tolist(), "std": self.std.tolist()},
        }

    def _compute_fingerprint(self) -> str:
        settings = {key: getattr(self.model.config, key) for key in _MEANING}
        settings |= {
            key: value
            for key in _MEANING_WHERE_SET
            if (value := getattr(self.model.config, key)) != ModelConfig.model_fields[key].default
        }
        digest = hashlib.sha256(json.dumps([settings, self.fps]).encode())
        training_only = ("ema_sum", "ema_count", "updates")
        for name, tensor in [*sorted(self.model.state_dict().items()), ("mean", self.mean), ("std", self.std)]:
            if not name.endswith(training_only):
                digest.update(name.encode())
                digest.update(tensor.detach().float().cpu().contiguous().numpy())
        return digest.hexdigest()
