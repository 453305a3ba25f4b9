"""A single tokenizer and a body's, with the interface for files."""

import numpy as np
import pytest

from ds_rvqvae import BodyTokenizer
from ds_rvqvae.motion.clip import Clip, ClipError
from ds_rvqvae.motion.layout import feature_layout, select_columns, smplx_layout
from ds_rvqvae.tokenizer.clips import SingleTokenizer, as_clip_tokenizer
from ds_rvqvae.tokenizer.codes import ONLY_PART
from tests.cli.commands import make_tokenizer


@pytest.fixture
def upper():
    return make_tokenizer(select_columns(smplx_layout(), "upper")[1], "upper")


def _clip(layout, frames=20):
    motion = np.random.default_rng(0).normal(size=(frames, layout[-1].stop)).astype(np.float32)
    return Clip("clip", motion, 30.0, layout)


def test_one_by_itself_is_the_only_part(upper):
    single = as_clip_tokenizer(upper)
    assert isinstance(single, SingleTokenizer) and dict(single.parts) == {ONLY_PART: upper}
    assert (single.fps, single.fingerprint, single.details) == (30.0, upper.fingerprint, upper.details)


def test_a_body_is_one_as_it_is(upper):
    body = BodyTokenizer({"upper": upper})
    assert as_clip_tokenizer(body) is body


def test_its_columns_are_taken_by_name_and_come_back_as_its_own(upper):
    clip = _clip(smplx_layout(), frames=21)
    single = as_clip_tokenizer(upper)
    codes = single.encode_clip(clip)
    own = clip.motion[:, select_columns(smplx_layout(), "upper")[0]]
    assert codes.keys() == {ONLY_PART} and codes[ONLY_PART].shape == (6, 3)
    np.testing.assert_array_equal(codes[ONLY_PART], upper.encode(own))
    motion, layout = single.decode_clip(codes, 21)
    assert motion.shape == (21, 78) and layout == upper.layout
    np.testing.assert_array_equal(motion, upper.decode(codes[ONLY_PART], 21))


def test_columns_without_names_are_only_taken_by_a_tokenizer_of_no_body_part(upper):
    bare = _clip(feature_layout(78))
    with pytest.raises(ClipError, match="no spine1"):
        as_clip_tokenizer(upper).encode_clip(bare)
    whole = make_tokenizer(upper.layout)
    np.testing.assert_array_equal(as_clip_tokenizer(whole).encode_clip(bare)[ONLY_PART], whole.encode(bare.motion))
