"""Facts about a store's motion: for good motion, and warnings for wrong units and axes."""

import numpy as np
import pytest

from ds_rvqvae.data.look import look_at
from ds_rvqvae.data.store.figures import figure_of, root_of
from tests.data.motion import write_packed
from tests.data.store.looked_at import demo_with, humanml3d, make_store


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
    store = demo_with(tmp_path, demo_folder, lambda arrays: {**arrays, "trans": 100 * arrays["trans"]})
    assert _told(store, "is the root's position in metres")


def test_a_lying_figure_is_told(tmp_path, demo_folder):
    def z_up(arrays):
        poses, trans = arrays["poses"].copy(), arrays["trans"]
        poses[:, :3] = [np.pi / 2, 0, 0]
        return {**arrays, "poses": poses, "trans": np.stack([trans[:, 0], -trans[:, 2], trans[:, 1]], axis=1)}

    store = demo_with(tmp_path, demo_folder, z_up, up_axis="y")
    assert _told(store, "figures lie: from feet to head they extend 1.5") and _told(store, "along z")


def test_translations_that_were_lost_are_told(tmp_path, demo_folder):
    def still(arrays):
        return {**arrays, "trans": np.full_like(arrays["trans"], 0.9)}

    assert _told(demo_with(tmp_path, demo_folder, still, files=2), "the root never moves")


def test_mirrored_places_and_wrong_units_of_features_are_told(tmp_path):
    mirrored = make_store(tmp_path, humanml3d(tmp_path / "mirrored", mirrored=True), "a", fps=20.0)
    assert _told(mirrored, "toes point backwards")
    inches = make_store(tmp_path, humanml3d(tmp_path / "inches", scale=39.4), "b", fps=20.0)
    assert _told(inches, "are lengths in metres?") and _told(inches, "m/s")


def test_rotations_that_are_none_are_told(tmp_path):
    rng = np.random.default_rng(0)
    layout = '[{"name": "joints", "kind": "rotation_6d", "columns": [0, 12]}]'
    motion = rng.normal(size=(120, 12)).astype(np.float32)
    store = make_store(
        tmp_path, write_packed(tmp_path / "data.npz", (60, 60), 12, motion=motion, layout=np.array(layout))
    )
    assert _told(store, "6D columns are not orthonormal") and figure_of(store) is None and root_of(store) is None


def test_the_sample_is_seeded_and_has_every_speaker(demo_store):
    first, second = look_at(demo_store, 64), look_at(demo_store, 64)
    assert first.facts == second.facts and first.sample.clips == second.sample.clips
    assert {clip.partition("_")[0] for clip in first.sample.clips} == {"1", "2", "3", "4"}


@pytest.mark.real_data
def test_the_real_clip_of_beat2_stands(tmp_path, real_data):
    facts = look_at(make_store(tmp_path, real_data / "beat2"), 128).facts
    assert facts["warnings"] == [] and facts["figure"]["tall_along"]["y"] > 0.95
    assert facts["root"]["height_m"]["median"] == pytest.approx(1.3, abs=0.05)
