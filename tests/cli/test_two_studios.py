"""BVH files of two real studios in one folder: the refusal, and a tokenizer of the joints that both have."""

import json
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from ds_rvqvae import MotionTokenizer
from ds_rvqvae.data import open_store
from ds_rvqvae.data.formats.readers import open_reader
from ds_rvqvae.tokenizer.folder import reading_config, reading_of
from tests.cli.commands import make_tokenizer, run
from tests.data.formats.bvh_files import world_of_file

LIMBS = {"UpperLeg": "UpLeg", "LowerLeg": "Leg", "Foot": "Foot", "Toes": "ToeBase", "Shoulder": "Shoulder"}
LIMBS |= {"UpperArm": "Arm", "LowerArm": "ForeArm", "Hand": "Hand"}
THEIRS = {"Chest": "Spine1"} | {
    f"{theirs}_{side[0]}": f"{side}{ours}" for theirs, ours in LIMBS.items() for side in ("Left", "Right")
}
"""Bandai Namco's names of joints, and CMU's."""


def unpack(archive: Path, folder: Path, most: int) -> None:
    """Unpacks the first BVH files of an archive, which are read without unpacking it all."""
    with tarfile.open(archive) as files:
        folder.mkdir(parents=True)
        for member in islice((member for member in files if member.name.endswith(".bvh")), most):
            content = files.extractfile(member)
            assert content is not None
            (folder / Path(member.name).name).write_bytes(content.read())


@pytest.mark.real_data
def test_two_studios_are_refused_and_their_common_joints_are_decoded_into_files_of_both(
    real_data, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("DS_RVQVAE_CACHE", str(tmp_path / "cache"))
    data, names = tmp_path / "data", tmp_path / "names.json"
    unpack(real_data / "cmu" / "bvh.tar.xz", data / "cmu", 2)
    unpack(real_data / "bandai1" / "bvh.tar.xz", data / "bandai", 3)
    names.write_text(json.dumps(THEIRS))
    status, _, errors = run(capsys, "prepare", data, "--out", tmp_path / "store")
    assert status == 2
    assert "2 skeletons: 3 files with 22 joints (such as bandai), 2 with 31 (such as cmu)" in errors[0]
    flags = ("--joints", "common", "--joint_names", names)
    status, result, _ = run(capsys, "prepare", data, "--out", tmp_path / "store", *flags)
    assert status == 0 and result["clips"] == 5 and "degrees between the bones that lead to" in result["notes"][2]
    store = open_store(tmp_path / "store")
    folder, made = tmp_path / "tokenizer", make_tokenizer(store.layout)
    made.details["reading"] = reading_of(store.settings)
    made.save_pretrained(folder)
    assert run(capsys, "encode", folder, data, "--out", tmp_path / "codes")[0] == 0
    status, result, _ = run(capsys, "decode", folder, tmp_path / "codes", "--out", tmp_path / "motion")
    assert status == 0 and len(result["done"]) == 5
    tokenizer = MotionTokenizer.from_pretrained(folder)
    config = reading_config(tokenizer.details, tokenizer.fps)
    assert len(config.joints) == 21
    for file in (next((data / studio).iterdir()) for studio in ("cmu", "bandai")):
        decoded = tmp_path / "motion" / file.relative_to(data)
        assert decoded.read_bytes().partition(b"MOTION")[0] == file.read_bytes().partition(b"MOTION")[0]
        clip = open_reader(file, config).read(file.stem)
        expected = tokenizer.decode(tokenizer.encode(clip.motion), len(clip.motion)).astype(np.float64)
        places, turns = world_of_file(decoded)
        np.testing.assert_allclose(
            places["Hips"] * (0.01 if "Chest" in turns else 0.0254 / 0.45), expected[:, -3:], atol=1e-4
        )
        # A row of a decoded rotation is a multiple of that in the file.
        head, neck = config.joints.index("Head"), turns["Neck"]
        relative = np.swapaxes(neck, 1, 2) @ turns["Head"]
        first = expected[:, 6 * head : 6 * head + 3]
        np.testing.assert_allclose(relative[:, 0], first / np.linalg.norm(first, axis=1, keepdims=True), atol=1e-5)
