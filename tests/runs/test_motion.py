"""The motion that a checkpoint knows, and what a resume notes or refuses if it was replaced."""

import json
import shutil

import numpy as np
import pytest

from ds_rvqvae.config.profile import load_profile
from ds_rvqvae.config.request import Start
from ds_rvqvae.data.dataset import MotionData
from ds_rvqvae.data.store.prepare import prepare_store
from ds_rvqvae.errors import UserError
from ds_rvqvae.runs.checkpoints import MANIFEST, digest_of, seal
from ds_rvqvae.runs.folder import NORMALISATION, write_profile
from ds_rvqvae.runs.init_from import take_start
from ds_rvqvae.runs.motion import MOTION_FILE, MotionTable, changed_motion
from ds_rvqvae.runs.start import find_resume, record_of
from tests.damage import DAMAGES, damage
from tests.data.motion import write_lists, write_matrices, write_packed, write_statistics

CLIPS = tuple(f"clip{index}" for index in range(8))
FRAMES, WIDTH = 40, 5
WINDOWS = 2  # of 32 frames, 8 apart, in a clip of 40


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DS_RVQVAE_CACHE", str(tmp_path / "cache"))


class Run:
    """A run of one checkpoint, as far as a resume reads it before it opens the checkpoint.

    Args:
        normalised: by which statistics: the motion's `own`, those of `files`, or those that a run `kept` which started
            from a tokenizer.
    """

    def __init__(self, folder, normalised):
        self.folder, self.motion, self.normalised = folder / "run", folder / "motion", normalised
        write_matrices(self.motion, CLIPS, WIDTH, FRAMES)
        write_lists(self.motion, train=" ".join(CLIPS[:6]), val=" ".join(CLIPS[6:]))
        overrides = [f"rvqvae.data.path={self.motion}", "rvqvae.data.window_size=32", "rvqvae.data.window_stride=8"]
        if normalised == "files":
            write_statistics(folder / "statistics", WIDTH)
            files = {"mean": "Mean.npy", "std": "Std.npy"}
            overrides += [f"rvqvae.data.{key}_file={folder / 'statistics' / name}" for key, name in files.items()]
        self.profile = load_profile("demo", overrides)
        self.folder.mkdir()
        write_profile(self.folder, self.profile)
        if normalised == "kept":
            statistics = {"mean": [0.0] * WIDTH, "std": [2.0] * WIDTH}
            (self.folder / NORMALISATION).write_text(json.dumps(statistics))
        self.checkpoint = self.folder / "checkpoints" / "global_step5"
        self.checkpoint.mkdir(parents=True)
        self.save(self.data())

    def save(self, data):
        """Makes the checkpoint keep this motion."""
        (self.checkpoint / MOTION_FILE).write_bytes(MotionTable.of(data).to_bytes())
        self.write_manifest({**record_of(data), "beside": {MOTION_FILE: digest_of(self.checkpoint / MOTION_FILE)}})

    def write_manifest(self, record):
        manifest = {**record, "step": 5, "world_size": 1, "global_batch": 16, "files": {}}
        (self.checkpoint / MANIFEST).write_text(json.dumps(seal(manifest)))

    def data(self, **changes):
        config = self.profile.rvqvae.data.model_copy(update=changes)
        data = MotionData.open(config)
        take_start(self.folder, self.profile, data, Start("newest"))
        return data

    def notes(self, **changes):
        """Returns the notes of a resume about the motion of now."""
        data = self.data(**changes)
        path = changes.get("path", str(self.motion))
        profile = self.profile.with_values({"rvqvae.data.path": path})
        resume = find_resume(self.folder, profile, 1, record_of(data), start=Start("newest"), data=data)
        return [note for note in resume.notes if not note.startswith(("changed: ", "going on from "))]

    def write(self, name, frames=FRAMES, seed=100):
        """Replaces a clip."""
        motion = np.random.default_rng(seed).normal(size=(frames, WIDTH)).astype(np.float32)
        np.save(self.motion / f"{name}.npy", motion)

    def rename(self, old, new):
        (self.motion / f"{old}.npy").rename(self.motion / f"{new}.npy")

    def change_frame(self, name):
        """Changes one number of one frame."""
        motion = np.load(self.motion / f"{name}.npy")
        motion[3, 2] += 0.5
        np.save(self.motion / f"{name}.npy", motion)


@pytest.fixture(params=["own", "files", "kept"])
def run(request, tmp_path):
    return Run(tmp_path, request.param)


@pytest.fixture
def given(tmp_path):
    return Run(tmp_path, "files")


def said_or_refused(run, words, **changes):
    """Checks that the note holds `words`; if the motion's own statistics are used, the resume is refused with them."""
    if run.normalised == "own":
        with pytest.raises(UserError, match="other columns or another normalisation") as refusal:
            run.notes(**changes)
        assert words in str(refusal.value) and str(refusal.value).endswith("same motion, or start a new run")
    else:
        (note,) = run.notes(**changes)
        assert "the motion is not the same as when" in note and words in note


def test_nothing_is_said_of_the_same_motion(run):
    assert run.notes() == []


def test_other_motion_under_the_same_path(run):
    for seed, name in enumerate(CLIPS):
        run.write(name, seed=50 + seed)
    said_or_refused(
        run, "8 clips changed (clip0, clip1, clip2, … (8)), of 8 then (12 of the 12 training windows of then"
    )


def test_one_frame_changed(run):
    run.change_frame("clip2")
    said_or_refused(run, "1 clip changed (clip2), of 8 then (2 of the 12 training windows of then and 2 of the 12 now)")


def test_one_frame_of_a_clip_that_is_not_trained_on(run):
    run.change_frame("clip7")
    (note,) = run.notes()
    assert "1 clip changed (clip7), of 8 then (0 of the 12 training windows of then and 0 of the 12 now)" in note


