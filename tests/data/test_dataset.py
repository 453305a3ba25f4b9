import numpy as np
import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.dataset import MotionData
from ds_rvqvae.data.store.prepare import prepare_store
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.layout import smplx_layout
from tests.data.motion import write_packed

SPLIT = np.array(["train", "val", "train"])


def open_packed(
    tmp_path, *, window_size=16, window_stride=4, lengths=(40, 30, 50), split=SPLIT, clip_name=None, **settings
) -> MotionData:
    names = {} if clip_name is None else {"clip_name": clip_name}
    file = write_packed(tmp_path / "all.npz", lengths, split=split, **names)
    return MotionData.open(DataConfig(path=str(file), window_size=window_size, window_stride=window_stride, **settings))


def test_a_body_part_of_demo_motion(demo_folder):
    data = MotionData.open(DataConfig(path=str(demo_folder), body_part="lower_trans", window_size=64, window_stride=8))
    assert data.in_features == 57 and data.layout[-1].stop == 57
    segment = data.segments("val")[0]
    there = {channels.name: channels for channels in smplx_layout()}
    for channels in data.layout:
        whole = data.store.clip(segment.name)[:, there[channels.name].start : there[channels.name].stop]
        assert np.array_equal(data.frames(segment)[:, channels.start : channels.stop], whole)


def test_windows_stay_in_their_segment(tmp_path):
    data = open_packed(tmp_path)
    starts = data.window_starts()
    assert starts.dtype == np.int64
    assert starts.tolist() == [*range(0, 40 - 16 + 1, 4), *range(70, 120 - 16 + 1, 4)]
    assert data.clip_names(starts) == ["clip0"] * 7 + ["clip2"] * 9
    assert set(data.clip_names(data.window_starts("val"))) == {"clip1"}


def test_no_window_crosses_a_cut_in_time(tmp_path):
    data = open_packed(tmp_path, lengths=(100,), split=None)
    assert data.window_starts().max() == 80 - 16
    assert len(data.segments("train")) == 1 and not data.segments("val")  # ten frames are too few to hold out
    assert [(segment.start, segment.stop) for segment in data.segments("all")] == [(0, 100)]  # the whole clip


def test_windows_are_normalised_rows_of_the_store(tmp_path):
    data = open_packed(tmp_path)
    starts = data.window_starts()[[3, 0, 9]]
    windows = data.windows(starts)
    assert windows.shape == (3, 16, 5) and windows.dtype == np.float32
    for window, start in zip(windows, starts, strict=True):
        assert np.allclose(window * data.std + data.mean, data.store.read(start, start + 16), atol=1e-4)
    segment = data.segments("train")[0]
    assert np.array_equal(data.windows(np.array([4]))[0], data.normalised(segment)[4:20])
    assert np.array_equal(data.frames(segment), data.store.clip("clip0"))


def test_a_column_that_never_moves_is_divided_by_the_floor(tmp_path):
    file = write_packed(tmp_path / "all.npz", motion=np.full((120, 5), 3, np.float32))
    data = MotionData.open(DataConfig(path=str(file), window_size=16, std_floor=0.5))
    assert data.store.std.max() == 0 and data.std.tolist() == [0.5] * 5
    assert not data.windows(data.window_starts()).any()


def test_mean_and_std_from_files(tmp_path):
    np.save(tmp_path / "m.npy", np.arange(5.0))
    np.save(tmp_path / "s.npy", np.full(5, 2.0))
    files = {"mean_file": str(tmp_path / "m.npy"), "std_file": str(tmp_path / "s.npy")}
    data = open_packed(tmp_path, **files)
    assert data.mean.tolist() == [0, 1, 2, 3, 4] and data.std.tolist() == [2] * 5
    assert data.mean.dtype == data.std.dtype == np.float32


def test_a_std_that_is_given_is_used_as_it_is(tmp_path):
    """The floor is for measured ones: MoMask's std of HumanML3D's root, over its `feat_bias` of 5, is far below it."""
    std = np.array([0.0004, 1e-5, 0.003, 2, 0.5])
    np.save(tmp_path / "m.npy", np.zeros(5))
    np.save(tmp_path / "s.npy", std)
    files = {"mean_file": str(tmp_path / "m.npy"), "std_file": str(tmp_path / "s.npy")}
    data = open_packed(tmp_path, std_floor=0.01, **files)
    assert np.array_equal(data.std, std.astype(np.float32))
    theirs = data.frames(data.segments("train")[0]).astype(np.float64) / std
    assert np.allclose(data.normalised(data.segments("train")[0]), theirs, rtol=1e-6)
    before = open_packed(tmp_path, std_floor=0.01, reading_version=1, **files)
    assert np.array_equal(before.std, np.maximum(std, 0.01).astype(np.float32))
    assert before.fingerprint() != data.fingerprint()
    (said,) = before.warnings()
    assert "raised to rvqvae.data.std_floor 0.01 in features[0-2]; a new run takes it as it is" in said
    assert data.warnings() == []


