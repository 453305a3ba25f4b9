"""Checkpoints on disk: which are complete, which one a resume uses, which are pruned."""

import json
import shutil

import pytest

from ds_rvqvae.runs.checkpoints import (
    MANIFEST,
    candidates,
    checkpoints,
    damage_of,
    digest_of,
    history_of,
    latest,
    mark_in,
    named_checkpoint,
    prune,
    read_manifest,
    seal,
    sweep,
    whole_checkpoint,
)


def save(folder, step, latest=True):
    """A checkpoint of two files."""
    checkpoint = folder / f"global_step{step}"
    checkpoint.mkdir(parents=True)
    for name in ("model.pt", "shard.pt"):
        (checkpoint / name).write_bytes(f"{name} of {step}".encode() * 100)
    files = {name: digest_of(checkpoint / name) for name in ("model.pt", "shard.pt")}
    (checkpoint / MANIFEST).write_text(json.dumps(seal({"step": step, "world_size": 1, "files": files})))
    if latest:
        (folder / "latest").write_text(checkpoint.name)
    return checkpoint


def test_the_newest_is_taken_in_the_order_of_steps(tmp_path):
    for step in (5, 20, 100):
        save(tmp_path, step)
    assert whole_checkpoint(tmp_path) == (tmp_path / "global_step100", [])
    assert [path.name for path in checkpoints(tmp_path)] == ["global_step5", "global_step20", "global_step100"]


def test_latest_counts_even_where_something_lies_past_it(tmp_path):
    save(tmp_path, 5)
    save(tmp_path, 20, latest=False)
    assert latest(tmp_path) == tmp_path / "global_step5"
    assert whole_checkpoint(tmp_path)[0] == tmp_path / "global_step5"
    (tmp_path / "latest").write_text("global_step7")
    assert latest(tmp_path) == tmp_path / "global_step20"


DAMAGE = {
    "truncated": (lambda file: file.write_bytes(file.read_bytes()[:-1]), "bytes of"),
    "emptied": (lambda file: file.write_bytes(b""), "0 bytes of"),
    "flipped": (lambda file: file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:]), "sha256"),
    "deleted": (lambda file: file.unlink(), "missing"),
}


@pytest.mark.parametrize("name", ["model.pt", "shard.pt", MANIFEST])
@pytest.mark.parametrize("kind", DAMAGE)
def test_every_damage_is_found_and_the_older_one_taken(tmp_path, name, kind):
    save(tmp_path, 5)
    damaged = save(tmp_path, 10)
    damage, reason = DAMAGE[kind]
    damage(damaged / name)
    found, passed_over = whole_checkpoint(tmp_path)
    assert found == tmp_path / "global_step5"
    assert len(passed_over) == 1 and passed_over[0].startswith(f"{damaged}: ")
    assert name in passed_over[0] and (name == MANIFEST or reason in passed_over[0])


def test_every_bit_of_a_manifest_counts(tmp_path):
    save(tmp_path, 5)
    manifest = save(tmp_path, 10) / MANIFEST
    content = manifest.read_bytes()
    for place in range(len(content)):
        manifest.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        assert whole_checkpoint(tmp_path, thorough=False)[0] == tmp_path / "global_step5", place


def test_a_spoilt_pointer_is_no_pointer(tmp_path):
    save(tmp_path, 5)
    for pointer in ("latest", "best"):
        (tmp_path / pointer).write_bytes(b"global_step5\xff\xfe")
    assert latest(tmp_path) == tmp_path / "global_step5"
    prune(tmp_path / "global_step5", newest=1)


def test_none_whole(tmp_path):
    for step in (5, 10):
        (save(tmp_path, step) / "model.pt").unlink()
    found, passed_over = whole_checkpoint(tmp_path)
    assert found is None and ["global_step10" in passed_over[0], "global_step5" in passed_over[1]] == [True, True]


def test_a_quick_look_reads_no_file(tmp_path):
    checkpoint = save(tmp_path, 5)
    DAMAGE["flipped"][0](checkpoint / "model.pt")
    assert damage_of(checkpoint, thorough=False) is None
    assert "sha256" in damage_of(checkpoint)


