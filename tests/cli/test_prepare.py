"""`ds-rvqvae prepare`: the store that it packs, and what it says of that."""

import json

import numpy as np

from ds_rvqvae import cli
from ds_rvqvae.data import open_store


def test_prepare_packs_a_store_and_says_what_it_left_out(tmp_path, demo_folder, capsys):
    motion = tmp_path / "motion"
    motion.mkdir()
    for clip in sorted((demo_folder / "smplxflame_30").glob("*.npz"))[:2]:
        (motion / clip.name).write_bytes(clip.read_bytes())
    assert cli.main(["prepare", str(motion), "--out", str(tmp_path / "store")]) == 0
    assert "2 clips of 2 files: 320 frames" in capsys.readouterr().out
    store = open_store(tmp_path / "store")
    assert len(store.clip_names) == 2 and store.clip(store.clip_names[0]).dtype == np.float32
    (motion / "3_broken_0_1_1.npz").write_bytes(b"no zip")
    assert cli.main(["prepare", str(motion), "--out", str(tmp_path / "partly"), "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["clips"] == 2 and result["left_out"][0]["file"].endswith("3_broken_0_1_1.npz")