@pytest.mark.parametrize(
    ("std", "complaint"),
    [
        (np.ones(4), "4 columns, but the motion has 5"),
        (np.ones((5, 1)), "one number per column"),
        (np.full(5, np.nan), "NaN"),
        (-np.ones(5), "negative"),
        (np.array([1, 0, 1, 1, 0.0]), r"holds 0 for features\[1\], features\[4\], and nothing can be divided by that"),
        (np.array(["a"] * 5), "one number per column"),
    ],
)
def test_a_wrong_statistics_file_is_named(tmp_path, std, complaint):
    np.save(tmp_path / "m.npy", np.zeros(5))
    np.save(tmp_path / "s.npy", std)
    with pytest.raises(UserError, match=complaint) as refusal:
        open_packed(tmp_path, mean_file=str(tmp_path / "m.npy"), std_file=str(tmp_path / "s.npy"))
    assert "s.npy" in str(refusal.value)


def test_statistics_that_a_feature_folder_brings_are_used(tmp_path):
    folder = tmp_path / "motion"
    folder.mkdir()
    for name in ("a", "b", "c"):
        np.save(folder / f"{name}.npy", np.random.default_rng(0).normal(size=(50, 3)))
    np.save(folder / "Mean.npy", np.array([1.0, 2, 3]))
    np.save(folder / "Std.npy", np.array([4.0, 5, 6]))
    data = MotionData.open(DataConfig(path=str(folder), window_size=16))
    assert data.mean.tolist() == [1, 2, 3] and data.std.tolist() == [4, 5, 6]
    assert data.store.clip_names == ["a", "b", "c"]
    # The floor is for what was measured.
    data = MotionData.open(DataConfig(path=str(folder), window_size=16, std_floor=5.5))
    assert data.std.tolist() == [4, 5, 6]
    before = MotionData.open(DataConfig(path=str(folder), window_size=16, std_floor=5.5, reading_version=1))
    assert before.std.tolist() == [5.5, 5.5, 6]
    np.save(folder / "Std.npy", np.array([4.0, 0, 6]))
    with pytest.raises(UserError, match=r"its own std holds 0 for features\[1\], .* give a mean_file and a std_file"):
        MotionData.open(DataConfig(path=str(folder), window_size=16))


def test_a_window_longer_than_every_clip_names_the_size_that_fits(tmp_path):
    data = open_packed(tmp_path, window_size=64)
    with pytest.raises(UserError, match="the longest, clip2, has 50: use --window_size 48 or less"):
        data.window_starts()


def test_nothing_to_train_on_names_the_way_out(tmp_path):
    data = open_packed(tmp_path, split=np.array(["test"] * 3))
    with pytest.raises(UserError, match=r"no clip is in train \(there is test\); set rvqvae.data.split"):
        data.window_starts()


def test_windows_of_several_lengths(tmp_path):
    data = open_packed(tmp_path, window_sizes=[32, 16, 48, 16])
    assert list(data.training_windows) == [16, 32, 48]
    assert data.count_training_windows() == {16: 7 + 9, 32: 3 + 5, 48: 1}
    starts = data.training_windows[32]
    windows = data.windows(starts, 32)
    assert windows.shape == (8, 32, 5)
    for window, start in zip(windows, starts, strict=True):
        assert np.allclose(window * data.std + data.mean, data.store.read(start, start + 32), atol=1e-4)
    assert np.array_equal(data.normalise(data.raw_windows(starts, 32)), windows)


def test_a_length_without_windows_is_named(tmp_path):
    data = open_packed(tmp_path, window_sizes=[16, 64])
    with pytest.raises(UserError, match=r"window_sizes: no clip has the 64 frames .* clip2, has 50: leave 64 out"):
        data.count_training_windows()


def test_groups_of_training_windows(tmp_path):
    names = np.array(["cmu/01/a", "cmu/02/a", "bvh/03/a"])
    data = open_packed(tmp_path, clip_name=names, split=None, window_stride=8, balance="set", weights={"bvh": 3})
    clips = data.clip_names(data.training_windows[16])
    groups = data.training_groups[16]
    assert groups.names == sorted({clip.split("/")[0] for clip in clips})
    assert [groups.names[group] for group in groups.of_window] == [clip.split("/")[0] for clip in clips]


