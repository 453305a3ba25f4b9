"""The figure that a store's columns move, and the root's way, in metres."""

import numpy as np
import pytest

from ds_rvqvae.data.store.figures import figure_of, root_of
from ds_rvqvae.data.store.look import look_at
from tests.data.store.looked_at import humanml3d, make_store


def test_humanml3d_features_are_figures(tmp_path):
    store = make_store(tmp_path, humanml3d(tmp_path / "motion"), fps=20.0)
    facts = look_at(store, 64).facts
    assert facts["warnings"] == [] and facts["figure"]["tall_m"] == pytest.approx(1.52, abs=0.1)
    assert facts["root"]["speed_m_per_s"]["median"] == pytest.approx(1.0, abs=0.01)
    path = root_of(store).path(store.clip(store.clip_names[0]))
    # A whole circle of 80 steps of 5 cm: back at the start, and 4 m / pi across.
    np.testing.assert_allclose(path[-1, [0, 2]], 0, atol=1e-3)
    assert np.ptp(path[:, 0]) == pytest.approx(4 / np.pi, abs=2e-2)
    assert figure_of(store).parents[21] == 19


def test_bones_stand_in_one_pose_a_clip(demo_store):
    figure = figure_of(demo_store)
    places = figure.places(demo_store.clip(demo_store.clip_names[0])[:3])
    front = figure.front(places)
    assert places.shape == (3, 55, 3) and (front[:, 1] > 0.9).all()
    assert sorted(np.unique(figure.sides).tolist()) == [-1, 0, 1] and figure.joint_names[figure.head] == "head"
