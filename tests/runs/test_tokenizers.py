"""Opening single tokenizers, and a checkpoint's config without its weights."""

import numpy as np
import pytest
import torch

from ds_rvqvae import RVQVAE, BodyTokenizer, MotionTokenizer
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.layout import feature_layout, layout_to_json
from ds_rvqvae.runs.checkpoints import MODEL_FILE
from ds_rvqvae.runs.tokenizers import config_of_checkpoint, open_single, open_tokenizer

CONFIG = ModelConfig(width=8, depth=1, code_dim=4, nb_code=8, num_quantizers=2)


def test_of_a_body_all_parts_are_opened_or_one_has_to_be_named(tmp_path):
    torch.manual_seed(0)
    tokenizer = MotionTokenizer(RVQVAE(5, CONFIG), torch.zeros(5), torch.ones(5), feature_layout(5), 30.0)
    BodyTokenizer({"arm": tokenizer}).save_pretrained(tmp_path / "body")
    opened = open_tokenizer(tmp_path / "body")
    assert isinstance(opened, BodyTokenizer) and opened.parts["arm"].fingerprint == tokenizer.fingerprint
    assert open_single(tmp_path / "body" / "arm").fingerprint == tokenizer.fingerprint
    with pytest.raises(
        UserError, match=f"a body's tokenizer; name the folder of one of its parts: {tmp_path}/body/arm$"
    ):
        open_single(tmp_path / "body")


def test_what_a_checkpoint_says_is_what_its_tokenizer_would(tmp_path):
    checkpoint = tmp_path / "global_step7"
    checkpoint.mkdir()
    layout = feature_layout(5)
    state = {"mean": torch.arange(5.0), "std": torch.ones(5), "layout": layout_to_json(layout), "fps": 20.0}
    state |= {"body_part": "arm", "reading": {"up_axis": "z"}, "scores": {"l1": 0.5}, "model": CONFIG.model_dump()}
    torch.save({"module": {}, "rvqvae": state}, checkpoint / MODEL_FILE)
    found = config_of_checkpoint(checkpoint)
    assert (found.folder, found.model, found.layout, found.fps) == (checkpoint, CONFIG, layout, 20.0)
    np.testing.assert_array_equal(found.mean, np.arange(5, dtype=np.float32), strict=True)
    np.testing.assert_array_equal(found.std, np.ones(5, np.float32), strict=True)
    # A checkpoint of a version that read files in one way only does not say which.
    reading = {"reading_version": 1, "up_axis": "z"}
    expected = {"body_part": "arm", "reading": reading, "training_step": 7, "scores": {"l1": 0.5}}
    assert found.details == expected


@pytest.mark.parametrize("content", [b"", b"nothing", None])
def test_a_checkpoint_that_cannot_be_read_is_named_in_one_line(tmp_path, content):
    if content is None:
        torch.save({"module": {}}, tmp_path / MODEL_FILE)
    else:
        (tmp_path / MODEL_FILE).write_bytes(content)
    with pytest.raises(UserError) as refusal:
        config_of_checkpoint(tmp_path)
    assert str(refusal.value).startswith(f"{tmp_path / MODEL_FILE}: cannot be read: ")
    assert "\n" not in str(refusal.value)
