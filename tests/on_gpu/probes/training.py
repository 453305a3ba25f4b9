"""Probes inside a training step, and of a tokenizer on its device."""

import hashlib
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from deepspeed.accelerator import get_accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from tests.on_gpu.probes.devices import device
from tests.ranks import ROOT

_PACKAGE = ROOT / "ds_rvqvae"


def _trainer(flags: list[str], folder: str) -> Any:
    from ds_rvqvae.config.request import read_training_flags
    from ds_rvqvae.data.dataset import open_training_data
    from ds_rvqvae.train.trainer import Trainer

    profile = read_training_flags(flags).request().profile
    data = open_training_data(profile)
    Path(folder).mkdir(parents=True, exist_ok=True)
    trainer = Trainer.build(data.fitted(profile), data, Path(folder))
    trainer.initialize_codebooks()
    return trainer


class _Reads(TorchDispatchMode):
    """Counts the operations that make the host wait for a number of the device, by their place in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.places[_place()] += 1
        return func(*args, **(kwargs or {}))


def _place() -> str:
    """The innermost line of code outside torch."""
    for frame in reversed(traceback.extract_stack()):
        if "/torch/" not in frame.filename and Path(frame.filename) != Path(__file__):
            return f"{frame.filename}:{frame.lineno}"
    return "unknown"


@contextmanager
def _counted_synchronizations(places: Counter[str]) -> Iterator[None]:
    """Counts the calls that wait for all work of the device; CUDA's debug mode does not report them."""
    accelerator = get_accelerator()
    synchronize = accelerator.synchronize

    def counted(*arguments: Any) -> None:
        places[_place()] += 1
        synchronize(*arguments)

    with mock.patch.object(accelerator, "synchronize", counted):
        yield


def waits(flags: list[str], folder: str, steps: int) -> dict[str, Any]:
    """Lists the places of a training step at which the host waits for the device.

    On a GPU CUDA's own debug mode finds them. On a CPU nothing waits, but the operations that would are counted.
    """
    trainer = _trainer(flags, folder)
    for _ in range(3):
        trainer.step()
    on_gpu = device().type == "cuda"
    reads = _Reads()
    with ExitStack() as stack:
        stack.enter_context(_counted_synchronizations(reads.places))
        caught = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        if on_gpu:
            torch.cuda.set_sync_debug_mode("warn")
        else:
            stack.enter_context(reads)
        for _ in range(steps):
            trainer.step()
        if on_gpu:
            torch.cuda.set_sync_debug_mode("default")
    places = reads.places
    for one in caught:
        if "called a synchronizing CUDA operation" in str(one.message):
            places[f"{one.filename}:{one.lineno}"] += 1
    trainer.close()
    ours = {place: count for place, count in places.items() if Path(place.rpartition(":")[0]).is_relative_to(_PACKAGE)}
    return {"per_step": sum(places.values()) / steps, "places": dict(places.most_common()), "ours": ours}


def equal_ranks(flags: list[str], folder: str, steps: int) -> dict[str, str]:
    """Trains, and returns the sha256 of this rank's weights and codebooks."""
    trainer = _trainer(flags, folder)
    for _ in range(steps):
        trainer.step()
    module = trainer.engine.module
    return {
        "weights": _sha256(module.parameters()),
        "codebooks": _sha256(module.quantizer.buffers()),
        "loss": repr(float(trainer.step().loss)),
    }


def _sha256(tensors: Any) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def codes(tokenizer: str, motion: str, frames: int) -> dict[str, float]:
    """Compares a clip's codes on the device with those on the CPU, alone with in a batch, and at once with streamed.

    Returns:
        fractions of equal codes; the first level and all levels between device and CPU.
    """
    from ds_rvqvae.data.files import read_clip
    from ds_rvqvae.tokenizer.folder import own_columns, reading_config
    from ds_rvqvae.tokenizer.tokenizer import MotionTokenizer

    where = device()
    on_cpu = MotionTokenizer.from_pretrained(tokenizer)
    on_device = MotionTokenizer.from_pretrained(tokenizer, device=where)
    files = sorted(Path(motion).rglob("*.npz"))[:2]
    clips = []
    for file in files:
        clip = read_clip(file, reading_config(on_cpu.details, on_cpu.fps, str(file)))
        columns = own_columns(on_cpu.layout, clip, on_cpu.details, file)
        clips.append(torch.from_numpy(np.ascontiguousarray(clip.motion[:frames, columns])))
    shorter = clips[1][: len(clips[1]) // 2]
    batch = torch.zeros(2, len(clips[0]), clips[0].shape[1])
    batch[0], batch[1, : len(shorter)] = clips[0], shorter
    alone = on_device.encode(clips[0].to(where)).cpu()
    batched = on_device.encode(batch.to(where), [len(clips[0]), len(shorter)]).cpu()[0, : len(alone)]
    stream = on_device.encoder_stream()
    pieces = [stream.push(piece.to(where)) for piece in torch.split(clips[0], 7)]
    streamed = torch.cat([*pieces, stream.finish()]).cpu()
    wanted = on_cpu.encode(clips[0])
    return {
        "device_first_level": _equal(alone[:, :1], wanted[:, :1]),
        "device_all_levels": _equal(alone, wanted),
        "batched": _equal(alone, batched),
        "streamed": _equal(alone, streamed),
        "codes": float(wanted.numel()),
        "used": float(len(torch.unique(wanted[:, 0]))),
    }


def _equal(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found == wanted).float().mean()) if found.shape == wanted.shape else 0.0
