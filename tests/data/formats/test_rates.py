"""Frame rates of npz files."""

import numpy as np
import pytest

from ds_rvqvae.data.formats.rates import frame_rate, rate_of
from ds_rvqvae.motion.clip import ClipError


@pytest.mark.parametrize("values", [np.array(29.97), np.array([120], np.int32), np.array([[1.0]], np.float32)])
def test_a_frame_rate_is_the_one_number_there_is(values):
    assert frame_rate(values, "fps") == float(values.reshape(-1)[0])


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.array(0), "fps is 0, not a number of frames a second"),
        (np.array(-30.0), "fps is -30.0"),
        (np.array(np.nan), "fps is nan"),
        (np.array(1e5), "fps is 100000.0"),
        (np.array([30, 30]), r"fps is \[30 30\]"),
        (np.array([]), r"fps is \[\]"),
        (np.array("30"), "fps holds <U2, not a number"),
    ],
)
def test_what_is_no_frame_rate_is_refused(values, reason):
    with pytest.raises(ClipError, match=reason):
        frame_rate(values, "fps")


@pytest.mark.parametrize("key", ["mocap_frame_rate", "mocap_framerate", "fps", "mocap_fps", "frame_rate"])
@pytest.mark.parametrize("value", [20, 20.0, np.float32(20), [20], [[20.0]], b"20", "20.0", [b"20"], np.uint8(20)])
def test_a_rate_stands_under_any_of_its_keys_in_any_shape(key, value):
    assert rate_of({"poses": np.zeros(3), key: np.array(value)}) == 20
    assert rate_of({key: np.array(value), "mocap_frame_rate": np.array(20.001)}) == pytest.approx(20, abs=0.002)


def test_no_rate_is_none_and_two_that_disagree_are_refused():
    assert rate_of({"poses": np.zeros(3)}) is None
    with pytest.raises(ClipError, match="mocap_framerate is 120 and fps is 30 frames a second; --source_fps N") as said:
        rate_of({"fps": np.array(30), "mocap_framerate": np.array([120.0])})
    assert "rvqvae.data.source_fps" in str(said.value)


@pytest.mark.parametrize("value", [b"fast", "", "30 fps", b"nan", "0", ["30", "30"], True, 30j])
def test_a_rate_in_no_words_of_a_number_is_refused(value):
    with pytest.raises(ClipError, match=r"^fps "):
        rate_of({"fps": np.array(value)})
