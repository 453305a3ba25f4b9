"""How many windows of each length a step takes."""

from hypothesis import given
from hypothesis import strategies as st

from ds_rvqvae.config.batch_sizes import largest_micro_batch_shape, windows_a_step
from ds_rvqvae.config.data import DataConfig


@given(
    st.lists(st.integers(1, 512), min_size=1, max_size=6),
    st.integers(1, 512),
    st.integers(1, 64),
    st.integers(1, 8),
    st.integers(1, 4),
)
def test_frames_a_batch_stay_within_one_window(sizes, window_size, micro_batch, ranks, accumulation):
    data = DataConfig(window_size=window_size, window_sizes=sizes)
    parts = ranks * accumulation
    largest = largest_micro_batch_shape(data, micro_batch).frames
    for size, windows in windows_a_step(data, micro_batch * parts, parts).items():
        wanted = micro_batch * window_size
        micro_batches = [windows * (part + 1) // parts - windows * part // parts for part in range(parts)]
        assert all(abs(count * size - wanted) < size for count in micro_batches)
        assert min(micro_batches) >= 1 and max(micro_batches) * size <= largest
        if size <= wanted:
            assert abs(windows * size - wanted * parts) < size


def test_one_length_is_the_batch_that_was_asked_for():
    data = DataConfig(window_size=128)
    assert windows_a_step(data, 560, 7) == {128: 560} and largest_micro_batch_shape(data, 80) == (80, 128)
