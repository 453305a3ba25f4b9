"""The number of windows of each length per step."""

from hypothesis import given
from hypothesis import strategies as st

from ds_rvqvae.config.batch_sizes import largest_micro_batch_shape, window_sizes, window_sizes_text, windows_a_step
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


def test_lengths_are_told_once_each_the_shortest_first():
    assert window_sizes(DataConfig(window_size=128)) == [128]
    several = DataConfig(window_size=128, window_sizes=[160, 64, 160, 96])
    assert window_sizes(several) == [64, 96, 160]
    # 80 windows of 128 frames are 10,240 frames: 160 of 64, 106 and two thirds of 96, 64 of 160.
    assert windows_a_step(several, 80) == {64: 160, 96: 106, 160: 64}
    assert windows_a_step(several, 1, parts=7) == {64: 7, 96: 7, 160: 7}
    largest = largest_micro_batch_shape(several, 80)
    assert largest == (107, 96) and largest.frames == 10_272


def test_the_text_says_how_many_windows_of_which_lengths():
    assert window_sizes_text(DataConfig(window_size=128), 80) == "80 windows of 128 frames"
    several = DataConfig(window_size=128, window_sizes=[160, 64])
    assert window_sizes_text(several, 80) == "80 windows of 128 frames, or as many frames in windows of 64, 160"
