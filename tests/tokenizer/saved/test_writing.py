"""Tokenizers are written into folders with other files: none of these is lost, and at every instant reading gives one
complete tokenizer, the old or the new one."""

import json
import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest
import torch

from ds_rvqvae import BodyTokenizer, MotionTokenizer
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import unfinished_stem
from ds_rvqvae.model.rvqvae import RVQVAE
from ds_rvqvae.motion.layout import Channels
from ds_rvqvae.tokenizer.folder import read_config
from ds_rvqvae.tokenizer.saved import writing
from tests.tokenizer.saved.faults import FAILED, FAULTS, KILLED, WITHOUT, with_fault

CONFIG = ModelConfig(width=16, depth=1, code_dim=4, nb_code=8, num_quantizers=2)
PARTS = {"arm": ("Arm",), "way": ("Root", "Foot")}
OURS = {"config.json", "model.safetensors", "README.md"}


def make_single(name, part=None, columns=("Arm",), fps=30.0):
    """Its details hold its name, and each name has another frame rate."""
    torch.manual_seed(sum(name.encode()))
    layout = tuple(Channels(own, "position", 3 * index, 3 * index + 3) for index, own in enumerate(columns))
    width = 3 * len(columns)
    details = {"name": name, "body_part": part}
    return MotionTokenizer(RVQVAE(width, CONFIG), torch.zeros(width), torch.ones(width), layout, fps, details)


def make_body(name, parts=PARTS):
    return BodyTokenizer({part: make_single(name, part, columns) for part, columns in parts.items()})


KINDS = {"single": make_single, "body": make_body}


@pytest.fixture
def in_memory(tmp_path):
    """A folder on a file system that writes at once, if the machine has one."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def load(folder):
    """The name of the tokenizer in a folder, which is complete; so is each part of a body by itself."""
    if not (folder / "body.json").exists():
        return MotionTokenizer.from_pretrained(folder).details["name"]
    body = BodyTokenizer.from_pretrained(folder)
    names = {tokenizer.details["name"] for tokenizer in body.parts.values()}
    assert len(names) == 1, names
    # In place or pending: the body's parts, read by themselves, have the same name.
    assert {read_config(folder / part).details["name"] for part in body.parts} == names
    return names.pop()


def add_strangers(folder):
    """Files of the user's, among them hidden ones and a folder; gives their contents by name."""
    (folder / "notes").mkdir()
    for name in ("thesis.txt", ".hidden", "notes/deep.txt", "config.json.bak", "model.safetensors.orig"):
        (folder / name).write_text(f"{name}: years")
    (folder / "link").symlink_to("thesis.txt")
    return strangers_in(folder)


def strangers_in(folder):
    """Inodes and contents of a folder's files that are not ours; our unfinished files do not count."""
    found = {}
    for path in sorted(folder.rglob("*")):
        ours = path.name in OURS | {"body.json"} or path.name.startswith(".unfinished-")
        if not ours and not path.is_dir():
            status = path.lstat()
            found[str(path.relative_to(folder))] = (status.st_ino, status.st_mtime_ns, path.read_bytes())
    return found


