"""`ds-rvqvae store show|verify`: the content of a store, and every kind of damage with the damaged clips."""

import json
import subprocess
import sys

import numpy as np
import pytest

from ds_rvqvae import cli
from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data import open_store
from ds_rvqvae.data.store.prepare import prepare_store
from ds_rvqvae.data.store.verify import verify_store
from tests.data.motion import write_packed
from tests.ranks import ROOT


@pytest.fixture(params=["float32", "float16", "bfloat16"])
def store(request, tmp_path):
    """Three clips of five columns."""
    data = write_packed(tmp_path / "data.npz", split=np.array(["train", "train", "val"]))
    return prepare_store(DataConfig(path=str(data), store_dtype=request.param), tmp_path / "store")


def _json(capsys):
    return json.loads(capsys.readouterr().out)


def _overwrite(file, place, content):
    with file.open("r+b") as stream:
        stream.seek(place)
        stream.write(content)


def test_show_says_what_a_store_holds(tmp_path, demo_folder, capsys):
    folder = tmp_path / "store"
    assert cli.main(["prepare", str(demo_folder), "--out", str(folder), "--dtype", "bfloat16"]) == 0
    capsys.readouterr()
    assert cli.main(["store", "show", str(folder), "--json"]) == 0
    facts = _json(capsys)
    assert (facts["clips"], facts["frames"], facts["columns"], facts["fps"]) == (6, 960, 433, 30.0)
    assert facts["hours"] == pytest.approx(960 / 30 / 3600)
    assert facts["splits"]["train"] == {"clips": 4, "frames": 640, "hours": pytest.approx(640 / 30 / 3600)}
    assert set(facts["splits"]) == {"train", "val", "test"} and facts["dtype"] == "bfloat16"
    assert facts["bytes"] == 960 * 433 * 2 and facts["checksums"] == facts["shards"] == 1
    assert facts["settings"] == {"store_dtype": "bfloat16"} and facts["body_parts"]["upper"] == 78
    assert facts["layout"] == "55 rotations, translation, 100 expressions"
    assert facts["channel_groups"][1] == {"kind": "translation", "channels": 1, "columns": [330, 333]}
    assert cli.main(["store", "show", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "433: 55 rotations, translation, 100 expressions" in printed and "store_dtype bfloat16" in printed
    assert "BEAT2 npz" in printed and "upper 78" in printed


def test_show_lists_the_clips(store, capsys):
    assert cli.main(["store", "show", str(store.folder), "--clips"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["clip2", "50", "clip2", "val"]
    assert cli.main(["store", "show", str(store.folder), "--clips", "--json"]) == 0
    clips = _json(capsys)["clip_list"]
    assert clips[1] == {"name": "clip1", "frames": 30, "splits": ["train"], "group": "clip1"}


def test_show_counts_what_was_left_out(tmp_path, capsys):
    motion = np.random.default_rng(0).normal(size=(120, 5)).astype(np.float32)
    motion[50] = np.nan
    data = write_packed(tmp_path / "data.npz", motion=motion)
    prepare_store(DataConfig(path=str(data)), tmp_path / "store")
    assert cli.main(["store", "show", str(tmp_path / "store"), "--json"]) == 0
    assert _json(capsys)["quarantine"]["not_finite"] == {"files": 1, "spans": 1, "frames": 1}
    assert cli.main(["store", "show", str(tmp_path / "store")]) == 0
    assert "not_finite: 1 file, 1 frames" in capsys.readouterr().out


def test_a_whole_store_is_whole(store, capsys):
    assert verify_store(store) == []
    assert cli.main(["store", "verify", str(store.folder)]) == 0
    assert "intact: 1 shard, 3 clips, 120 frames" in capsys.readouterr().out
    assert cli.main(["store", "verify", str(store.folder), "--json"]) == 0
    result = _json(capsys)
    assert result["whole"] and result["damaged"] == [] and (result["clips"], result["columns"]) == (3, 5)


def test_one_turned_bit_is_found(store, capsys):
    shard = store.folder / store.shards[0].file
    byte = shard.read_bytes()[-3]
    _overwrite(shard, shard.stat().st_size - 3, bytes([byte ^ 1]))
    assert cli.main(["store", "verify", str(store.folder), "--json"]) == 2
    printed = capsys.readouterr()
    (damage,) = json.loads(printed.out)["damaged"]
    assert damage["file"] == "shards/00000.npy" and damage["problems"] == [
        "its checksum differs from the one in the table"
    ]
    assert damage["clips"] == ["clip0", "clip1", "clip2"]
    assert len(printed.err.splitlines()) <= 6 and "shards/00000.npy" in printed.err and "clip1" in printed.err


def test_values_that_are_no_numbers_are_placed(store, capsys):
    shard, width = store.folder / store.shards[0].file, 4 if store.dtype == "float32" else 2
    infinite = {"float32": b"\0\0\x80\x7f", "float16": b"\0\x7c", "bfloat16": b"\x80\x7f"}[store.dtype]
    _overwrite(shard, 128 + 45 * 5 * width, infinite)
    assert cli.main(["store", "verify", str(store.folder)]) == 2
    assert "NaN or infinite values in frames 5 of clip1" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["cut", "long", "missing", "header", "facts", "files", "no facts", "report"])
def test_every_kind_of_damage(tmp_path, capsys, damage):
    data = write_packed(tmp_path / "data.npz")
    folder = prepare_store(DataConfig(path=str(data)), tmp_path / "store").folder
    shard, facts = folder / "shards" / "00000.npy", folder / "shards" / "00000.json"
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif damage == "long":
        shard.write_bytes(shard.read_bytes() + bytes(20))
    elif damage == "missing":
        shard.unlink()
    elif damage == "header":
        shard.write_bytes(shard.read_bytes().replace(b"<f4", b"<i4", 1))
    elif damage == "facts":
        values = json.loads(facts.read_text())
        values["clips"][1][1] += 1
        facts.write_text(json.dumps(values))
    elif damage == "files":
        facts.write_text(facts.read_text().replace("clip1", "clip9", 1))
    elif damage == "no facts":
        facts.unlink()
    else:
        (folder / "report.json").write_text("{")
    assert cli.main(["store", "verify", str(folder)]) == 2
    said = {
        "cut": "100 too few",
        "long": "20 too many",
        "missing": "No such file",
        "header": "does not begin as an array of 120 x 5 float32",
        "facts": "00000.json: does not agree with the store's table",
        "files": "00000.json: damaged: ValueError: clip9 has other clips than its own",
        "no facts": "00000.json: cannot be read",
        "report": "report.json: damaged",
    }[damage]
    printed = capsys.readouterr()
    assert said in printed.err and printed.out == "" and len(printed.err.splitlines()) <= 6


def test_many_damaged_shards_take_six_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ds_rvqvae.data.store.shards.SMALLEST_SHARD", 1)
    data = write_packed(tmp_path / "data.npz", lengths=(20,) * 12)
    store = prepare_store(DataConfig(path=str(data)), tmp_path / "store")
    assert len(store.shards) == 12
    for shard in store.shards[2:]:
        _overwrite(store.folder / shard.file, 200, b"\1\2\3\4")
    assert cli.main(["store", "verify", str(store.folder), "--json", str(tmp_path / "found.json")]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 6 and "damaged in 10 files" in error[0] and "6 more files" in error[-1]
    found = json.loads((tmp_path / "found.json").read_text())["damaged"]
    assert [damage["clips"] for damage in found] == [[f"clip{index}"] for index in range(2, 12)]


def test_a_table_of_nonsense_is_refused(tmp_path, capsys):
    assert cli.main(["store", "verify", str(tmp_path)]) == 2
    (tmp_path / "store.json").write_text('{"format": "ds_rvqvae store", "version": 2}')
    assert cli.main(["store", "verify", str(tmp_path)]) == 2
    assert "damaged store" in capsys.readouterr().err


def test_nothing_loads_torch(tmp_path):
    data = write_packed(tmp_path / "data.npz", lengths=(40,) * 3)
    folder = prepare_store(DataConfig(path=str(data)), tmp_path / "store").folder
    check = (
        "import sys; from ds_rvqvae import cli\n"
        "for verb in (['store', 'show'], ['store', 'verify'], ['data', 'plot']):\n"
        "    assert cli.main([*verb, sys.argv[1]]) == 0\n"
        "    print(verb[1], sorted({'torch', 'deepspeed', 'matplotlib'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", check, str(folder)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    loaded = [line for line in result.stdout.splitlines() if line.endswith("]")]
    assert loaded == ["show []", "verify []", "plot ['matplotlib']"], result.stderr
    assert open_store(folder).num_frames == 120
