import os
from pathlib import Path

import pytest
import xxhash

from ds_rvqvae import files
from ds_rvqvae.files import (
    AppendedLines,
    check_writable,
    content_of,
    contents_of,
    is_abandoned,
    parse_json,
    read_json,
    read_text,
    remove_unfinished,
    replace_folder,
    sha256_of,
    sync,
    unfinished_files,
    unfinished_stem,
    whole_file,
    whole_folder,
)
from tests.room import files_no_longer_than


def contents(folder) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


def test_a_file_is_whole_or_as_it_was(tmp_path):
    file = tmp_path / "a.txt"
    for text in (b"first", b"second"):
        with whole_file(file) as content:
            content.write(text)
        assert file.read_bytes() == text
    with pytest.raises(KeyboardInterrupt), whole_file(file) as content:
        content.write(b"half")
        raise KeyboardInterrupt
    assert file.read_bytes() == b"second" and list(tmp_path.iterdir()) == [file]


def test_leftovers_of_killed_processes_are_removed_and_those_of_living_ones_kept(tmp_path):
    process = os.fork()
    if process == 0:
        with whole_file(tmp_path / "deep" / "a.npz") as content:
            content.write(b"half")
            content.flush()
            os._exit(9)
    os.waitpid(process, 0)
    assert len(list((tmp_path / "deep").iterdir())) == 1
    with whole_file(tmp_path / "b.npz") as content:
        remove_unfinished(tmp_path)
        content.write(b"whole")
    assert list((tmp_path / "deep").iterdir()) == [] and (tmp_path / "b.npz").read_bytes() == b"whole"


def test_a_synced_file_is_like_any_other(tmp_path):
    with whole_file(tmp_path / "deep" / "a.txt", synced=True) as content:
        content.write(b"text")
    assert contents(tmp_path) == {"deep/a.txt": "text"}
    sync(tmp_path / "deep")
    sync(tmp_path / "deep" / "a.txt")
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "none")


def test_a_folder_is_whole_or_as_it_was(tmp_path):
    folder = tmp_path / "deep" / "a"
    for text in ("first", "second"):
        with whole_folder(folder) as unfinished:
            (unfinished / f"{text}.txt").write_text(text)
        assert contents(tmp_path) == {f"deep/a/{text}.txt": text}
    with pytest.raises(KeyboardInterrupt), whole_folder(folder) as unfinished:
        (unfinished / "half.txt").write_text("half")
        raise KeyboardInterrupt
    assert contents(tmp_path) == {"deep/a/second.txt": "second"} and list(folder.parent.iterdir()) == [folder]


