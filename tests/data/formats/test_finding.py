"""The search for files to work on, and whether a file is whole."""

import os

import numpy as np
import pytest

from ds_rvqvae.data.formats.finding import check_regular, find_files, is_whole
from ds_rvqvae.data.formats.npz import write_npz
from ds_rvqvae.data.formats.writing import write_matrix
from ds_rvqvae.motion.clip import ClipError
from tests.data.motion import write_beat2_folder, write_packed


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
    for path, reason in (("pipe.npz", "no regular"), (".", "a folder"), ("a.npz", "symbolic"), ("none", "No such")):
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
