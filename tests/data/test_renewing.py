"""Stores and caches are replaced, extended and removed during use: a reading process keeps what it opened."""

import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ds_rvqvae import RVQVAE
from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.data import open_store
from ds_rvqvae.data.dataset import MotionData
from ds_rvqvae.data.loader import BatchLoader
from ds_rvqvae.data.order import BatchOrder
from ds_rvqvae.data.store.prepare import prepare, prepare_store
from ds_rvqvae.data.store.store import Store
from ds_rvqvae.data.store.verify import verify_store
from ds_rvqvae.tokenizer.scores.evaluation import evaluate_split
from tests.data.motion import write_packed
from tests.data.renewed import COLUMNS, is_whole, write_version

CHANGES = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir"}
STEPS = 17
"""One in so many of these moments is tried: 1 tries each of about 360 and 70, in six minutes."""
READER = """
import sys
from pathlib import Path
import numpy as np
from ds_rvqvae.data import open_store
from ds_rvqvae.errors import UserError
from tests.data.renewed import is_whole

rng, seen, opened = np.random.default_rng(int(sys.argv[2])), [], 0
while True:
    try:
        store = open_store(sys.argv[1])
    except UserError as error:
        assert Path(sys.argv[3]).exists(), error
        break
    seen += [is_whole(store, rng) for _ in range(40)]
    opened += 1
    print("open", flush=True) if opened == 1 else None
seen += [is_whole(store, rng) for _ in range(100)]
assert seen == sorted(seen), "an older store was opened after a newer one"
print(opened, len(set(seen)))
"""


@pytest.fixture(autouse=True)
def many_shards(monkeypatch):
    """Makes small data fill several shards."""
    monkeypatch.setattr("ds_rvqvae.data.store.shards.SMALLEST_SHARD", 1000)


@pytest.mark.processes
def test_other_processes_see_one_store_whole_while_it_is_renewed_added_to_and_removed(tmp_path):
    out, removed = tmp_path / "store", tmp_path / "removed"
    config = DataConfig(path=str(write_version(tmp_path / "data.npz", 0)))
    prepare(config, out, workers=1)
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READER, str(out), str(seed), str(removed)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(2)
    ]
    try:
        assert [reader.stdout.readline() for reader in readers] == ["open\n"] * 2
        rng = np.random.default_rng(0)
        for version in range(1, 16):
            before = open_store(out)
            write_version(tmp_path / "data.npz", version)
            prepare(config, out, workers=1)
            assert (is_whole(before, rng), is_whole(open_store(out), rng)) == (version - 1, version)
        for added in range(8):
            before = open_store(out)
            more = write_packed(tmp_path / "more.npz", (20,), COLUMNS, clip_name=np.array([f"added{added}"]))
            prepare(DataConfig(path=str(more)), out, append=True, workers=1)
            assert len(open_store(out).clip_names) == len(before.clip_names) + 1
            assert is_whole(before, rng) == is_whole(open_store(out), rng) == version
        assert verify_store(open_store(out)) == []
    finally:
        removed.touch()
        shutil.rmtree(out)
        said = [reader.communicate(timeout=60) for reader in readers]
    for numbers, error in said:
        assert not error
        opened, versions = map(int, numbers.split())
        assert opened > 5 and versions > 3


@pytest.mark.parametrize("selected", [True, False])
@pytest.mark.parametrize("named", [True, False])
def test_scores_and_batches_are_those_of_what_was_opened(tmp_path, monkeypatch, named, selected):
    """Also with loading threads; from the selected columns in the cache, and from the store if they do not fit."""
    if not selected:
        monkeypatch.setattr("ds_rvqvae.data.cache._fits", lambda nbytes: False)
    out = tmp_path / "store" if named else None
    config = DataConfig(path=str(tmp_path / "data.npz"), window_size=16, window_stride=8)
    torch.manual_seed(0)
    model = RVQVAE(COLUMNS, ModelConfig(width=16, depth=1, code_dim=4, nb_code=8, num_quantizers=2))
    model.eval().requires_grad_(False)

    def opened(version: int) -> MotionData:
        write_version(tmp_path / "data.npz", version)
        return MotionData(prepare_store(config, out), config)

    def batches(data: MotionData, change: Callable[[], object] = lambda: None) -> list[torch.Tensor]:
        with BatchLoader(data, BatchOrder.of(data, 8, seed=0), rank=0, world_size=1, num_workers=2) as loader:
            return [*loader.next(), *loader.next(), *(change(), loader.next())[1], *loader.next()]

    data = opened(1)
    scores, loaded = evaluate_split(model, data, "all", "cpu"), batches(data)
    renewed: list[MotionData] = []
    again = batches(data, lambda: renewed.append(opened(2)))
    assert all(torch.equal(one, other) for one, other in zip(loaded, again, strict=True))
    assert evaluate_split(model, data, "all", "cpu") == scores
    assert evaluate_split(model, renewed[0], "all", "cpu") != scores and renewed[0].store.content != data.store.content


