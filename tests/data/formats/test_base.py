"""The functions that readers share: matrices, missing keys, files below a folder."""

import numpy as np
import pytest

from ds_rvqvae.data.formats.base import file_size, files_below, matrix, missing_key, no_file, npz_samples, visible_files
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import ClipError


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.zeros((3, 4, 5)), r"shape \[3, 4, 5\], not \[frames, 4\]"),
        (np.zeros(()), r"shape \[\]"),
        (np.zeros((3, 5)), r"shape \[3, 5\]"),
        (np.zeros((0, 4)), "empty"),
        (np.full((3, 4), "x"), "<U1, not numbers"),
        (np.zeros((3, 4), "datetime64[s]"), "not numbers"),
        (np.zeros((3, 4), complex), "complex128, not numbers"),
        (np.zeros((3, 4), bool), "bool, not numbers"),
    ],
)
def test_a_matrix_is_real_numbers_in_rows_and_columns(values, reason):
    with pytest.raises(ClipError, match=reason):
        matrix(values, "poses", 4)


def test_a_matrix_of_any_width_is_handed_back_as_it_is():
    values = np.zeros((3, 7), np.int16)
    assert matrix(values, "poses") is values and matrix(values, "poses", 7) is values
    with pytest.raises(ClipError, match=r"poses has 65,537 columns, more than 65,536"):
        matrix(np.zeros((1, 2**16 + 1), np.int8), "poses")


def test_a_key_that_is_missing_is_told_with_those_there_are():
    assert missing_key([], "poses") == "no key poses; it has none"
    assert missing_key(["a", "b" * 50], "poses") == f"no key poses; it has a, {'b' * 40}"
    letters = "abcdefghijklmn"
    assert missing_key(list(letters), "poses") == f"no key poses; it has {', '.join(letters[:12])} and 2 more"


def test_files_below_a_folder_are_found_by_the_names_of_their_clips(tmp_path):
    for name in ("b.npz", "a/one.NPZ", "a/one.npy", "a/deep/two.npy", ".hidden/no.npy", "a/.no.npy", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    found = files_below(tmp_path, (".npz", ".npy"))
    names = {"a/deep/two": "a/deep/two.npy", "a/one": "a/one.NPZ", "a/one.npy": "a/one.npy", "b": "b.npz"}
    assert found == {name: tmp_path / file for name, file in names.items()}


def test_folders_too_deep_in_each_other_are_refused(tmp_path):
    (tmp_path / "/".join("a" * 64)).mkdir(parents=True)
    assert files_below(tmp_path, (".npy",)) == {}
    (tmp_path / "/".join("a" * 65)).mkdir()
    with pytest.raises(UserError, match="more than 64 deep"):
        files_below(tmp_path, (".npy",))


def test_keys_are_sampled_of_the_first_files_that_can_be_read(tmp_path):
    files = [tmp_path / f"{index}.npz" for index in range(6)]
    for index, file in enumerate(files):
        np.savez(file, **{f"key{index}": np.zeros(2)})
    files[1].write_bytes(b"PK")
    files[3].unlink()
    assert list(npz_samples(files, most=3)) == [["key0"], ["key2"], ["key4"]]
    assert len(list(npz_samples(files))) == 4


def test_visible_files_and_the_sizes_of_those_that_are_there(tmp_path):
    for name in ("b.npy", "a.npy", ".c.npy", "d.npz"):
        (tmp_path / name).write_bytes(b"12345")
    assert visible_files(tmp_path, ".npy") == [tmp_path / "a.npy", tmp_path / "b.npy"]
    assert [file_size(file) for file in (tmp_path / "a.npy", tmp_path / "x.npy", None)] == [5, 0, 0]
    assert no_file("a") == "there is no such file" and no_file("../a") == "the name leads out of the folder"
