"""Facts of a comparison: latency, against streams that are fed one code at a time."""

import pytest
import torch

from ds_rvqvae import RVQVAE, MotionTokenizer
from ds_rvqvae.model.streaming import DecoderStream, EncoderStream
from ds_rvqvae.tokenizer.scores.comparison import common_stride, comparison_notes, latencies
from tests.tokenizer.scores.scoring import CONFIG, LAYOUT


def _tokenizer(**config):
    torch.manual_seed(0)
    model = RVQVAE(14, CONFIG.model_copy(update=config))
    return MotionTokenizer(model, torch.zeros(14), torch.ones(14), LAYOUT, 20.0)


def _longest_wait(stream, inputs, in_frames, out_frames):
    """Frames that have come in when an output comes out, less those up to its own last one, at most."""
    out, waits = 0, []
    for at, row in enumerate(inputs, start=1):
        for _ in stream.push(row[None]):
            waits.append(at * in_frames - (out + 1) * out_frames)
            out += 1
    return max(waits)


@pytest.mark.parametrize(("config", "stride"), [({}, 4), ({"down_t": 3, "depth": 2}, 8)])
def test_latency_is_how_long_a_stream_holds_back(config, stride):
    tokenizer = _tokenizer(**config)
    found, model = latencies(tokenizer), tokenizer.model
    assert common_stride([tokenizer, _tokenizer()]) == stride
    decoder, encoder = (make(model, lambda rows: rows, 1) for make in (DecoderStream, EncoderStream))
    codes = torch.randint(0, 8, (80, 3))
    assert _longest_wait(decoder, codes, stride, 1) == found["decoder_latency_frames"]
    assert _longest_wait(encoder, torch.randn(400, 14), 1, stride) == found["encoder_latency_frames"]
    assert found["decoder_latency_ms"] == 50 * found["decoder_latency_frames"]


def test_group_norm_needs_the_whole_clip():
    found = latencies(_tokenizer(norm="GN", width=32))
    assert set(found.values()) == {None}
    results = [{"name": "a", "bits_per_second": 1.0, "code_rate": 5.0, **found}]
    assert comparison_notes(results) == ["No latency, because group norm needs the whole clip: a."]
