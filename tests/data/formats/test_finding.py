"""The search for files to work on, and the check that a file is complete."""

import os

import numpy as np
import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.finding import PassedOver, check_regular, count_files, find_files, is_whole
from ds_rvqvae.data.formats.npz import write_npz
from ds_rvqvae.data.formats.readers import open_reader
from ds_rvqvae.data.formats.written import write_matrix
from ds_rvqvae.motion.clip import ClipError
from tests.data.formats.smpl.published import write_aist, write_motionx
from tests.data.motion import write_beat2, write_beat2_folder, write_packed


def test_search_mirrors_the_tree_and_leaves_out_what_is_no_motion(tmp_path):
    data, out = tmp_path / "data", tmp_path / "data" / "out"
    write_beat2_folder(data / "beat2" / "smplxflame_30", ("1_a", "2_b"), 20)
    write_beat2_folder(data / "beat2" / "weights", ("not_motion",), 20)
    write_beat2_folder(data / ".hidden", ("1_a",), 20)
    write_beat2_folder(out, ("1_a",), 20)
    for name in (
        "human/new_joint_vecs/M1.npy",
        "human/new_joints/M1.npy",
        "human/Mean.npy",
        "Std.npy",
        "deep/er/x.npy",
    ):
        write_matrix(data / name, np.ones((3, 2)))
    (data / "notes.txt").write_text("")
    (data / ".1_a.npz").write_text("")
    (data / "deep" / "loop").symlink_to(data)
    explicit = write_packed(tmp_path / "task.bin.npz")
    found, left_out = find_files([data, explicit, tmp_path / "nowhere"], (".npz", ".npy"), leave_out=out)
    expected = ["smplxflame_30/1_a.npz", "smplxflame_30/2_b.npz"]
    expected = [f"beat2/{name}" for name in expected] + ["deep/er/x.npy", "human/new_joint_vecs/M1.npy", "task.bin.npz"]
    assert [str(file.relative) for file in found] == expected
    assert found[0].file == data / "beat2" / "smplxflame_30" / "1_a.npz" and found[-1].file == explicit
    assert [(left.file, left.reason) for left in left_out] == [(str(tmp_path / "nowhere"), "no such file or folder")]


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "a.npz").symlink_to(tmp_path / "b.npz")
    (tmp_path / "b.npz").symlink_to(tmp_path / "a.npz")
    for path, reason in (("pipe.npz", "not a regular"), (".", "a folder"), ("a.npz", "symbolic"), ("none", "No such")):
        with pytest.raises(ClipError, match=reason):
            check_regular(tmp_path / path)


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_cut_and_changed_files_are_not_whole(tmp_path, suffix):
    file = tmp_path / f"a{suffix}"
    with file.open("wb") as content:
        if suffix == ".npz":
            write_npz(content, {"a": np.arange(1000)}, compressed=True)
        else:
            np.save(content, np.arange(1000))
    whole = file.read_bytes()
    assert is_whole(file) and not is_whole(tmp_path)
    file.write_bytes(whole[: len(whole) // 2])
    assert not is_whole(file)
    if suffix == ".npz":
        file.write_bytes(whole[:200] + bytes([whole[200] ^ 255]) + whole[201:])
        assert not is_whole(file)


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def counted(path, read, left_out=(), leave_out=(), **settings):
    return count_files(open_reader(path, DataConfig(**settings)), read, left_out, leave_out)


def test_every_file_of_a_folder_is_counted_once_with_what_became_of_it(tmp_path):
    data = tmp_path / "data"
    write_beat2_folder(data / "smplxflame_30", ("1_a", "1_b", "1_c", "2_d"), 20)
    write_beat2(data / "more" / "3_e.npz")
    (data / "train_test_split.csv").write_text("id,type\n1_a,train\n")
    touch(
        data, "wave16k/1_a.wav", "wave16k/1_b.WAV", "wave16k/1_c.wav", ".git/HEAD", ".git/deep/x", ".DS_Store", "README"
    )
    touch(data, "smplxflame_30/.1_a.npz.swp", "store/store.json", ".building/x")
    (data / "loop").symlink_to(data)
    count = counted(data, {"1_a.npz"}, {"1_b.npz"}, (data / "store", data / ".building"), speakers=[1])
    assert (count.seen, count.read, count.left_out) == (14, 1, 1)
    assert count.passed_over == [
        PassedOver("hidden", "", 4, [".DS_Store", ".git/HEAD", ".git/deep/x"]),
        PassedOver("not of this format", ".wav", 3, ["wave16k/1_a.wav", "wave16k/1_b.WAV", "wave16k/1_c.wav"]),
        PassedOver("its clips are in the store already", ".npz", 1, ["smplxflame_30/1_c.npz"]),
        PassedOver("lists and statistics in use", ".csv", 1, ["train_test_split.csv"]),
        PassedOver("not in a folder of clips", ".npz", 1, ["more/3_e.npz"]),
        PassedOver("not of this format", "", 1, ["README"]),
        PassedOver("of other speakers", ".npz", 1, ["smplxflame_30/2_d.npz"]),
    ]
    assert count.seen == count.read + count.left_out + sum(group.files for group in count.passed_over)


def test_single_files_are_counted(tmp_path):
    packed = write_packed(tmp_path / "task.npz")
    assert counted(packed, {"task.npz: clip1"}, {"task.npz: clip0"})[1:] == (1, 1, 0, [])
    write_beat2_folder(tmp_path / "data", ("1_a",), 20)
    assert counted(tmp_path / "data" / "1_a.npz", {"1_a.npz"})[1:] == (1, 1, 0, [])
    assert counted(tmp_path / "data", set(), {"1_a.npz"})[1:] == (1, 0, 1, [])


def test_thousands_of_files_beside_the_motion_are_one_line(tmp_path):
    write_beat2_folder(tmp_path / "data" / "smplxflame_30", ("1_a",), 20)
    touch(tmp_path / "data", *(f"textgrid/{index}.TextGrid" for index in range(2000)))
    count = counted(tmp_path / "data", {"1_a.npz"})
    assert count.seen == 2001 and [(group.files, len(group.first)) for group in count.passed_over] == [(2000, 3)]


def test_folders_beside_the_clips_of_motion_x_and_aist_are_no_clips(tmp_path):
    write_motionx(tmp_path / "motionx")
    write_aist(tmp_path / "aist")
    found, _ = find_files([tmp_path / "motionx", tmp_path / "aist"], (".npy", ".npz"))
    assert {one.relative.parts[0] for one in found} == {"motion_data", "motions"} and len(found) == 4 + 5
    (tmp_path / "alone" / "keypoints3d").mkdir(parents=True)
    (tmp_path / "alone" / "keypoints3d" / "a.npz").touch()
    assert len(find_files([tmp_path / "alone"], (".npz",))[0]) == 1
