"""Clips in chunks, clips in pieces and clips in one pass: the same codes and motion, for every shape of net."""

import gc
import random
from collections import Counter
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch

from ds_rvqvae import RVQVAE, MotionTokenizer
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.motion.layout import feature_layout

SHAPES = {
    "stride 2": {},
    "stride 3": {"stride_t": 3},
    "layer norm": {"down_t": 3, "norm": "LN"},
    "stride 1": {"stride_t": 1, "down_t": 1},
    "no down-sampling": {"down_t": 0},
    "stride 5": {"stride_t": 5, "down_t": 1, "dilation_growth_rate": 2},
    "gelu": {"stride_t": 4, "activation": "gelu"},
    "scalar quantization": {"fsq_levels": [4, 2, 2], "code_dim": 6},
    "beam search": {"beam_size": 4},
    "shared codebook": {"shared_codebook": True, "depth": 3},
}


def _tokenizer(**shape):
    torch.manual_seed(0)
    config = ModelConfig(**{"width": 32, "depth": 2, "code_dim": 8, "nb_code": 16, "num_quantizers": 3, **shape})
    return MotionTokenizer(RVQVAE(6, config), torch.randn(6), torch.rand(6) + 0.5, feature_layout(6), 30.0)


def _motion(frames):
    return torch.from_numpy(np.random.default_rng(frames).normal(size=(frames, 6)).astype(np.float32))


