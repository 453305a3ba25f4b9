"""Folders of runs."""

import json
import os
import shlex
import shutil
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.config.profile import load_profile
from ds_rvqvae.config.request import Start, read_training_flags
from ds_rvqvae.data.store.prepare import prepare_store
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import LONGEST_NAME
from ds_rvqvae.runs.checkpoints import MANIFEST, digest_of, seal
from ds_rvqvae.runs.folder import (
    Naming,
    check_out_folder,
    choose_run_folder,
    copies_of,
    data_name,
    mend_log,
    read_profile,
    restore_metrics,
    restore_profile,
    run_folder_of,
    runs_called,
    write_profile,
)
from ds_rvqvae.runs.start import check_may_look, newest_lines, request_of
from tests.damage import DAMAGES, damage
from tests.data.formats.bvh_files import HIERARCHY


def choose(out, name=None, profile="baseline", resume=False, data="/data/BEAT2", part="upper", before="upper"):
    return choose_run_folder(out, name, Naming(profile, data, part, before), Start.of(resume))


@contextmanager
def as_nobody():
    """Drops root's rights if this process has them."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def made_run(folder, data):
    """A run's folder, trained on motion at a path."""
    folder.mkdir(parents=True)
    write_profile(folder, load_profile("demo", [f"rvqvae.data.path={json.dumps(str(data))}"]))
    return folder


def test_names_count_up_so_that_a_command_works_twice(tmp_path):
    names = []
    for _ in range(3):
        folder = choose(tmp_path)
        folder.mkdir()
        names.append(folder.name)
    assert names == ["baseline-BEAT2-upper", "baseline-BEAT2-upper-2", "baseline-BEAT2-upper-3"]


def test_a_removed_run_does_not_give_its_number_to_a_newer_one(tmp_path):
    (tmp_path / "baseline-BEAT2-upper-2").mkdir()
    assert choose(tmp_path).name == "baseline-BEAT2-upper-3"


def test_resume_takes_the_newest_by_number(tmp_path):
    for name in ("upper", "upper-9", "upper-10", "upper-hands", "hands-12"):
        (tmp_path / f"baseline-BEAT2-{name}").mkdir()
    (tmp_path / "wide-BEAT2-upper-11").mkdir()
    assert choose(tmp_path, resume=True).name == "baseline-BEAT2-upper-10"


def test_resume_without_any_run_starts_the_first(tmp_path):
    assert choose(tmp_path / "none", resume=True) == tmp_path / "none" / "baseline-BEAT2-upper"
    assert choose(tmp_path, "mine", resume=True) == tmp_path / "mine"
    assert not list(tmp_path.iterdir())


def test_resume_takes_a_run_on_the_same_motion_whatever_its_name(tmp_path):
    made_run(tmp_path / "baseline-upper-3", "/data/other")
    assert choose(tmp_path, resume=True).name == "baseline-BEAT2-upper"
    old = made_run(tmp_path / "baseline-upper", "/data/BEAT2")
    assert choose(tmp_path, resume=True) == old
    moved = made_run(tmp_path / "baseline-BEAT2-upper", "/elsewhere/BEAT2")
    assert choose(tmp_path, resume=True) == old
    assert choose(tmp_path, resume=True, data="/third/BEAT2") == moved
    new = made_run(tmp_path / "baseline-BEAT2-upper-2", "/data/BEAT2")
    made_run(tmp_path / "baseline-BEAT2-upper-7", "/elsewhere/BEAT2")
    assert choose(tmp_path, resume=True) == new
    assert runs_called(tmp_path, Naming("baseline", "/data/BEAT2", "upper", "upper"))[:2] == [new, old]
    # A new run never takes a number that is in use, for any motion.
    assert choose(tmp_path).name == "baseline-BEAT2-upper-8"


def test_a_body_of_before_is_found_by_what_its_parts_were_trained_on(tmp_path):
    made_run(tmp_path / "baseline-body" / "upper", "/data/BEAT2")
    assert choose(tmp_path, resume=True, part="body", before="body").name == "baseline-body"
    assert choose(tmp_path, resume=True, part="body", before="body", data="/data/cmu").name == "baseline-cmu-body"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("/data/beat_english_v2.0.0", "baseline-beat_english_v2.0.0"),
        ("/data/my motion (new)", "baseline-my_motion_new"),
        ("/data/a\\b\nc;$d", "baseline-a_b_c_d"),
        ("/data/-rf", "baseline-rf"),
        ("/data/.hidden", "baseline-hidden"),
        ("/data/tänze", "baseline-tänze"),
        ("/data/\udcff\udcfe", "baseline-data"),
        ("/data/" + "ä" * 200, "baseline-" + "ä" * 31),
        ("/", "baseline-data"),
        (None, "baseline"),
    ],
)
def test_a_run_is_called_by_its_motion_in_a_word(tmp_path, data, name):
    folder = choose(tmp_path, data=data, part="")
    folder.mkdir()
    assert folder.name == name and choose(tmp_path, data=data, part="").name == f"{name}-2"
    assert shlex.quote(name) == name or not name.isascii()


def test_names_that_are_too_long_leave_room_for_a_number(tmp_path):
    long = {"profile": "p" * 250, "data": "/" + "d" * 250, "part": "b" * 250, "before": "b"}
    for _ in range(2):
        choose(tmp_path, **long).mkdir()
    assert len({entry.name for entry in tmp_path.iterdir()}) == 2


