"""Folders of runs."""

import json
import shutil
from pathlib import Path

import pytest

from ds_rvqvae.config.profile import load_profile
from ds_rvqvae.config.request import Start, read_training_flags
from ds_rvqvae.errors import UserError
from ds_rvqvae.runs.checkpoints import MANIFEST, digest_of, seal
from ds_rvqvae.runs.folder import (
    check_out_folder,
    choose_run_folder,
    copies_of,
    mend_log,
    read_profile,
    restore_metrics,
    restore_profile,
    write_profile,
)
from ds_rvqvae.runs.start import request_of
from tests.damage import DAMAGES, damage


def choose(out, name=None, profile="baseline", resume=False):
    return choose_run_folder(out, name, profile, "upper", Start.of(resume))


def test_names_count_up_so_that_a_command_works_twice(tmp_path):
    names = []
    for _ in range(3):
        folder = choose(tmp_path)
        folder.mkdir()
        names.append(folder.name)
    assert names == ["baseline-upper", "baseline-upper-2", "baseline-upper-3"]


def test_a_removed_run_does_not_give_its_number_to_a_newer_one(tmp_path):
    (tmp_path / "baseline-upper-2").mkdir()
    assert choose(tmp_path).name == "baseline-upper-3"


def test_resume_takes_the_newest_by_number(tmp_path):
    for name in ("baseline-upper", "baseline-upper-9", "baseline-upper-10", "baseline-upper-hands", "wide-upper-11"):
        (tmp_path / name).mkdir()
    assert choose(tmp_path, resume=True).name == "baseline-upper-10"


def test_resume_without_any_run_starts_the_first(tmp_path):
    assert choose(tmp_path / "none", resume=True) == tmp_path / "none" / "baseline-upper"
    assert choose(tmp_path, "mine", resume=True) == tmp_path / "mine"
    assert not list(tmp_path.iterdir())


def test_a_profile_file_names_runs_by_its_stem(tmp_path):
    assert choose(tmp_path, profile="some/where/my.v2.json").name == "my.v2-upper"


def test_an_existing_name_needs_resume(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="--resume"):
        choose(tmp_path, "mine")
    assert choose(tmp_path, "mine", resume=True) == tmp_path / "mine"


@pytest.mark.parametrize("name", ["", " ", ".", "..", "a/b", "../a", "/a", "a\\b", "a\nb"])
def test_a_name_is_one_folder(tmp_path, name):
    with pytest.raises(UserError, match="--name"):
        choose(tmp_path, name)


def test_a_name_that_is_a_file(tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(UserError, match="is a file"):
        choose(tmp_path, "mine", resume=True)


def test_checking_a_folder_makes_nothing(tmp_path):
    check_out_folder(tmp_path / "a" / "b" / "c", 1000)
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        check_out_folder(tmp_path / "file" / "run")


def test_too_little_room_says_how_much_there_is(tmp_path):
    with pytest.raises(UserError, match=r"needs about 1000000000\.0 GB .* GB free"):
        check_out_folder(tmp_path / "run", 10**18)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that not even root can write in")
def test_a_folder_without_permission():
    with pytest.raises(UserError, match="no permission to write in /proc/self"):
        check_out_folder(Path("/proc/self/runs"))


def test_a_profile_of_a_version_without_reading_versions_has_the_first(tmp_path):
    write_profile(tmp_path, load_profile("baseline"))
    assert read_profile(tmp_path).rvqvae.data.reading_version == 2
    values = json.loads((tmp_path / "profile.json").read_text())
    del values["rvqvae"]["data"]["reading_version"]
    (tmp_path / "profile.json").write_text(json.dumps(values))
    assert read_profile(tmp_path).rvqvae.data.reading_version == 1
    assert load_profile(tmp_path / "profile.json").rvqvae.data.reading_version == 2  # for a new run


@pytest.fixture
def run(tmp_path):
    """A run whose checkpoint of step 5 keeps a copy of its profile, and that of step 10 keeps none."""
    folder = tmp_path / "run"
    folder.mkdir()
    write_profile(folder, load_profile("demo", ["rvqvae.data.fps=25"]))
    for step, copies in ((5, copies_of(folder)), (10, {})):
        checkpoint = folder / "checkpoints" / f"global_step{step}"
        checkpoint.mkdir(parents=True)
        for name, content in copies.items():
            (checkpoint / name).write_bytes(content)
        files = {name: digest_of(checkpoint / name) for name in copies}
        (checkpoint / MANIFEST).write_text(json.dumps(seal({"step": step, "files": {}, "beside": files})))
    (folder / "checkpoints" / "latest").write_text("global_step10")
    return folder


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_profile_is_restored_from_a_checkpoint(run, kind):
    before = damage(run / "profile.json", kind)
    assert read_profile(run).rvqvae.data.fps == 25
    assert choose(run.parent, resume=str(run)) == run
    request = request_of(read_training_flags([f"--resume={run}", "--set=rvqvae.data.num_workers=1"]))
    assert request.profile.rvqvae.data.fps == 25
    (note,) = restore_profile(run)
    assert note.startswith(f"{run / 'profile.json'}: damaged: ") and note.endswith("global_step5")
    assert (run / "profile.json").read_bytes() == before
    assert restore_profile(run) == []


def test_a_profile_that_is_gone_is_restored_too(run):
    (run / "profile.json").unlink()
    assert choose(run.parent, resume=str(run)) == run
    assert request_of(read_training_flags([f"--resume={run}"])).profile.rvqvae.data.fps == 25
    assert "missing; restored from" in restore_profile(run)[0]


def test_a_damaged_profile_without_a_copy_is_refused_with_the_way_on(run):
    copy = run / "checkpoints" / "global_step5" / "profile.json"
    copy.write_bytes(copy.read_bytes()[:-1])
    damage(run / "profile.json", "half")
    assert restore_profile(run) == []
    for refused in (lambda: read_profile(run), lambda: request_of(read_training_flags([f"--resume={run}"]))):
        with pytest.raises(UserError, match=r"damaged: .*no checkpoint has a copy.*copy its profile\.json"):
            refused()
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match=r"damaged: .* begin it again by its flags .*--name run --resume"):
        request_of(read_training_flags([f"--resume={run}"]))


