"""A tokenizer inside a second stage: whatever its trainer does, codes, motion and weights are the same bit for bit."""

import contextlib
import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ds_rvqvae import RVQVAE, MotionTokenizer
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.motion.layout import feature_layout

COLUMNS, FRAMES = 12, 403
BASE = ModelConfig(width=32, depth=2, down_t=2, code_dim=8, nb_code=64, num_quantizers=4, dropout=0.2)
NETS = {
    "relu": {},
    "group norm": {"norm": "GN"},
    "layer norm": {"norm": "LN", "activation": "silu", "beam_size": 3},
    "cosine": {"codebook_distance": "cosine", "shared_codebook": True},
    "grid": {"fsq_levels": [8, 8], "num_quantizers": 4},
    "lineage": {"lineage": True, "sample_codebook_temp": 0.5},
}


class SecondStage(nn.Module):
    """A transformer's place is taken by a layer of its kind for each kind that trainers look for."""

    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer = tokenizer
        self.embedding = nn.Embedding(64, 16)
        self.convolution = nn.Conv1d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 64)

    def forward(self, motion):
        codes = self.tokenizer.encode(motion)[:, 0].contiguous()
        hidden = self.convolution(self.embedding(codes).t().unsqueeze(0))[0].t()
        return nn.functional.cross_entropy(self.head(hidden).float(), codes)


def made_motion():
    steps = torch.randn(FRAMES, COLUMNS, generator=torch.Generator().manual_seed(3))
    return steps.cumsum(0) / 10 + 2


