"""The protocol of each number."""

import pytest

from ds_rvqvae.motion import recovery
from ds_rvqvae.tokenizer.scores.protocols import protocol_lines_of_all, protocols_of


@pytest.mark.parametrize(
    ("skeleton", "words"),
    [
        (recovery.NAMES[263], "recover_from_ric; MoMask"),
        (recovery.NAMES[251], "recover_from_ric; MoMask"),
        (recovery.NAMES[272], "recover_from_local_position; MotionStreamer"),
        ("built-in", "without the root; Human3.6M"),
    ],
)
def test_mpjpe_has_the_protocol_of_its_columns(skeleton, words):
    assert words in protocols_of({"mpjpe_mm": 1.0, "skeleton": skeleton})["mpjpe_mm"]


def test_only_numbers_that_were_measured_have_a_protocol_and_each_tokenizer_counts():
    face, body = {"l1": 0.1, "mpjpe_mm": None}, {"l1": 0.2, "mpjpe_mm": 9.0, "skeleton": "built-in"}
    assert list(protocols_of(face)) == ["l1"]
    lines = protocol_lines_of_all([face, body])
    assert [line.partition(":")[0] for line in lines] == ["L1", "MPJPE"]
    assert len(protocol_lines_of_all([body, {**body, "skeleton": recovery.NAMES[263]}])) == 3