def test_a_profile_that_says_other_things_than_it_may_is_not_damaged(run):
    values = json.loads((run / "profile.json").read_text())
    values["rvqvae"]["model"]["widht"] = 3
    (run / "profile.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="did you mean width"):
        read_profile(run)
    assert restore_profile(run) == []


_LOG = b"2026-01-01 10:00:00 INFO rank 0: one\nTraceback\n  a line of it\n2026-01-01 10:00:01 INFO rank 0: t\xc3\xb6rn"


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("ends", [b"\n", b""])
def test_the_next_line_of_a_damaged_log_can_be_read(tmp_path, kind, ends):
    file = tmp_path / "run.log"
    file.write_bytes(_LOG * 100 + ends)
    damage(file, kind)
    notes = mend_log(tmp_path)
    content = file.read_bytes()
    assert content.decode().isprintable() or not any(byte < 9 for byte in content)
    assert not content or content.endswith(b"\n")
    assert (_LOG * 100).startswith(content[:-1])
    assert bool(notes) == ("nuls" in kind or "random" in kind)
    assert mend_log(tmp_path) == [] and file.read_bytes() == content


def test_a_log_that_is_not_there_or_whole_stays(tmp_path):
    assert mend_log(tmp_path) == [] and not (tmp_path / "run.log").exists()
    (tmp_path / "run.log").write_bytes(_LOG + b"\n")
    assert mend_log(tmp_path) == [] and (tmp_path / "run.log").read_bytes() == _LOG + b"\n"


@pytest.mark.parametrize("kind", [*DAMAGES, "gone"])
def test_lines_of_metrics_are_restored_from_the_checkpoint(run, kind):
    file, checkpoint = run / "metrics.jsonl", run / "checkpoints" / "global_step10"
    lines = b"".join(b'{"step": %d, "loss": 1.0}\n' % step for step in range(1, 201))
    file.write_bytes(lines)
    (checkpoint / "metrics.jsonl").write_bytes(copies_of(run)["metrics.jsonl"])
    files = {"metrics.jsonl": digest_of(checkpoint / "metrics.jsonl")}
    (checkpoint / MANIFEST).write_text(json.dumps(seal({"step": 10, "files": {}, "beside": files})))
    later = lines + b'{"step": 201, "loss": 1.0}\n'
    file.write_bytes(later)
    assert restore_metrics(run, checkpoint) == [] and file.read_bytes() == later
    if kind == "gone":
        file.unlink()
    else:
        damage(file, kind)
    notes = restore_metrics(run, checkpoint)
    assert file.read_bytes().startswith(lines)
    assert bool(notes) == ("after" not in kind)
    # A copy that is damaged itself is not taken.
    damage(checkpoint / "metrics.jsonl", "half")
    file.write_bytes(b"")
    assert restore_metrics(run, checkpoint) == [] and file.read_bytes() == b""
