"""A tokenizer whose reconstruction is shown."""

import pytest

from tests.viz.shown import upper_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return upper_tokenizer()