@pytest.mark.processes
def test_a_cached_store_stays_while_another_process_has_it_open_and_goes_after_it(tmp_path):
    config = DataConfig(path=str(write_version(tmp_path / "data.npz", 0)))
    place = prepare_store(config).folder
    code = "from pathlib import Path; from ds_rvqvae.data.store.places import open_in_use; import sys\n"
    code += "store = open_in_use(Path(sys.argv[1])); print('open', flush=True); sys.stdin.readline()\n"
    code += "store = open_in_use(Path(sys.argv[1])); print(store.content)"  # as a restart does
    reader = subprocess.Popen(
        [sys.executable, "-c", code, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    content = open_store(place).content
    assert reader.stdout.readline() == "open\n"
    write_version(tmp_path / "data.npz", 1)
    second = prepare_store(config)
    assert second.folder != place and place.is_dir()
    assert reader.communicate("\n", timeout=60)[0] == f"{content}\n"
    write_version(tmp_path / "data.npz", 2)
    assert prepare_store(config).folder.is_dir() and not place.exists() and second.folder.is_dir()


def killed_at(step: int, folder: Path, work: Callable[[], object]) -> bool:
    """Does work in a fork that is killed when it opens, renames or removes something in a folder the `step`-th time.

    Returns False if the work was finished before.
    """
    child = os.fork()
    if child == 0:
        left = step

        def kill(event: str, arguments: tuple) -> None:
            nonlocal left
            if event in CHANGES and str(folder) in str(arguments):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill)
        try:
            work()
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.processes
@pytest.mark.parametrize("append", [False, True])
def test_a_kill_at_any_moment_leaves_the_store_before_or_the_new_one_and_the_next_command_goes_on(tmp_path, append):
    data, out, more = tmp_path / "data.npz", tmp_path / "stores" / "store", tmp_path / "more.npz"
    config = DataConfig(path=str(write_version(data, 0)))
    write_packed(more, (20,), COLUMNS, clip_name=np.array(["added"]))
    old = prepare(config, out, workers=1).store
    shutil.copytree(out, tmp_path / "old")

    def renew() -> Store:
        if append:
            return prepare(DataConfig(path=str(more)), out, append=True, workers=1).store
        return prepare(DataConfig(path=str(tmp_path / "new.npz")), out, workers=1).store

    write_version(tmp_path / "new.npz", 1)
    new = renew()
    assert new.content != old.content
    step, found = 0, []
    while True:
        shutil.rmtree(out.parent)
        shutil.copytree(tmp_path / "old", out)
        before = open_store(out)
        if not killed_at(step, out.parent, renew):
            break
        there = open_store(out)
        found.append([old.content, new.content].index(there.content))
        rng = np.random.default_rng(step)
        assert is_whole(before, rng) == 0 and is_whole(there, rng) == (0 if append else found[-1])
        assert renew().content == new.content and verify_store(open_store(out)) == []
        files = {file.relative_to(out).as_posix() for file in out.rglob("*")}
        assert files == {"store.json", "report.json", "shards", *_shard_files(new)}, "as without a kill"
        assert [*out.parent.iterdir()] == [out], "nothing is left beside it"
        step += STEPS
    print(found)
    assert found == sorted(found)


def _shard_files(store: Store) -> list[str]:
    return [f"shards/{part:05d}.{kind}" for part in store.parts for kind in ("npy", "json")]
