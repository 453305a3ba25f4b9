"""A clip beside its reconstruction: positions, angles and distances, of the complete clip or of a span."""

import numpy as np
import pytest

from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.layout import select_columns, smplx_layout
from ds_rvqvae.motion.skeleton import builtin_skeleton
from ds_rvqvae.viz.comparison import compare
from tests.viz.shown import make_tokenizer, moving_clip


def test_a_comparison_is_that_of_encode_and_decode(tokenizer):
    clip, skeleton = moving_clip(), builtin_skeleton()
    whole = compare([tokenizer], clip, skeleton)
    columns, layout = select_columns(clip.layout, "upper")
    covered = clip.motion[:, columns]
    decoded = tokenizer.decode(tokenizer.encode(covered))

    def matrices(motion):
        first, second = np.moveaxis(motion.reshape(len(motion), -1, 2, 3).astype(np.float64), 2, 0)
        x = first / np.linalg.norm(first, axis=-1, keepdims=True)
        y = second - (x * second).sum(-1, keepdims=True) * x
        y /= np.linalg.norm(y, axis=-1, keepdims=True)
        return np.stack([x, y, np.cross(x, y)], axis=-2)

    traces = (matrices(covered) * matrices(decoded)).sum(axis=(-1, -2))
    angles = np.degrees(np.arccos(np.clip((traces - 1) / 2, -1, 1)))
    np.testing.assert_allclose(whole.angle_error, angles.mean(axis=1), atol=0.01)
    names = np.array(skeleton.joint_names)
    assert set(names[whole.measured]) < {part.name for part in layout}
    legs = [name for name in names if "knee" in name or "ankle" in name or "foot" in name]
    assert len(legs) == 6 and np.abs(whole.joint_error[:, np.isin(names, legs)]).max() < 1e-6
    wrists = whole.joint_error[:, np.isin(names, ["left_wrist", "right_wrist"])]
    assert wrists.mean() > 0.05 and whole.mean_distance_mm.shape == (60,)


def test_a_stretch_is_cut_out_of_the_whole_reconstruction(tokenizer):
    whole = compare([tokenizer], moving_clip(), builtin_skeleton())
    part = compare([tokenizer], moving_clip(), builtin_skeleton(), start=0.5, seconds=1.0)
    assert part.start == 0.5 and len(part.truth) == 30
    for name in ("truth", "found", "angle_error", "joint_error"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[15:45])
    assert len(compare([tokenizer], moving_clip(), builtin_skeleton(), start=1.5, seconds=1e300).truth) == 15


def test_fewer_levels_decode_another_motion(tokenizer):
    one, all_levels = (compare([tokenizer], moving_clip(), builtin_skeleton(), levels=levels) for levels in (1, None))
    assert one.levels_text == "1 level" and all_levels.levels_text == "3 levels"
    assert np.abs(one.found - all_levels.found).max() > 1e-3
    np.testing.assert_array_equal(one.truth, all_levels.truth)


def test_a_tokenizer_of_faces_has_no_figure():
    layout = select_columns(smplx_layout(), "face")[1]
    with pytest.raises(UserError, match="no columns of joints"):
        compare([make_tokenizer(layout)], moving_clip(), builtin_skeleton())
