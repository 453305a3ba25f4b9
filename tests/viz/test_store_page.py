"""A page of a store: what it says of good motion, and that wrong units and axes are told."""

import numpy as np
import pytest

from ds_rvqvae.config.data import DataConfig, RulesConfig
from ds_rvqvae.data import open_store
from ds_rvqvae.data.store.figures import figure_of, root_of
from ds_rvqvae.data.store.look import look_at
from ds_rvqvae.data.store.prepare import prepare_store
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.skeleton import builtin_skeleton, forward_kinematics
from ds_rvqvae.viz.store_page import store_page
from tests.data.motion import write_packed

ALL_KEPT = RulesConfig(reference_pose=False, dropouts=False, max_joint_step=None, max_root_step=None)


def _store(tmp_path, path, name="store", **settings):
    return prepare_store(DataConfig(path=str(path), **{"rules": ALL_KEPT, **settings}), tmp_path / name)


def _demo_with(tmp_path, demo_folder, change, files=6):
    """Demo motion whose arrays were changed, as a store."""
    folder = tmp_path / "changed"
    folder.mkdir()
    for file in sorted((demo_folder / "smplxflame_30").glob("*.npz"))[:files]:
        with np.load(file) as arrays:
            np.savez(folder / file.name, **change(dict(arrays)))
    return _store(tmp_path, folder)


def _told(store, words):
    return [warning for warning in look_at(store, 64).warnings if words in warning]


def test_facts_of_demo_motion(demo_store):
    facts = look_at(demo_store, 64).facts
    assert facts["warnings"] == []
    assert facts["clips"] == 6 and facts["frames"] == 960 and facts["columns"] == 433
    assert [(group["name"], group["clips"]) for group in facts["groups"]] == [("1", 2), ("2", 2), ("3", 1), ("4", 1)]
    assert sum(group["hours"] for group in facts["groups"]) == pytest.approx(demo_store.hours)
    assert 1.4 < facts["figure"]["tall_m"] < 1.6 and abs(facts["figure"]["lowest_joint_m"]) < 0.05
    assert facts["figure"]["tall_along"]["y"] > 0.95 and facts["figure"]["toes_ahead_m"] > 0.05
    assert facts["root"]["height_m"]["median"] == pytest.approx(0.95, abs=0.02)
    assert "left_eye[0-5]" in facts["constant_columns"]