def test_motion_is_named_by_its_file_or_its_folder_seen_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "walks").mkdir()
    (tmp_path / "walks" / "all.takes.npz").touch()
    monkeypatch.chdir(tmp_path / "walks")
    assert data_name("all.takes.npz") == "all.takes" and data_name(str(tmp_path / "walks" / "sub" / "..")) == "walks"
    assert data_name(".") == "walks" and data_name(str(tmp_path / "walks.v2")) == "walks.v2"


def test_a_bare_resume_says_which_run_it_takes_or_may_have_meant(tmp_path):
    def said(*line, part="upper", is_body=False):
        flags = read_training_flags([f"--out={tmp_path}", *line])
        naming = Naming("baseline", "/new/BEAT2-v2", part, part)
        folder = choose_run_folder(flags.out, flags.name, naming, flags.start)
        return newest_lines(flags, naming, folder, is_body=is_body)

    assert said("--resume") == ()
    made_run(tmp_path / "baseline-upper", "/data/BEAT2")
    made_run(tmp_path / "baselines-upper", "/data/BEAT2")
    made_run(tmp_path / "baseline-body" / "upper", "/data/BEAT2")
    begins = f"warning: --resume: no run on this motion; starting {tmp_path}/baseline-BEAT2-v2-upper from step 0. "
    goes_on = f"--resume {tmp_path}/baseline-upper goes on with "
    assert said("--resume") == (f"{begins}There is baseline-upper (/data/BEAT2); {goes_on}it",)
    assert said("--resume", part="hands") == said() == said("--resume", "--name=one") == ()
    (line,) = said("--resume", part="body", is_body=True)
    assert line.endswith(f" baseline-body (/data/BEAT2); --resume {tmp_path}/baseline-body goes on with it")
    for number in range(4):
        os.utime(made_run(tmp_path / f"baseline-old{number}-upper", f"/old{number}"), (number, number))
    (line,) = said("--resume")
    named = "baseline-upper (/data/BEAT2), baseline-old3-upper (/old3), baseline-old2-upper (/old2)"
    assert line == f"{begins}There are {named}; {goes_on}the first"
    for number in ("", "-2"):
        made_run(tmp_path / f"baseline-BEAT2-v2-upper{number}", "/new/BEAT2-v2")
    taken = f"--resume: the run {tmp_path}/baseline-BEAT2-v2-upper-2"
    assert said("--resume") == (f"{taken}; there is also baseline-BEAT2-v2-upper",)
    made_run(tmp_path / "baseline-BEAT2-v2-body" / "hands", "/new/BEAT2-v2")
    assert said("--resume", part="body", is_body=True) == (f"--resume: the body {tmp_path}/baseline-BEAT2-v2-body",)


def test_motion_that_cannot_be_seen_is_named_by_its_last_name(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "locked").mkdir(mode=0)
    long = "d" * (LONGEST_NAME + 45)
    places = [str(tmp_path / place) for place in (long, "loop/walks", "locked/walks", "a\0b/walks")]
    for user in (nullcontext, as_nobody):
        with user():
            assert [data_name(place) for place in places] == ["d" * 63, "walks", "walks", "walks"]
            assert data_name(f"{tmp_path}/a\0b/..") == "data"
    # Nor does another run's path stop `--resume` without a value.
    for number, place in enumerate(places, 1):
        made_run(tmp_path / "runs" / f"baseline-upper-{number}", place)
    assert choose(tmp_path / "runs", resume=True).name == "baseline-BEAT2-upper"
    assert choose(tmp_path / "runs", resume=True, data="/data/walks").name == "baseline-upper-4"


def test_a_folder_of_runs_that_is_locked_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    for flag, *line in (["out"], ["out", "--name=run"], ["resume", f"--resume={tmp_path}/out/run"]):
        flags = read_training_flags([f"--out={tmp_path}/out", *line])
        check_may_look(flags)
        (tmp_path / "out").chmod(0)
        with as_nobody(), pytest.raises(UserError, match=f"^--{flag}: no permission to read {tmp_path}/out"):
            check_may_look(flags)
        (tmp_path / "out").chmod(0o755)


def test_a_part_is_in_the_name_where_it_selects_columns(tmp_path, demo_folder):
    (tmp_path / "clip.bvh").write_text(HIERARCHY)
    parts = '--set=rvqvae.data.body_parts={"arm": [0]}'

    def named(*flags):
        return run_folder_of(request_of(read_training_flags(["--out", str(tmp_path), *flags]))).name

    assert named(f"--data_path={demo_folder}") == f"baseline-{demo_folder.name}-upper"
    assert named(f"--data_path={tmp_path / 'clip.bvh'}") == "baseline-clip"
    assert named(f"--data_path={tmp_path / 'clip.bvh'}", parts, "--body_part=arm") == "baseline-clip-arm"
    assert named(f"--data_path={tmp_path / 'nothing'}") == "baseline-nothing"
    store = prepare_store(DataConfig(path=str(demo_folder)), tmp_path / "packed").folder
    assert named(f"--data_path={store}", "--body_part=hands") == "baseline-packed-hands"


def test_a_profile_file_names_runs_by_its_stem(tmp_path):
    assert choose(tmp_path, profile="some/where/my.v2.json").name == "my.v2-BEAT2-upper"


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
    with pytest.raises(UserError, match=r"needs about 1000000000\.0 GB, .* GB free"):
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
    with pytest.raises(UserError, match=r"damaged: .* start it again with its flags .*--name run --resume"):
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
    # A damaged copy is not used.
    damage(checkpoint / "metrics.jsonl", "half")
    file.write_bytes(b"")
    assert restore_metrics(run, checkpoint) == [] and file.read_bytes() == b""
