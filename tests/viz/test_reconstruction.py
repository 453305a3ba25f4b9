"""Pictures of a reconstruction: curves, and a row of stick figures where the skeleton is known."""

import numpy as np
from PIL import Image

from ds_rvqvae.motion.layout import Channels, feature_layout, select_columns, smplx_layout
from ds_rvqvae.motion.rotations import axis_angle_to_matrix, matrix_to_rotation_6d
from ds_rvqvae.viz.reconstruction import pixels_of, reconstruction_figure, save_figure

LAYOUT = select_columns(smplx_layout(), "upper")[1]


def _motion(seed: int) -> np.ndarray:
    """40 frames of the upper body, `[40, 78]`."""
    turns = np.cumsum(np.random.default_rng(seed).normal(size=(40, 13, 3)) * 0.05, axis=0)
    return matrix_to_rotation_6d(axis_angle_to_matrix(turns)).reshape(40, -1).astype(np.float32)


def test_smplx_joints_add_a_row_of_stick_figures():
    motion = _motion(0)
    with_poses = reconstruction_figure(motion, motion, LAYOUT, 30.0, "upper")
    without = reconstruction_figure(motion, motion, feature_layout(78), 30.0, "upper")
    assert len(with_poses.axes) == 7 and len(without.axes) == 6
    other_names = tuple(Channels(f"bone{index}", "rotation_6d", 6 * index, 6 * index + 6) for index in range(13))
    assert len(reconstruction_figure(motion, motion, other_names, 30.0, "bones").axes) == 6
    assert [text.get_text() for text in with_poses.axes[6].texts] == ["0.0 s", "0.3 s", "0.7 s", "1.0 s", "1.3 s"]


def test_the_reconstruction_shows_beside_the_truth():
    truth, other = _motion(0), _motion(1)
    same, different = (pixels_of(reconstruction_figure(truth, found, LAYOUT, 30.0, "")) for found in (truth, other))
    assert same.dtype == np.uint8 and same.shape == different.shape and same.shape[2] == 3
    poses = slice(int(0.8 * len(same)), None)
    assert (same[poses] != different[poses]).any()


def test_a_saved_figure_is_whole_and_leaves_nothing_beside_it(tmp_path):
    figure = reconstruction_figure(_motion(0), _motion(1), LAYOUT, 30.0, "upper")
    save_figure(figure, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as image:
        assert image.size == pixels_of(figure).shape[1::-1]
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]