def test_a_folder_that_is_not_to_be_replaced_stays(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    with whole_folder(folder, replace=False) as unfinished:  # an empty one is nothing to lose
        (unfinished / "x").write_text("first")
    with pytest.raises(OSError, match="not empty"), whole_folder(folder, replace=False) as unfinished:
        (unfinished / "x").write_text("second")
    assert contents(tmp_path) == {"a/x": "first"} and list(tmp_path.iterdir()) == [folder]


def test_a_folder_may_say_where_it_is_made(tmp_path):
    place = tmp_path / ".a.building"
    (place / "new").mkdir(parents=True)
    (place / "new" / "stray").write_text("of a killed process")
    with whole_folder(tmp_path / "a", place) as unfinished:
        assert unfinished.parent == place and not any(unfinished.iterdir())
        (unfinished / "x").write_text("whole")
    assert contents(tmp_path) == {"a/x": "whole"} and not place.exists()


def test_a_folder_is_made_where_a_link_leads(tmp_path):
    (tmp_path / "link").symlink_to("made")
    with whole_folder(tmp_path / "link", replace=False, synced=True) as unfinished:
        (unfinished / "deep").mkdir()
        (unfinished / "deep" / "x").write_text("whole")
    assert (tmp_path / "link").is_symlink() and contents(tmp_path / "made") == {"deep/x": "whole"}


def test_what_killed_processes_left_beside_a_folder_is_removed(tmp_path):
    folder = tmp_path / "a[1]"
    if (process := os.fork()) == 0:
        with whole_folder(folder) as unfinished:
            (unfinished / "half").write_text("half")
            os._exit(9)
    os.waitpid(process, 0)
    with whole_folder(tmp_path / "b") as other:  # of a process that still runs
        assert len(list(tmp_path.iterdir())) == 2
        with whole_folder(folder) as unfinished:
            (unfinished / "x").write_text("whole")
        assert sorted(tmp_path.iterdir()) == [other.parent, folder]


def test_unfinished_files_are_found_by_the_file_that_they_are_to_replace(tmp_path):
    mine = Path(f"{unfinished_stem(tmp_path)}-a.json")
    elsewhere = tmp_path / ".unfinished-another-machine-1-2-a.json"
    for file in (mine, elsewhere, tmp_path / "a.json", tmp_path / ".unfinished-x-1-2-b.json"):
        file.touch()
    assert unfinished_files(tmp_path, "a.json") == sorted([mine, elsewhere])
    assert not is_abandoned(mine) and not is_abandoned(elsewhere) and not is_abandoned(tmp_path / "gone")
    os.utime(elsewhere, (0, 0))
    assert is_abandoned(elsewhere)


def test_a_folder_that_cannot_take_its_place_leaves_the_earlier_one(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("earlier")
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "none", tmp_path / "a")
    assert contents(tmp_path) == {"a/x": "earlier"} and [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_lines_are_added_after_a_torn_one_is_cut(tmp_path):
    file = tmp_path / "lines"
    file.write_bytes(b"one\ntwo\nthr")
    lines = AppendedLines(file, b"header\n")
    assert lines.write(b"three\n") is None and lines.write(b"four\nfive\n") is None
    lines.close()
    assert file.read_bytes() == b"one\ntwo\nthree\nfour\nfive\n"


def test_a_file_of_whole_lines_is_not_cut_as_another_process_may_have_added_some(tmp_path, monkeypatch):
    (tmp_path / "lines").write_bytes(b"one\n")
    size_of = os.lseek

    def add_after(handle, *where):
        size = size_of(handle, *where)
        os.write(handle, b"of another\n")
        return size

    monkeypatch.setattr(os, "lseek", add_after)
    AppendedLines(tmp_path / "lines").close()
    assert (tmp_path / "lines").read_bytes() == b"one\nof another\n"


def test_a_fork_that_ends_leaves_what_its_parent_writes(tmp_path):
    with whole_file(tmp_path / "a.npz") as content:
        fork = os.fork()
        if fork == 0:
            files._remove_begun()  # as at a process's end
            os._exit(0)
        os.waitpid(fork, 0)
        content.write(b"whole")
    assert (tmp_path / "a.npz").read_bytes() == b"whole"


def test_an_empty_file_begins_with_the_header(tmp_path):
    for before in (None, b"", b"torn"):
        file = tmp_path / "lines"
        if before is not None:
            file.write_bytes(before)
        lines = AppendedLines(file, b"header\n")
        lines.write(b"one\n")
        lines.close()
        assert file.read_bytes() == b"header\none\n"
        file.unlink()


def test_lines_that_find_no_room_are_kept_whole_for_later(tmp_path):
    file = tmp_path / "lines"
    lines = AppendedLines(file)
    with files_no_longer_than(10):
        assert lines.write(b"one\n") is None
        assert lines.write(b"second\n") == "no room on the disk" and file.read_bytes() == b"one\n"  # six bytes fit
        assert lines.write(b"third\n") == "no room on the disk" and file.read_bytes() == b"one\n"
    with files_no_longer_than(4):
        assert lines.write(b"fourth\n") == "File too large" and file.read_bytes() == b"one\n"
    assert lines.write(b"fifth\n") is None
    lines.close()
    assert file.read_bytes() == b"one\nsecond\nthird\nfourth\nfifth\n"


def test_of_lines_that_are_kept_the_oldest_are_dropped(tmp_path):
    file = tmp_path / "lines"
    lines = AppendedLines(file, most_pending=15)
    with files_no_longer_than(0):
        for line in (b"first\n", b"second\n", b"third\n"):
            assert lines.write(line) == "File too large"
    assert lines.write(b"fourth\n") is None
    lines.close()
    assert file.read_bytes() == b"second\nthird\nfourth\n"


def test_what_is_no_file_gets_lines_as_they_come(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    lines = AppendedLines(tmp_path / "pipe", b"header\n")
    assert lines.write(b"one\n") is None and os.read(reader, 100) == b"header\none\n"
    lines.close()
    os.close(reader)
    lines = AppendedLines(Path("/dev/full"))
    assert lines.write(b"one\n") == "No space left on device"
    lines.close()


def test_a_folder_that_can_be_written_stays_as_it_is(tmp_path):
    check_writable(tmp_path)
    assert not any(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="exists"):
        check_writable(tmp_path / "file")


def test_a_checksum_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_file_is_known_by_its_size_and_a_hash_of_all_its_bytes(tmp_path):
    for size in (0, 1, 1 << 20, (1 << 20) + 1, 3 << 20):
        content = os.urandom(size)
        (tmp_path / str(size)).write_bytes(content)
        assert content_of(tmp_path / str(size)) == f"{size}-{xxhash.xxh3_128_hexdigest(content)}"
    last = tmp_path / str(3 << 20)
    before = content_of(last)
    last.write_bytes(last.read_bytes()[:-1] + b"?")
    assert content_of(last) != before
    files = [tmp_path / str(size) for size in (0, 1, 1, 1 << 20)]
    assert contents_of(iter(files)) == {file: content_of(file) for file in files}


def test_what_is_no_file_has_no_content_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("pipe", "dangling", "nowhere", "", "a\0b", "x" * 300):
        assert content_of(tmp_path / name) is None


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": "\xff"}', b"\0" * 4096, b"[" * 1_000_000, b'{"a":' * 100_000])
def test_damaged_json_of_any_kind_is_a_value_error(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        read_json(tmp_path / "a.json")
    assert parse_json('{"a": [1, "ü"]}') == parse_json('{"a": [1, "ü"]}'.encode()) == {"a": [1, "ü"]}
    with pytest.raises(OSError, match="No such file"):
        read_json(tmp_path / "b.json")


def test_text_may_be_as_windows_saves_it(tmp_path):
    file = tmp_path / "list.txt"
    for content in (b"\xef\xbb\xbfa\r\nb\r\n", b"a\nb\n", b"a\rb\r"):
        file.write_bytes(content)
        assert read_text(file) == "a\nb\n"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n')
    assert read_json(file) == {"a": 1}
    for encoding in ("utf-16", "utf-16-le"):
        file.write_bytes("\ufeffa\n".encode(encoding))
        with pytest.raises(UnicodeError, match="UTF-16; save it as UTF-8"):
            read_text(file)