def unfinished_in(folder):
    return [path.name for path in folder.parent.rglob("*") if "unfinished" in path.name]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_at_any_call_leaves_the_old_or_the_new_and_all_that_is_not_ours(tmp_path, in_memory, kind, fault):
    old, new, newer = (KINDS[kind](name) for name in ("old", "new", "newer"))
    endings, found = set(), []
    old.save_pretrained(tmp_path / "old")
    for number in range(1, 500, 3 if kind == "body" and fault != "kill" else 1):
        root = in_memory / str(number)
        folder = root / "tokenizer"
        shutil.copytree(tmp_path / "old", folder)
        strangers = add_strangers(folder)
        with (folder / "thesis.txt").open() as held:
            ending = with_fault(lambda folder=folder: new.save_pretrained(folder), root, fault, number)
            assert held.read() == "thesis.txt: years"
        assert strangers_in(folder) == strangers, (number, ending)
        found.append(load(folder))
        endings.add(ending)
        newer.save_pretrained(folder)
        assert load(folder) == "newer" and strangers_in(folder) == strangers
        assert unfinished_in(folder) == []
        shutil.rmtree(root)
        if ending == WITHOUT:
            break
    assert endings <= {KILLED if fault == "kill" else FAILED, WITHOUT, 10} and len(found) > 12
    assert set(found) == {"old", "new"}
    # The old until one of the calls, the new from then on; a call that fails may be one that can be done without.
    assert fault != "kill" or found == sorted(found, reverse=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_folder_is_whole_or_not_there(in_memory, kind):
    new, newer = KINDS[kind]("new"), KINDS[kind]("newer")
    for number in range(1, 500):
        folder = in_memory / str(number) / "tokenizer"
        folder.parent.mkdir()
        ending = with_fault(lambda folder=folder: new.save_pretrained(folder), folder.parent, "kill", number)
        assert not folder.exists() or load(folder) == "new"
        newer.save_pretrained(folder)
        assert load(folder) == "newer" and list(folder.parent.iterdir()) == [folder]
        if ending == WITHOUT:
            break
    assert number > 10


@pytest.mark.parametrize("kind", KINDS)
def test_killed_twice_the_first_half_is_not_lost(in_memory, kind):
    """The half-written result of the first process is used; the second is killed before its own is."""
    old, new, newer = (KINDS[kind](name) for name in ("old", "new", "newer"))
    folder, number = in_memory / "tokenizer", 0
    old.save_pretrained(folder)
    while load(folder) == "old":  # the first call after which the new counts
        number += 1
        shutil.rmtree(folder)
        old.save_pretrained(folder)
        with_fault(lambda: new.save_pretrained(folder), in_memory, "kill", number)
    half = in_memory / "half"
    shutil.copytree(folder, half)
    assert unfinished_in(half)
    for again in range(1, 500):
        shutil.rmtree(folder)
        shutil.copytree(half, folder)
        ending = with_fault(lambda: newer.save_pretrained(folder), folder, "kill", again)
        assert load(folder) in ("new", "newer")
        if ending == WITHOUT:
            break
    assert again > 15 and load(folder) == "newer"


class _Unheld:
    """Acts like a file system without locks."""

    works = False

    def __enter__(self):
        return self

    def __exit__(self, *given):
        pass


@pytest.mark.parametrize("locks", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_two_writers_at_once_leave_one_whole_tokenizer(tmp_path, kind, locks, monkeypatch):
    if not locks:
        monkeypatch.setattr(writing, "hold_folder", lambda *given, **options: _Unheld())
    folder = tmp_path / "tokenizer"
    KINDS[kind]("first").save_pretrained(folder)
    strangers = add_strangers(folder)
    writers = []
    for name in ("one", "two"):
        if (process := os.fork()) == 0:
            try:
                mine = KINDS[kind](name)
                for _ in range(25):
                    mine.save_pretrained(folder)
                os._exit(0)
            finally:
                os._exit(1)
        writers.append(process)
    read, ended = [], {}
    while len(ended) < len(writers):
        for process in set(writers) - ended.keys():
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                ended[process] = status
        if locks:
            read.append(load_whole(folder))
        else:
            time.sleep(0.05)
    assert list(ended.values()) == [0, 0]
    assert load(folder) in ("one", "two") and strangers_in(folder) == strangers and unfinished_in(folder) == []
    assert not locks or (read and set(read) <= {"first", "one", "two"})


def load_whole(folder):
    """Loads like `load`, at one instant: a body's parts by themselves may already be the next ones."""
    if not (folder / "body.json").exists():
        return load(folder)
    body = BodyTokenizer.from_pretrained(folder)
    (name,) = {tokenizer.details["name"] for tokenizer in body.parts.values()}
    return name


def test_parts_that_a_body_has_no_more_go_and_what_lies_beside_them_stays(tmp_path):
    folder = tmp_path / "body"
    make_body("old", {**PARTS, "hand": ("Hand",), "tail": ("Tail",)}).save_pretrained(folder)
    (folder / "tail" / "notes.txt").write_text("mine")
    (folder / "experiment").mkdir()
    make_single("mine").save_pretrained(folder / "experiment")
    make_body("new").save_pretrained(folder)
    assert load(folder) == "new" and load(folder / "experiment") == "mine"
    assert sorted(path.name for path in folder.iterdir()) == ["arm", "body.json", "experiment", "tail", "way"]
    assert [path.name for path in (folder / "tail").iterdir()] == ["notes.txt"]
    # A part that the user replaced by another one belongs to the user.
    make_body("old", {**PARTS, "hand": ("Hand",)}).save_pretrained(folder)
    make_single("mine", "hand", ("Hand",)).save_pretrained(folder / "hand")
    make_body("new").save_pretrained(folder)
    assert load(folder / "hand") == "mine"


def test_a_part_that_was_exchanged_is_said_with_the_way_on(tmp_path):
    make_body("old").save_pretrained(tmp_path / "body")
    make_single("other", "arm").save_pretrained(tmp_path / "body" / "arm")
    with pytest.raises(UserError, match=r"arm: is not the part that .*body.json was saved with; .* key contents"):
        BodyTokenizer.from_pretrained(tmp_path / "body")
    values = json.loads((tmp_path / "body" / "body.json").read_text())
    del values["contents"]
    (tmp_path / "body" / "body.json").write_text(json.dumps(values))
    loaded = BodyTokenizer.from_pretrained(tmp_path / "body")
    assert [tokenizer.details["name"] for tokenizer in loaded.parts.values()] == ["other", "old"]


def test_links_are_followed_to_folders_and_replaced_where_they_are_files(tmp_path):
    """As in the hub's cache, where files are links to files that other revisions use too."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    make_single("old").save_pretrained(blobs)
    snapshot.mkdir()
    for name in OURS:
        (snapshot / name).symlink_to(blobs / name)
    (tmp_path / "link").symlink_to("snapshot")
    before = {name: (blobs / name).read_bytes() for name in OURS}
    make_single("new").save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and load(snapshot) == "new" and load(blobs) == "old"
    assert {name: (blobs / name).read_bytes() for name in OURS} == before
    (tmp_path / "to nothing").symlink_to("made")
    make_single("new").save_pretrained(tmp_path / "to nothing")
    assert load(tmp_path / "made") == "new" and (tmp_path / "to nothing").is_symlink()


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_folder_under_the_name_of_a_file_is_refused_in_words(tmp_path, name):
    make_single("old").save_pretrained(tmp_path / "tokenizer")
    file = tmp_path / "tokenizer" / name
    file.unlink()
    file.mkdir()
    (file / "mine").write_text("years")
    before = {path: path.stat().st_ino for path in tmp_path.rglob("*")}
    with pytest.raises(UserError, match=f"{name}: is not a file, so it cannot be replaced"):
        make_single("new").save_pretrained(tmp_path / "tokenizer")
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*")} == before


@pytest.fixture
def mount(tmp_path):
    """Mounts one path on another, and unmounts it after the test."""
    mounted = []

    def bind(source, target, *options):
        done = subprocess.run(["mount", *options, source, target], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
        mounted.append(target)

    yield bind
    for target in reversed(mounted):
        subprocess.run(["umount", target], check=True)


@pytest.mark.parametrize("name", ["data", "config.json", "model.safetensors", "."])
def test_what_is_mounted_stays(tmp_path, mount, name):
    folder = tmp_path / "tokenizer"
    source = tmp_path / "source"
    make_single("old").save_pretrained(folder)
    if name == "data":
        (folder / "data").mkdir()
        source.mkdir()
        (source / "motion").write_text("years")
    elif name == ".":
        folder.rename(source)
        folder.mkdir()
    else:
        shutil.copy(folder / name, source)
    mount(source, folder / name, "--bind")
    if name in OURS:
        with pytest.raises(UserError, match=f"{name}: something is mounted there"):
            make_single("new").save_pretrained(folder)
        assert load(folder) == "old" and unfinished_in(folder) == []
    else:
        make_single("new").save_pretrained(folder)
        mounts = {partition.mountpoint for partition in psutil.disk_partitions(all=True)}
        assert load(folder) == "new" and os.path.realpath(folder / name) in mounts
        assert name == "." or (folder / "data" / "motion").read_text() == "years"


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_without_room_leaves_the_old(tmp_path, mount, kind):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    mount("tmpfs", folder, "-t", "tmpfs", "-o", "size=256k")
    KINDS[kind]("old").save_pretrained(folder)
    (folder / "mine").write_bytes(b"1" * 1000)
    with suppress(OSError):
        (folder / "filling").write_bytes(b"0" * 250_000)
    with pytest.raises(OSError, match="No space left"):
        KINDS[kind]("new").save_pretrained(folder)
    assert load(folder) == "old" and (folder / "mine").read_bytes() == b"1" * 1000 and unfinished_in(folder) == []
    (folder / "filling").unlink()


def test_a_folder_that_cannot_be_written_stays_as_it_is(tmp_path, mount):
    make_single("old").save_pretrained(tmp_path / "tokenizer")
    mount(tmp_path / "tokenizer", tmp_path / "tokenizer", "--bind", "-o", "ro")
    with pytest.raises(OSError, match="Read-only"):
        make_single("new").save_pretrained(tmp_path / "tokenizer")
    assert load(tmp_path / "tokenizer") == "old"


def test_a_card_that_was_changed_is_left_as_it_is_and_said(tmp_path, caplog):
    folder = tmp_path / "tokenizer"
    make_single("old").save_pretrained(folder)
    make_single("new").save_pretrained(folder)
    as_written = (folder / "README.md").read_text()
    assert make_single("new").fingerprint in as_written and not caplog.records
    for words in (as_written.replace("# Motion tokenizer", "# My tokenizer"), as_written + "My words.\n", "Mine."):
        (folder / "README.md").write_text(words)
        caplog.clear()
        make_single("newer").save_pretrained(folder)
        assert (folder / "README.md").read_text() == words and load(folder) == "newer"
        assert [f"{folder / 'README.md'}: was changed by hand" in record.message for record in caplog.records] == [True]
    # Written before there was a seal, in the words of versions up to 0.6, empty, or torn: not changed by hand.
    bare = as_written.rpartition("\n<!-- ")[0]
    make_single("new").save_pretrained(folder)
    older = bare.replace(" per second", " a second")
    for words in (bare, older, older[:-100], "", bare[:100], as_written[:-9], as_written + "\0" * 50):
        make_single("new").save_pretrained(folder)
        (folder / "README.md").write_text(words)
        make_single("newer").save_pretrained(folder)
        assert make_single("newer").fingerprint in (folder / "README.md").read_text()


def test_what_a_crash_left_empty_is_written_anew(tmp_path):
    folder = tmp_path / "tokenizer"
    for damaged in (["config.json"], ["model.safetensors"], ["config.json", "model.safetensors"], sorted(OURS)):
        for content in (b"", b"\0" * 4096):
            make_single("old").save_pretrained(folder)
            for name in damaged:
                (folder / name).write_bytes(content)
            make_single("new").save_pretrained(folder)
            assert load(folder) == "new"


def test_a_folder_with_nothing_but_what_killed_processes_left_is_written(tmp_path):
    for kind, make in KINDS.items():
        folder = tmp_path / kind
        (folder / "arm").mkdir(parents=True)
        for name in (".lock", ".unfinished-another-host-7-8-config.json", "arm/.unfinished-another-host-7-8-README.md"):
            (folder / name).write_text("left")
        make("new").save_pretrained(folder)
        assert load(folder) == "new"


def test_what_others_write_now_is_left(tmp_path):
    """Unfinished files of a living process are left, and those of another machine for a day."""
    folder = tmp_path / "tokenizer"
    make_single("old").save_pretrained(folder)
    living = Path(f"{unfinished_stem(folder)}-config.json")
    elsewhere, long_ago = (folder / f".unfinished-another-host-7-{age}-config.json" for age in ("new", "old"))
    for file in (living, elsewhere, long_ago):
        file.write_text("{}")
    os.utime(long_ago, (0, 0))
    make_single("new").save_pretrained(folder)
    assert living.exists() and elsewhere.exists() and not long_ago.exists() and load(folder) == "new"