def test_pruning_keeps_the_newest_and_what_lies_past(tmp_path):
    for step in (5, 10, 15, 20, 7):
        save(tmp_path, step)
    prune(tmp_path / "global_step7", newest=1)
    assert [path.name for path in checkpoints(tmp_path)] == [f"global_step{step}" for step in (7, 10, 15, 20)]
    prune(tmp_path / "global_step20", newest=3)
    assert [path.name for path in checkpoints(tmp_path)] == [f"global_step{step}" for step in (10, 15, 20)]


def test_pruning_keeps_the_best_and_every_so_many(tmp_path):
    for step in (5, 10, 15, 20, 25):
        save(tmp_path, step)
    (tmp_path / "best").write_text("global_step5")
    (tmp_path / "global_step15_universal").mkdir()
    prune(tmp_path / "global_step25", newest=1, every=10)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [
        *("global_step10", "global_step20", "global_step25", "global_step5"),
    ]


def test_sweeping_removes_what_was_cut_short(tmp_path):
    save(tmp_path, 5)
    (tmp_path / ".unfinished-global_step9").mkdir()
    (tmp_path / ".unfinished-global_step9" / "model.pt").write_bytes(b"half")
    (tmp_path / ".unfinished-latest").write_text("")
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["global_step5", "latest"]


def save_after(folder, step, parent, latest=True):
    """A checkpoint that knows its history."""
    checkpoint = save(folder, step, latest=False)
    before = [] if parent is None else [*read_manifest(parent)["ancestors"], mark_in(parent)]
    manifest = {**read_manifest(checkpoint), "ancestors": before, "parent": before[-1] if before else None}
    (checkpoint / MANIFEST).write_text(json.dumps(seal(manifest | {"scores": {"step": step, "l1": 1 / step}})))
    if latest:
        (folder / "latest").write_text(checkpoint.name)
    return checkpoint


def test_a_checkpoint_whose_save_was_cut_short_before_latest_is_the_newest(tmp_path):
    first = save_after(tmp_path, 5, None)
    second = save_after(tmp_path, 10, first)
    third = save_after(tmp_path, 15, second, latest=False)
    assert latest(tmp_path) == third and whole_checkpoint(tmp_path) == (third, [])
    # One that was saved later, or after another, is not: a version up to 0.3 went back to the second.
    (tmp_path / "latest").write_text(first.name)
    shutil.rmtree(second)
    assert latest(tmp_path) == first


def test_passing_over_keeps_to_the_history(tmp_path):
    first = save_after(tmp_path, 5, None)
    other = save_after(tmp_path, 10, None)
    head = save_after(tmp_path, 15, first)
    save_after(tmp_path, 20, None, latest=False)
    assert history_of(head) == [first, head] and candidates(tmp_path) == [head, first]
    assert named_checkpoint(tmp_path, "best") == head
    (head / "model.pt").unlink()
    assert whole_checkpoint(tmp_path)[0] == first
    (first / "model.pt").unlink()
    assert whole_checkpoint(tmp_path)[0] is None
    # If the newest does not know, the next readable one decides.
    (head / MANIFEST).write_bytes(b"\0" * 4096)
    assert candidates(tmp_path) == [head, other]


def test_pruning_leaves_other_histories(tmp_path):
    first = save_after(tmp_path, 5, None)
    other = save_after(tmp_path, 10, None)
    head = save_after(tmp_path, 15, first)
    prune(head, newest=1)
    assert checkpoints(tmp_path) == [other, head]


@pytest.mark.parametrize(
    "past",
    [
        *({"ancestors": ancestors} for ancestors in ("of old", [[1]], [[1, 2, 3]], 7, {"a": 1})),
        *({key: value} for key in ("parent", "scores", "best") for value in (7, [1], "of old")),
    ],
)
def test_a_manifest_whose_past_is_none_is_damaged(tmp_path, past):
    checkpoint = save(tmp_path, 5)
    manifest = {**read_manifest(checkpoint), **past}
    (checkpoint / MANIFEST).write_text(json.dumps(seal(manifest)))
    assert damage_of(checkpoint) == f"{MANIFEST} is missing or damaged"


def test_scores_that_are_no_numbers_do_not_spoil_a_manifest(tmp_path):
    checkpoint = save(tmp_path, 5)
    manifest = {**read_manifest(checkpoint), "scores": {"step": 5, "l1": float("nan")}}
    (checkpoint / MANIFEST).write_text(json.dumps(seal(manifest)))
    assert damage_of(checkpoint) is None and named_checkpoint(tmp_path, "latest") == checkpoint