def test_balance_is_told_and_a_weight_for_nobody_refused(tmp_path):
    data = open_packed(tmp_path, balance="speaker", weights={"clip2": 3})
    assert data.balance_lines() == [
        "rvqvae.data.balance: speakers by share of samples (of windows there are): "
        "clip0 25.0% (43.8%), clip2 75.0% (56.2%)"
    ]
    # clip1 is held out.
    data = open_packed(tmp_path, balance="speaker", weights={"clip1": 3})
    with pytest.raises(UserError, match=r"no speaker 'clip1' in train; there: 'clip0', 'clip2'"):
        data.count_training_windows()
    assert open_packed(tmp_path).balance_lines() == []
    lines = open_packed(tmp_path, balance="speaker", window_sizes=[16, 48]).balance_lines()
    assert [line.partition(", ")[2] for line in lines] == [
        "16 frames: clip0 50.0% (43.8%), clip2 50.0% (56.2%)",
        "48 frames: clip0 0.0% (0.0%), clip2 100.0% (100.0%)",
    ]


@pytest.mark.parametrize(
    ("body_part", "augment", "warnings"),
    [
        ("upper", {"mix": 0.5}, []),
        ("upper", {"mix_windows": 30}, []),
        ("upper", {"mix": 0.5, "mix_windows": 30}, ["mix_windows: 30 are more than the 13 joints: 13"]),
        ("face", {"mix": 0.5}, ["mix: all columns are one part, expressions: no effect"]),
    ],
)
def test_mixing_that_the_columns_do_not_allow_is_told(demo_folder, body_part, augment, warnings):
    data = MotionData.open(DataConfig(path=str(demo_folder), body_part=body_part, augment=augment))
    assert data.warnings() == [f"rvqvae.data.augment.{warning}" for warning in warnings]


def test_the_rate_of_a_prepared_store_goes_before_the_profiles_which_is_said(demo_folder, tmp_path):
    prepare_store(DataConfig(path=str(demo_folder), fps=15.0), tmp_path / "store")
    data = MotionData.open(DataConfig(path=str(tmp_path / "store")))
    assert data.fps == 15 and data.warnings() == ["the store has 15 frames a second: rvqvae.data.fps 30 is not used"]
    assert MotionData.open(DataConfig(path=str(tmp_path / "store"), fps=15.0)).warnings() == []


def test_feature_weights_divide_the_deviations(tmp_path):
    folder = tmp_path / "motion"
    folder.mkdir()
    for name in ("a", "b", "c"):
        np.save(folder / f"{name}.npy", np.random.default_rng(0).normal(size=(50, 263)))
    plain = MotionData.open(DataConfig(path=str(folder), window_size=16))
    weighted = MotionData.open(DataConfig(path=str(folder), window_size=16, feat_bias=5))
    ratio = np.round(plain.std / weighted.std, 3)
    # HumanML3D: 4 columns of the root, 3 * 21 positions, 6 * 21 rotations, 3 * 22 velocities, 4 contacts of the feet.
    assert set(ratio[:4]) == set(ratio[-4:]) == {5} and set(ratio[4:-4]) == {1}
    assert weighted.fingerprint() != plain.fingerprint()


def test_feature_weights_are_for_known_features_only(tmp_path):
    with pytest.raises(UserError, match=r"feat_bias: .* has 5 columns"):
        open_packed(tmp_path, feat_bias=5)


@pytest.mark.real_data
def test_the_cmu_task_has_its_known_windows(real_data):
    data = MotionData.open(DataConfig(path=str(real_data / "cmu" / "task.npz"), window_size=64, window_stride=4))
    assert data.in_features == 150 and data.store.num_frames == 28_261
    assert len(data.window_starts()) == 4_203
    assert len(data.segments("val")) == 50 and len(data.segments("test")) == 15


@pytest.mark.real_data
def test_a_packed_file_without_layout_gives_all_columns(real_data):
    data = MotionData.open(DataConfig(path=str(real_data / "cmu" / "motion_6d.npz")))
    assert data.in_features == 189 and len(data.store.clip_names) == 98 and not data.store.left_out


@pytest.mark.real_data
def test_a_real_beat2_clip(real_data):
    data = MotionData.open(DataConfig(path=str(real_data / "beat2"), window_size=64, window_stride=4))
    lengths = [len(data.frames(data.segments(split)[0])) for split in ("train", "val", "test", "all")]
    assert data.in_features == 78 and lengths == [1524, 191, 191, 1906]
    windows = data.windows(data.window_starts())
    assert windows.shape == (366, 64, 78) and np.isfinite(windows).all() and 0.8 < windows.std() < 1.2