CHANGES = {
    "renamed": (
        lambda run: (run.motion / "clip7.npy").rename(run.motion / "new.npy"),
        "1 clip renamed (clip7 is now new)",
    ),
    "removed": (lambda run: (run.motion / "clip7.npy").unlink(), "1 clip removed (clip7)"),
    "added": (lambda run: run.write("new"), "1 clip added (new)"),
    "longer": (lambda run: run.write("clip7", frames=48), "1 clip changed (clip7)"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_clips_that_come_and_go_are_refused_by_name(given, kind):
    change, words = CHANGES[kind]
    lists = {"train": " ".join(CLIPS[:6]), "val": f"{' '.join(CLIPS[6:])} new"}
    write_lists(given.motion, **lists)
    change(given)
    with pytest.raises(UserError, match="has other training or held-out clips than ") as refusal:
        given.notes()
    assert f"{words}, of 8 then" in str(refusal.value)


def test_a_changed_list_of_splits_is_refused_by_clip(given):
    write_lists(given.motion, train=" ".join(CLIPS[:5]), val=" ".join(CLIPS[5:]))
    with pytest.raises(UserError, match="has other training or held-out clips") as refusal:
        given.notes()
    assert "1 clip in another split (clip5), of 8 then (2 of the 12 training windows of then" in str(refusal.value)
    assert "and 0 of the 10 now)" in str(refusal.value)


def test_a_clip_that_is_not_trained_on_under_its_new_name_counts_as_gone(given):
    given.rename("clip2", "other")
    with pytest.raises(UserError, match="has other training or held-out clips") as refusal:
        given.notes()
    words = "1 clip renamed (clip2 is now other), of 8 then (2 of the 12 training windows of then and 0 of the 10 now)"
    assert words in str(refusal.value)


def test_the_same_clips_in_a_store_that_is_given_as_the_path(given, tmp_path):
    store = prepare_store(given.profile.rvqvae.data, tmp_path / "store")
    assert given.notes(path=str(store.folder)) == []
    given.change_frame("clip1")
    store = prepare_store(given.profile.rvqvae.data, tmp_path / "store")
    (note,) = given.notes(path=str(store.folder))
    assert "1 clip changed (clip1)" in note


def test_a_store_that_was_appended_to(given, tmp_path):
    from ds_rvqvae.data.store.prepare import prepare

    config = given.profile.rvqvae.data
    store = prepare_store(config, tmp_path / "store").folder
    more = write_matrices(tmp_path / "more", ("later1", "later2"), WIDTH, FRAMES)
    write_lists(more, train="later1", val="later2")
    prepare(config.model_copy(update={"path": str(more)}), store, append=True)
    with pytest.raises(UserError, match="has other training or held-out clips") as refusal:
        given.notes(path=str(store))
    assert (
        "2 clips added (later1, later2), of 8 then (0 of the 12 training windows of then and 2 of the 14 now)"
        in str(refusal.value)
    )


def test_the_same_files_stored_otherwise(given):
    (note,) = given.notes(store_dtype="float16")
    assert "8 clips read or stored with other settings or rules (clip0, clip1, clip2, … (8)), of 8 then" in note


def test_clips_that_share_a_file_are_told_by_their_shard(tmp_path):
    run = Run(tmp_path, "files")
    shutil.rmtree(run.motion)
    file = write_packed(tmp_path / "packed.npz", (40,) * 8, WIDTH)
    run.profile = run.profile.with_values({"rvqvae.data.path": str(file)})
    data = run.data()
    run.save(data)
    assert not changed_motion(run.checkpoint, data)
    motion = np.load(file)["motion"]
    motion[0, 0] += 1
    write_packed(file, (40,) * 8, WIDTH, motion=motion)
    assert "8 clips that may have changed, which their store does not tell" in str(
        changed_motion(run.checkpoint, run.data())
    )


def _without_files(store):
    """Makes a store one of a version whose shards did not know the content of their files."""
    for facts in (store / "shards").glob("*.json"):
        values = json.loads(facts.read_text())
        del values["files"], values["key"]
        facts.write_text(json.dumps(values))


def test_a_store_of_before_is_compared_by_its_shards(given, tmp_path):
    config = given.profile.rvqvae.data
    store = prepare_store(config, tmp_path / "store").folder
    _without_files(store)
    given.save(given.data(path=str(store)))
    assert given.notes() == []
    given.change_frame("clip2")
    (note,) = given.notes()
    assert "7 clips that may have changed" not in note
    assert "8 clips that may have changed, which their store does not tell" in note


def test_what_an_old_checkpoint_cannot_know_is_said_in_one_line(given):
    (given.checkpoint / MOTION_FILE).unlink()
    assert given.notes() == []
    given.change_frame("clip2")
    (note,) = given.notes()
    assert "global_step5 does not say which clips (a version up to 0.3 saved it)" in note
    given.write_manifest({"motion": given.data().fingerprint()})
    (note,) = given.notes()
    assert "only knows its columns and normalisation" in note


def test_the_table_is_read_as_it_was_written(run):
    assert MotionTable.read(run.checkpoint) == MotionTable.of(run.data())


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_checkpoint_whose_table_is_damaged_is_gone_on_from(given, kind):
    damage(given.checkpoint / MOTION_FILE, kind)
    assert given.notes() == []
    given.change_frame("clip2")
    (note,) = given.notes()
    assert "global_step5 does not say which clips (its motion.json is damaged)" in note


def test_many_clips_are_compared_without_their_frames(given, monkeypatch):
    data = given.data()
    for shard in (data.store.folder / "shards").glob("*.npy"):
        shard.unlink()
    assert len(MotionTable.of(data).clips) == 8
