"""Folders of runs."""

import json
from pathlib import Path

import pytest

from ds_rvqvae.config.profile import load_profile
from ds_rvqvae.config.request import Start
from ds_rvqvae.errors import UserError
from ds_rvqvae.runs.folder import check_out_folder, choose_run_folder, read_profile, write_profile


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
