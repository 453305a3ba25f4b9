"""The figure that a store's columns move, and the root's way, in metres."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ds_rvqvae.data.store.figures import Figure, figure_of, root_of
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


STANDING = Figure(
    "six joints",
    ("pelvis", "left_hip", "right_hip", "left_ankle", "left_toe", "my_head"),
    (-1, 0, 0, 1, 3, 0),
    np.array([0, 1, -1, 1, 1, 0]),
    lambda motion: np.zeros((len(motion), 6, 3)),
)
PLACES = np.array([[0, 1, 0], [0.1, 1, 0], [-0.1, 1, 0], [0.1, 0.1, 0], [0.1, 0, 0.2], [0, 1.7, 0]])
"""It faces z, with its left at x."""


def test_joints_are_found_by_what_their_names_say():
    assert STANDING.head == 5 and STANDING.feet.tolist() == [3, 4]
    assert STANDING.joints("hip").tolist() == [1, 2] and STANDING.joints("tail").tolist() == []
    assert replace(STANDING, joint_names=("a", "b", "Forehead", "Head", "e", "f")).head == 3
    assert replace(STANDING, joint_names=tuple("abcdef")).head is None


@pytest.mark.parametrize("degrees", [0, 90, 180, 225])
def test_a_figure_faces_where_its_left_is_on_its_left(degrees):
    turn = Rotation.from_euler("y", degrees, degrees=True)
    places = turn.apply(PLACES)[None]
    ahead = [np.sin(np.radians(degrees)), np.cos(np.radians(degrees))]
    np.testing.assert_allclose(STANDING.front(places), [ahead], atol=1e-12)
    np.testing.assert_allclose(STANDING.toes_ahead(places), [0.2], atol=1e-12)
    # Seen in a mirror, the toes point backwards.
    np.testing.assert_allclose(STANDING.toes_ahead(places * [-1, 1, 1]), [-0.2], atol=1e-12)


def test_where_sides_are_not_known_a_figure_faces_z_and_without_toes_nothing_is_ahead():
    nobody = replace(STANDING, sides=np.zeros(6, np.int64), joint_names=tuple("abcdef"))
    assert nobody.front(PLACES[None, :, [2, 1, 0]]).tolist() == [[0, 1]] and nobody.toes_ahead(PLACES[None]) is None
    lying = PLACES[None, :, [1, 0, 2]]
    assert STANDING.front(lying).tolist() == [[0, 1]]


def test_kits_places_are_millimetres(tmp_path):
    motion = np.random.default_rng(0).normal(size=(60, 251)).astype(np.float32)
    motion[:, 0], motion[:, 1], motion[:, 2], motion[:, 3] = 0, 10, 20, 900
    (tmp_path / "motion").mkdir()
    np.save(tmp_path / "motion" / "a.npy", motion)
    store = make_store(tmp_path, tmp_path / "motion", fps=12.5)
    figure, path = figure_of(store), root_of(store).path(motion)
    places = figure.places(motion)
    np.testing.assert_allclose(places[:, 0], [[0, 0.9, 0]] * 60)
    np.testing.assert_allclose(places[:, 20], motion[:, 61:64] / 1000, rtol=1e-6)
    np.testing.assert_allclose(path, np.stack([np.arange(60) * 0.01, np.full(60, 0.9), np.arange(60) * 0.02], axis=1))
    assert figure.parents[:5] == (-1, 0, 1, 2, 3) and figure.joint_names[figure.head] == "head"
    assert [figure.joint_names[joint] for joint in np.flatnonzero(figure.sides > 0)] == [
        name for name in figure.joint_names if name.startswith("left")
    ]
