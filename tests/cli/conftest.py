"""Small tokenizers in folders: of the upper body, of five columns, of a body."""

import pytest

from ds_rvqvae import BodyTokenizer, MotionTokenizer
from ds_rvqvae.motion.layout import feature_layout, select_columns, smplx_layout
from tests.cli.commands import CONFIG, make_tokenizer


@pytest.fixture(scope="module")
def upper(tmp_path_factory):
    """The folder of a tokenizer of the upper body; not to be written to."""
    folder = tmp_path_factory.mktemp("tokenizers") / "upper"
    make_tokenizer(select_columns(smplx_layout(), "upper")[1], "upper").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """The folder of a tokenizer of matrices with five columns; not to be written to."""
    folder = tmp_path_factory.mktemp("tokenizers") / "five"
    make_tokenizer(feature_layout(5)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def body(tmp_path_factory, upper):
    """The folder of a body's tokenizer, its lower part has 8 frames per code and two levels; not to be written to."""
    lower = make_tokenizer(
        select_columns(smplx_layout(), "lower_trans")[1],
        "lower_trans",
        config=CONFIG.model_copy(update={"down_t": 3, "num_quantizers": 2}),
    )
    folder = tmp_path_factory.mktemp("tokenizers") / "body" / "tokenizer"
    BodyTokenizer({"upper": MotionTokenizer.from_pretrained(upper), "lower_trans": lower}).save_pretrained(folder)
    return folder
