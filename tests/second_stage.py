"""A second stage around a tokenizer, and the tokenizer's state before its trainer changed it."""

from pathlib import Path

import torch
from torch import Tensor, nn

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
    "grid": {"fsq_levels": [8, 8]},
    "lineage": {"lineage": True, "sample_codebook_temp": 0.5},
}
"""Nets and quantizers that compute in ways of their own."""


class SecondStage(nn.Module):
    """In place of a transformer it has one layer of each kind that trainers look for."""

    def __init__(self, tokenizer: MotionTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.embedding = nn.Embedding(64, 16)
        self.convolution = nn.Conv1d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 64)

    def forward(self, motion):
        codes = self.tokenizer.encode(motion)[:, 0].contiguous()
        hidden = self.convolution(self.embedding(codes).t().unsqueeze(0))[0].t()
        return nn.functional.cross_entropy(self.head(hidden).float(), codes)


def made_motion() -> Tensor:
    steps = torch.randn(FRAMES, COLUMNS, generator=torch.Generator().manual_seed(3))
    return steps.cumsum(0) / 10 + 2


def save_tokenizer(folder: Path, kind: str = "relu") -> Path:
    """A tokenizer of one of `NETS`, untrained, so sensitive that bf16 changes codes."""
    torch.manual_seed(0)
    model = RVQVAE(COLUMNS, BASE.model_copy(update=NETS[kind]))
    motion = made_motion()
    mean, std = motion.mean(0), motion.std(0)
    normalised = ((motion - mean) / std)[: FRAMES // 4 * 4]
    with torch.no_grad():
        model.encoder[-1].weight.mul_(20)
        model.quantizer.initialize_codebooks(model.eval().encode_latents(normalised[None]))
    MotionTokenizer(model, mean, std, feature_layout(COLUMNS), 30.0).save_pretrained(folder)
    return folder


class Seen:
    """The results and state of a tokenizer before any change, and a comparison with another one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.motion = made_motion()
        tokenizer = MotionTokenizer.from_pretrained(folder)
        self.codes = tokenizer.encode(self.motion)
        self.decoded = tokenizer.decode(self.codes, FRAMES)
        self.weights = {name: tensor.clone() for name, tensor in tokenizer.model.state_dict().items()}
        self.statistics = tokenizer.mean.clone(), tokenizer.std.clone()
        self.fingerprint = tokenizer.fingerprint

    def stage(self) -> SecondStage:
        torch.manual_seed(1)
        return SecondStage(MotionTokenizer.from_pretrained(self.folder))

    def check(self, tokenizer: MotionTokenizer) -> None:
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


def steps(stage: nn.Module, motion: Tensor, count: int = 3) -> None:
    """Training steps in which everything that an optimizer reaches moves."""
    optimizer = torch.optim.AdamW(stage.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(count):
        optimizer.zero_grad()
        stage(motion).backward()
        nn.utils.clip_grad_norm_(stage.parameters(), 1.0)
        optimizer.step()