@pytest.fixture(scope="module", params=NETS, ids=lambda name: name.replace(" ", "_"))
def folder(request, tmp_path_factory):
    torch.manual_seed(0)
    model = RVQVAE(COLUMNS, BASE.model_copy(update=NETS[request.param]))
    motion = made_motion()
    mean, std = motion.mean(0), motion.std(0)
    normalised = ((motion - mean) / std)[: FRAMES // 4 * 4]
    with torch.no_grad():
        model.encoder[-1].weight.mul_(20)
        model.quantizer.initialize_codebooks(model.eval().encode_latents(normalised[None]))
    place = tmp_path_factory.mktemp("tokenizers") / "tokenizer"
    MotionTokenizer(model, mean, std, feature_layout(COLUMNS), 30.0).save_pretrained(place)
    return place


class Seen:
    """What a tokenizer gives and is before anything is done to it, and whether another one still does."""

    def __init__(self, folder):
        self.folder = folder
        self.motion = made_motion()
        tokenizer = MotionTokenizer.from_pretrained(folder)
        self.codes = tokenizer.encode(self.motion)
        self.decoded = tokenizer.decode(self.codes, FRAMES)
        self.weights = {name: tensor.clone() for name, tensor in tokenizer.model.state_dict().items()}
        self.statistics = tokenizer.mean.clone(), tokenizer.std.clone()
        self.fingerprint = tokenizer.fingerprint

    def stage(self):
        torch.manual_seed(1)
        return SecondStage(MotionTokenizer.from_pretrained(self.folder))

    def check(self, tokenizer):
        codes, weights = tokenizer.encode(self.motion), tokenizer.model.state_dict()
        assert torch.equal(codes, self.codes), f"{(codes != self.codes).sum()} of {codes.numel()} codes differ"
        assert torch.equal(tokenizer.decode(self.codes, FRAMES), self.decoded)
        stream = tokenizer.encoder_stream() if tokenizer.model.config.norm != "GN" else None
        if stream:
            assert torch.equal(torch.cat([stream.push(self.motion), stream.finish()]), self.codes)
        moved = [name for name, tensor in self.weights.items() if not torch.equal(tensor, weights[name])]
        assert not moved and [*weights] == [*self.weights]
        assert {tensor.dtype for tensor in weights.values()} == {tensor.dtype for tensor in self.weights.values()}
        assert torch.equal(tokenizer.mean, self.statistics[0]) and torch.equal(tokenizer.std, self.statistics[1])
        assert tokenizer.fingerprint == self.fingerprint
        assert not any(parameter.requires_grad for parameter in tokenizer.parameters())


@pytest.fixture(scope="module")
def seen(folder):
    return Seen(folder)


def steps(stage, motion, optimizer=None, count=3):
    optimizer = optimizer or torch.optim.AdamW(stage.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(count):
        optimizer.zero_grad()
        stage(motion).backward()
        nn.utils.clip_grad_norm_(stage.parameters(), 1.0)
        optimizer.step()


def first_weights(module):
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Embedding):
        module.weight.data.normal_(0, 0.02)


def first_weights_of_all(stage):
    for parameter in stage.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    for module in stage.modules():
        first_weights(module)
    for child in stage.children():
        for module in child.children():
            module.apply(first_weights)


def decay_without_gradient(stage):
    stage.requires_grad_(True)
    for parameter in stage.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(stage.parameters(), lr=0.1, weight_decay=0.5).step()


def cast_tensor_by_tensor(stage):
    for parameter in stage.parameters():
        parameter.data = parameter.data.bfloat16()
    for module in stage.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = buffer.bfloat16()


def average_of_state_dicts(stage):
    average = copy.deepcopy(stage)
    for mean, tensor in zip(average.state_dict().values(), stage.state_dict().values(), strict=True):
        mean.copy_((0.9 * mean.double() + 0.2 * tensor.double()).to(mean.dtype))
    return average


def average_of_parameters(stage):
    average = AveragedModel(stage, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for parameter in stage.parameters():
        parameter.data.add_(1.0)
    average.update_parameters(stage)
    return average.module


def rounded_checkpoint(stage, dtype):
    other = copy.deepcopy(stage)
    other.load_state_dict({name: tensor.to(dtype) for name, tensor in stage.state_dict().items()})
    other.load_state_dict({name: tensor.to(dtype).float() for name, tensor in stage.state_dict().items()})
    return other


def assigned_checkpoint(stage):
    stage.load_state_dict({name: tensor.half() for name, tensor in stage.state_dict().items()}, assign=True)


def layer_by_layer(stage):
    """As transformers loads a checkpoint in the type it is asked for."""
    for name, tensor in stage.state_dict().items():
        place, _, last = name.rpartition(".")
        stage.get_submodule(place).load_state_dict({last: tensor.half()}, strict=False, assign=True)


def saved_whole(stage):
    content = io.BytesIO()
    torch.save(stage, content)
    content.seek(0)
    return torch.load(content, weights_only=False)


def saved_state(stage):
    content = io.BytesIO()
    torch.save(stage.state_dict(), content)
    content.seek(0)
    stage.load_state_dict(torch.load(content, weights_only=True))


def with_parts_of_the_nets(stage):
    """A second stage that names the nets, and a part of them, as its own."""
    stage.nets, stage.decoder = stage.tokenizer.model, stage.tokenizer.model.decoder
    stage.bfloat16().train()


def emptied(stage):
    stage.to_empty(device="cpu")


def vector(stage):
    values = nn.utils.parameters_to_vector(stage.parameters())
    nn.utils.vector_to_parameters(torch.zeros_like(values), stage.parameters())


def quantized(stage):
    return torch.ao.quantization.quantize_dynamic(stage, {nn.Linear, nn.Conv1d}, dtype=torch.qint8)


def functional(stage):
    other = {name: torch.zeros_like(tensor) for name, tensor in stage.named_parameters()}
    torch.func.functional_call(stage, other, (made_motion(),))


DONE_TO_IT = {
    "half": lambda stage: stage.half(),
    "bfloat16": lambda stage: stage.bfloat16(),
    "double": lambda stage: stage.double(),
    "to a type": lambda stage: stage.to(torch.float16),
    "to a device and a type": lambda stage: stage.to("cpu", torch.bfloat16),
    "to a tensor": lambda stage: stage.to(torch.zeros(1, dtype=torch.float64)),
    "type": lambda stage: stage.type(torch.float16),
    "cast tensor by tensor": cast_tensor_by_tensor,
    "there and back": lambda stage: stage.half().float(),
    "channels last": lambda stage: stage.to(memory_format=torch.channels_last),
    "emptied": emptied,
    "to meta": lambda stage: stage.to("meta"),
    "shared": lambda stage: stage.share_memory(),
    "train": lambda stage: stage.train(),
    "train, layer by layer": lambda stage: [module.train() for module in stage.modules()] and None,
    "train of the nets": lambda stage: [module.train() for module in stage.tokenizer.model.modules()] and None,
    "gradients": lambda stage: stage.requires_grad_(True),
    "first weights": lambda stage: stage.apply(first_weights),
    "first weights of all": first_weights_of_all,
    "steps": lambda stage: steps(stage.train(), made_motion()),
    "decay": decay_without_gradient,
    "vector": vector,
    "average of parameters": average_of_parameters,
    "average of state dicts": average_of_state_dicts,
    "deepcopy": copy.deepcopy,
    "deepcopy of a cast one": lambda stage: copy.deepcopy(stage.half()),
    "pickle": lambda stage: pickle.loads(pickle.dumps(stage)),
    "saved whole": saved_whole,
    "saved state": saved_state,
    "rounded to bfloat16": lambda stage: rounded_checkpoint(stage, torch.bfloat16),
    "rounded to float16": lambda stage: rounded_checkpoint(stage, torch.float16),
    "assigned": assigned_checkpoint,
    "layer by layer": layer_by_layer,
    "nets by name": with_parts_of_the_nets,
    "quantized": quantized,
    "functional": functional,
    "data parallel": lambda stage: DataParallel(stage).module,
}


@pytest.mark.parametrize("change", DONE_TO_IT.values(), ids=DONE_TO_IT)
def test_what_is_done_to_its_parent_changes_nothing(seen, change):
    stage = seen.stage()
    changed = change(stage)
    seen.check(stage.tokenizer)
    if isinstance(changed, SecondStage):
        seen.check(changed.tokenizer)


@contextlib.contextmanager
def defaults(dtype=None, device=None):
    try:
        torch.set_default_dtype(dtype or torch.float32)
        torch.set_default_device(device)
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


@contextlib.contextmanager
def precision(owner, value):
    before = owner.fp32_precision
    owner.fp32_precision = value
    try:
        yield
    finally:
        owner.fp32_precision = before


@contextlib.contextmanager
def matmul_precision(value):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(value)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


AROUND_IT = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to half": lambda: torch.autocast("cpu", torch.float16),
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "anomaly detection": torch.autograd.detect_anomaly,
    "default bfloat16": lambda: defaults(torch.bfloat16),
    "default float64": lambda: defaults(torch.float64),
    "default meta": lambda: defaults(device="meta"),
    "meta": lambda: torch.device("meta"),
    "matmul medium": lambda: matmul_precision("medium"),
    "matmul high": lambda: matmul_precision("high"),
    "deterministic": deterministic,
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("around", AROUND_IT.values(), ids=AROUND_IT)
def test_what_is_set_around_it_changes_nothing(seen, around):
    loaded_outside = seen.stage().tokenizer
    given = seen.motion.numpy(), seen.codes.numpy()
    with around():
        codes, decoded = loaded_outside.encode(given[0]), loaded_outside.decode(given[1], FRAMES)
        loaded_inside = MotionTokenizer.from_pretrained(seen.folder)
        assert np.array_equal(loaded_inside.encode(given[0]), given[1])
        with torch.autocast("cpu", torch.bfloat16):
            assert np.array_equal(loaded_inside.encode(given[0]), given[1])
    assert np.array_equal(codes, given[1]) and np.array_equal(decoded, seen.decoded.numpy())
    seen.check(loaded_outside)
    seen.check(loaded_inside)


def test_without_this_autocast_would_change_codes(seen):
    """What the tests above would miss if the nets were so small that nothing rounds."""
    tokenizer = seen.stage().tokenizer
    normalised = ((seen.motion - tokenizer.mean) / tokenizer.std)[None, : FRAMES // 4 * 4]
    plain = tokenizer.model.encode(normalised)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(tokenizer.model.encode(normalised), plain)