def test_columns_are_measured_over_all_frames(demo_store):
    look = look_at(demo_store, 64)
    motion = np.concatenate([demo_store.clip(name) for name in demo_store.clip_names]).astype(np.float64)
    np.testing.assert_array_equal(look.low, motion.min(axis=0).astype(np.float32))
    np.testing.assert_array_equal(look.high, motion.max(axis=0).astype(np.float32))
    np.testing.assert_allclose(look.mean, motion.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(look.std, motion.std(axis=0), atol=1e-6)


def test_a_wrong_unit_is_told(tmp_path, demo_folder):
    store = _demo_with(tmp_path, demo_folder, lambda arrays: {**arrays, "trans": 100 * arrays["trans"]})
    assert _told(store, "is the root's way in metres")


def test_a_lying_figure_is_told(tmp_path, demo_folder):
    def z_up(arrays):
        poses, trans = arrays["poses"].copy(), arrays["trans"]
        poses[:, :3] = [np.pi / 2, 0, 0]
        return {**arrays, "poses": poses, "trans": np.stack([trans[:, 0], -trans[:, 2], trans[:, 1]], axis=1)}

    store = _demo_with(tmp_path, demo_folder, z_up)
    assert _told(store, "figures lie: from feet to head it is 1.5") and _told(store, "along z")


def test_translations_that_were_lost_are_told(tmp_path, demo_folder):
    def still(arrays):
        return {**arrays, "trans": np.full_like(arrays["trans"], 0.9)}

    assert _told(_demo_with(tmp_path, demo_folder, still, files=2), "the root never moves")


def _humanml3d(folder, mirrored=False, scale=1.0):
    """Standing figures that walk a circle, as HumanML3D's 263 columns."""
    skeleton = builtin_skeleton()
    still = np.broadcast_to(np.eye(3), (1, 55, 3, 3))
    places = forward_kinematics(still, skeleton.offsets)[0, :22] * scale
    if mirrored:
        places[:, 0] *= -1
    rng = np.random.default_rng(0)
    folder.mkdir()
    for index in range(6):
        motion = np.zeros((81, 263), np.float32)
        motion[:, 0], motion[:, 2], motion[:, 3] = np.pi / 80, 0.05 * scale, places[0, 1]
        motion[:, 4:67] = places[1:].reshape(-1)
        motion[:, 67:] = 0.1 * rng.normal(size=(81, 196))
        np.save(folder / f"{index:06d}.npy", motion)
    return folder


def test_humanml3d_features_are_figures(tmp_path):
    store = _store(tmp_path, _humanml3d(tmp_path / "motion"), fps=20.0)
    facts = look_at(store, 64).facts
    assert facts["warnings"] == [] and facts["figure"]["tall_m"] == pytest.approx(1.52, abs=0.1)
    assert facts["root"]["speed_m_per_s"]["median"] == pytest.approx(1.0, abs=0.01)
    path = root_of(store).path(store.clip(store.clip_names[0]))
    # A whole circle of 80 steps of 5 cm: back at the start, and 4 m / pi across.
    np.testing.assert_allclose(path[-1, [0, 2]], 0, atol=1e-3)
    assert np.ptp(path[:, 0]) == pytest.approx(4 / np.pi, abs=2e-2)
    assert figure_of(store).parents[21] == 19


def test_mirrored_places_and_wrong_units_of_features_are_told(tmp_path):
    mirrored = _store(tmp_path, _humanml3d(tmp_path / "mirrored", mirrored=True), "a", fps=20.0)
    assert _told(mirrored, "toes point backwards")
    inches = _store(tmp_path, _humanml3d(tmp_path / "inches", scale=39.4), "b", fps=20.0)
    assert _told(inches, "is their unit the metre?") and _told(inches, "m/s")


def test_rotations_that_are_none_are_told(tmp_path):
    rng = np.random.default_rng(0)
    layout = '[{"name": "joints", "kind": "rotation_6d", "columns": [0, 12]}]'
    motion = rng.normal(size=(120, 12)).astype(np.float32)
    store = _store(tmp_path, write_packed(tmp_path / "data.npz", (60, 60), 12, motion=motion, layout=np.array(layout)))
    assert _told(store, "rotations are no rotations") and figure_of(store) is None and root_of(store) is None


def test_bones_stand_in_one_pose_a_clip(demo_store):
    figure = figure_of(demo_store)
    places = figure.places(demo_store.clip(demo_store.clip_names[0])[:3])
    front = figure.front(places)
    assert places.shape == (3, 55, 3) and (front[:, 1] > 0.9).all()
    assert sorted(np.unique(figure.sides).tolist()) == [-1, 0, 1] and figure.joint_names[figure.head] == "head"


def test_the_sample_is_seeded_and_has_every_speaker(demo_store):
    first, second = look_at(demo_store, 64), look_at(demo_store, 64)
    assert first.facts == second.facts and first.sample.clips == second.sample.clips
    assert {clip.partition("_")[0] for clip in first.sample.clips} == {"1", "2", "3", "4"}


def test_a_page_is_drawn_whatever_the_columns_are(tmp_path):
    store = _store(tmp_path, write_packed(tmp_path / "data.npz", (40, 30, 50), 5), store_dtype="bfloat16")
    look = look_at(store, 128)
    assert any("no clip has the 128 frames" in warning for warning in look.warnings)
    page = store_page(look)
    page.canvas.draw()
    texts = [axes.get_title(loc=side) for axes in page.axes for side in ("left", "center")]
    assert "clip lengths" in texts and "features: 5 columns" in texts and "clip0" in texts


def test_a_part_that_is_not_known_is_refused(demo_store):
    with pytest.raises(UserError, match="body_part: tail is not known"):
        look_at(open_store(demo_store.folder), 64, "tail")


@pytest.mark.real_data
def test_the_real_clip_of_beat2_stands(tmp_path, real_data):
    facts = look_at(_store(tmp_path, real_data / "beat2"), 128).facts
    assert facts["warnings"] == [] and facts["figure"]["tall_along"]["y"] > 0.95
    assert facts["root"]["height_m"]["median"] == pytest.approx(1.3, abs=0.05)