def _in_pieces(stream, rows, most, seed):
    """The output of a stream for pieces of random length, and after each piece the rows in and out so far."""
    lengths, given, out, counts = random.Random(seed), 0, [], []
    while given < len(rows):
        count = lengths.randint(1, most)
        out.append(stream.push(rows[given : given + count]))
        given = min(given + count, len(rows))
        counts.append((given, sum(map(len, out))))
    return torch.cat([*out, stream.finish()]), counts


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_chunks_and_pieces_equal_one_pass(shape):
    tokenizer = _tokenizer(**shape)
    tokenizer.chunk = 7
    stride = tokenizer.code_stride
    for frames in (1, 2, 3, 8, 13, 50, 97, 333):
        motion = _motion(frames)
        codes = tokenizer.encode(motion)
        streamed, counts = _in_pieces(tokenizer.encoder_stream(), motion, 60, frames)
        assert torch.equal(streamed, codes)
        latency = tokenizer.encoder_stream().latency
        # A code comes out when `latency` frames have followed its own.
        assert all(known >= (given - latency) // stride for given, known in counts)

        padded = torch.cat([motion, motion[-1:].expand(-frames % stride, -1)])
        whole = tokenizer.model.encode(((padded - tokenizer.mean) / tokenizer.std)[None])[0]
        # A different shape may round differently, and a vector between two codes then gets the other one.
        assert (whole != codes).float().mean() <= 0.02

        decoded = tokenizer.decode(codes)
        streamed, counts = _in_pieces(tokenizer.decoder_stream(), codes, 20, frames)
        assert torch.equal(streamed, decoded)
        latency = tokenizer.decoder_stream().latency
        assert all(known >= given * stride - latency for given, known in counts)

        with torch.no_grad():
            whole = tokenizer.model.decode(codes[None])[0] * tokenizer.std + tokenizer.mean
        torch.testing.assert_close(decoded, whole, rtol=0, atol=1e-5)


def test_the_latency_is_no_longer_than_it_has_to_be():
    tokenizer = _tokenizer()
    tokenizer.chunk = 1
    stream = tokenizer.encoder_stream()
    pushed = 0
    for frame in _motion(200).split(1):
        pushed += 1
        if len(stream.push(frame)):
            break
    assert pushed - tokenizer.code_stride == stream.latency


def test_a_stream_keeps_no_more_of_a_long_clip_than_of_a_short_one():
    tokenizer = _tokenizer()
    tokenizer.chunk = 8

    def kept(frames):
        """Bytes of tensors that exist now and did not before."""
        before = _tensor_bytes()
        stream = tokenizer.encoder_stream()
        for _ in range(frames // 11):
            stream.push(torch.zeros(11, 6))
        return _tensor_bytes() - before

    assert 0 < kept(5500) <= kept(550) + 8 * 4 * 6 * 4


def _tensor_bytes():
    gc.collect()
    # Only tensors that hold numbers: compilation in an earlier test leaves others.
    kinds = (torch.Tensor, torch.nn.Parameter)
    tensors = [thing for thing in gc.get_objects() if type(thing) in kinds and thing.layout == torch.strided]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def test_a_stream_takes_what_encode_takes_until_it_is_finished():
    tokenizer = _tokenizer()
    stream, motion = tokenizer.encoder_stream(), _motion(30)
    for wrong in (motion[:, :1], motion[None], motion[0]):
        with pytest.raises(ValueError, match="takes \\[frames, 6\\]"):
            stream.push(wrong)
    codes = torch.cat([stream.push(motion[:0].numpy()), stream.push(motion.numpy()), stream.finish()])
    assert torch.equal(codes, tokenizer.encode(motion))
    decoder = tokenizer.decoder_stream()
    decoder.push(codes[:3, :2])
    for wrong in (codes, codes.float(), codes[0]):
        with pytest.raises(ValueError, match="give integers \\[codes, 2\\]"):
            decoder.push(wrong)
    decoder.finish()
    for use in (stream.finish, decoder.finish, lambda: stream.push(motion), lambda: decoder.push(codes[:, :2])):
        with pytest.raises(ValueError, match="finished"):
            use()
    assert len(tokenizer.encoder_stream().finish()) == len(tokenizer.decoder_stream().finish()) == 0


REFUSED_MOTION = {
    "not a number": lambda piece: _with(piece, float("nan")),
    "infinite": lambda piece: _with(piece, -float("inf")),
    "infinite in fp32": lambda piece: _with(piece.double(), 1e39),
    "too large to normalise": lambda piece: _with(piece, 3.4e38),
    "too large for the nets": lambda piece: _with(piece, 1e37),
    "other columns": lambda piece: piece[:, :5],
    "a batch": lambda piece: piece[None],
    "rounded": lambda piece: piece.bfloat16(),
    "complex": lambda piece: piece.to(torch.complex64),
}
REFUSED_CODES = {
    "below -1": lambda piece: _with(piece, -2),
    "dropped first level": lambda piece: _with(piece, -1, 0),
    "past the last code": lambda piece: _with(piece, 16),
    "more levels": lambda piece: torch.cat([piece, piece], dim=1),
    "fewer levels": lambda piece: piece[:, :2],
    "no levels": lambda piece: piece[:, :0],
    "floats": lambda piece: piece.float(),
    "truth values": lambda piece: piece.bool(),
    "a batch": lambda piece: piece[None],
    "wrapped": lambda piece: _with(piece, -1).numpy().astype(np.uint64),
}
PUSHED = {
    "plain": {},
    "layer norm": {"norm": "LN", "down_t": 1, "depth": 3},
    "scalar quantization": {"fsq_levels": [4, 2, 2], "code_dim": 6},
    "shared codebook": {"shared_codebook": True, "depth": 1},
    "beam search": {"beam_size": 3, "stride_t": 3},
    "bf16": {"dtype": torch.bfloat16},
    "bf16 layer norm": {"dtype": torch.bfloat16, "norm": "LN"},
}


def _with(piece, value, column=-1):
    """Returns a piece with one value of a middle row replaced."""
    piece = piece.clone()
    piece[len(piece) // 2, column] = value
    return piece


def _pushed(stream, net, rows, refused, seed):
    """Pushes 1,000 pieces of random sizes, with refused pieces and failing layers between them, which raise at once;
    returns the stream's output, the number of rows taken, and how often each kind failed."""
    draw, given, out, counts = random.Random(seed), 0, [], Counter()
    layers = [module for name, module in net.named_modules() if name.endswith(("activation2", "conv2"))]
    for _ in range(1000):
        piece = rows[given : given + draw.choice((0, 1, 1, 1, 2, 3, 5, 9, 40))].clone()
        kind = draw.choice((*refused, "a layer fails", *[None] * (len(refused) + 1))) if len(piece) else None
        if kind in refused:
            with pytest.raises((ValueError, TypeError)):
                stream.push(refused[kind](piece))
            counts[kind] += 1
            continue
        with ExitStack() as failing:
            if kind is not None:
                failing.enter_context(_failing(draw.choice(layers), draw.choice((RuntimeError, KeyboardInterrupt))))
            try:
                out.append(stream.push(piece))
            except (RuntimeError, KeyboardInterrupt):
                assert kind is not None
                counts[kind] += 1
            else:
                given += len(piece)
                piece.fill_(7)  # the caller may change it again
    with _failing(layers[-1], MemoryError), pytest.raises(MemoryError):
        stream.finish()
    return torch.cat([*out, stream.finish()]), given, counts


@contextmanager
def _failing(layer, failure):
    """Inside, the layer raises `failure` after its computation."""

    def fail(*_):
        raise failure

    hook = layer.register_forward_hook(fail)
    try:
        yield
    finally:
        hook.remove()


def _of_dtype(shape):
    """A tokenizer that runs in a float type, and the kinds of motion that it refuses."""
    shape, dtype = dict(shape), shape.get("dtype", torch.float32)
    shape.pop("dtype", None)
    tokenizer = _tokenizer(**shape)
    if dtype != torch.float32:
        model = RVQVAE(6, tokenizer.model.config)
        model.load_state_dict(tokenizer.model.state_dict())
        tokenizer = MotionTokenizer(model.to(dtype), tokenizer.mean, tokenizer.std, tokenizer.layout, tokenizer.fps)
    refused = {kind: refuse for kind, refuse in REFUSED_MOTION.items() if kind != "rounded" or dtype == torch.float32}
    return tokenizer, refused


@pytest.mark.parametrize("shape", PUSHED.values(), ids=PUSHED)
def test_a_stream_is_as_it_was_after_a_piece_that_it_refused(shape):
    tokenizer, refused = _of_dtype(shape)
    tokenizer.chunk = 16
    motion = _motion(9000)
    codes, given, counts = _pushed(tokenizer.encoder_stream(), tokenizer.model.encoder, motion, refused, 1)
    assert given > 2000 and counts.keys() == {*refused, "a layer fails"}
    assert torch.equal(codes, tokenizer.encode(motion[:given]))

    codes = torch.randint(0, 16, (9000, 3), generator=torch.Generator().manual_seed(0))
    codes[::7, 1:] = -1
    decoded, given, counts = _pushed(tokenizer.decoder_stream(), tokenizer.model.decoder, codes, REFUSED_CODES, 2)
    assert given > 2000 and counts.keys() == {*REFUSED_CODES, "a layer fails"}
    assert torch.equal(decoded, tokenizer.decode(codes[:given]))


def test_whole_clips_refuse_what_streams_refuse():
    for norm in (None, "GN"):
        tokenizer, motion = _tokenizer(norm=norm), _motion(50)
        codes = tokenizer.encode(motion)
        for kind, refuse in REFUSED_MOTION.items():
            for batch in (refuse(motion), refuse(motion)[None]) if kind != "a batch" else ():
                with pytest.raises((ValueError, TypeError), match="motion"):
                    tokenizer.encode(batch)
        for kind, refuse in REFUSED_CODES.items():
            for batch in (refuse(codes), refuse(codes)[None]) if kind not in ("a batch", "fewer levels") else ():
                with pytest.raises(ValueError, match="codes"):
                    tokenizer.decode(batch)


def test_a_stream_takes_pieces_in_and_out_of_inference_mode():
    tokenizer, motion = _tokenizer(), _motion(40)
    tokenizer.chunk = 4
    stream, out = tokenizer.encoder_stream(), []
    for number, piece in enumerate(motion.split(3)):
        with torch.inference_mode(number % 2 == 0):
            out.append(stream.push(piece.clone()))
    assert torch.equal(torch.cat([*out, stream.finish()]), tokenizer.encode(motion))


def test_fewer_levels_and_dropped_ones_decode_in_pieces_too():
    tokenizer = _tokenizer()
    tokenizer.chunk = 5
    codes = tokenizer.encode(_motion(90))
    codes[3:9, 1] = -1
    for levels in (1, 2, 3):
        streamed, _ = _in_pieces(tokenizer.decoder_stream(), codes[:, :levels], 4, levels)
        assert torch.equal(streamed, tokenizer.decode(codes[:, :levels]))


def test_group_norm_takes_whole_clips_only():
    tokenizer = _tokenizer(norm="GN")
    with pytest.raises(ValueError, match="group norm"):
        tokenizer.encoder_stream()
    motion = _motion(50)
    normalised = (torch.cat([motion, motion[-1:].expand(2, -1)]) - tokenizer.mean) / tokenizer.std
    assert torch.equal(tokenizer.encode(motion), tokenizer.model.encode(normalised[None])[0])


@pytest.mark.real_data
def test_real_motion_of_twenty_lengths(real_data):
    packed = np.load(real_data / "cmu" / "task.npz")
    model = RVQVAE(150, ModelConfig(width=64, nb_code=256, code_dim=32))
    every = torch.from_numpy(packed["motion"])
    mean, std = every.mean(dim=0), every.std(dim=0).clamp(min=0.01)
    with torch.no_grad():
        model.quantizer.initialize_codebooks(model.encode_latents((every[None, :4000] - mean) / std))
    tokenizer = MotionTokenizer(model, mean, std, feature_layout(150), 30.0)
    lengths = random.Random(0)
    for _ in range(20):
        motion = torch.from_numpy(packed["motion"][: lengths.randint(1, 5000)])
        codes = tokenizer.encode(motion)
        streamed, _ = _in_pieces(tokenizer.encoder_stream(), motion, 900, len(motion))
        assert torch.equal(streamed, codes)
        padded = torch.cat([motion, motion[-1:].expand(-len(motion) % 4, -1)])
        one_pass = tokenizer.model.encode(((padded - tokenizer.mean) / tokenizer.std)[None])[0]
        assert (one_pass != codes).float().mean() <= 0.001
        decoded = tokenizer.decode(codes)
        streamed, _ = _in_pieces(tokenizer.decoder_stream(), codes, 300, len(motion))
        assert torch.equal(streamed, decoded)
        with torch.no_grad():
            whole = tokenizer.model.decode(codes[None])[0] * tokenizer.std + tokenizer.mean
        torch.testing.assert_close(decoded, whole, rtol=0, atol=1e-5)
