"""A complete body trained by one command, stopped in its second part and resumed."""

import signal

import numpy as np
import pytest

from ds_rvqvae import BodyTokenizer
from ds_rvqvae.data.formats.smpl.beat2 import CLIP_FOLDER
from tests.e2e.running import Launched
from tests.train.small import read_metrics

pytestmark = pytest.mark.processes
STEPS = 50


def arguments_of(rank):
    """Returns a rank's arguments, without deepspeed's own."""
    words = rank.cmdline()
    return [word for word in words[words.index("ds_rvqvae.train") + 1 :] if not word.startswith("--local_rank")]


def test_a_body_stopped_in_its_second_part_goes_on_there(tmp_path, demo_folder):
    flags = ["--include=localhost:0,1", "--body_part=upper,hands,lower_trans", f"--total_iter={STEPS}", "--name=body"]
    body = tmp_path / "runs" / "body"
    metrics = body / "hands" / "metrics.jsonl"
    first = Launched(tmp_path, demo_folder, *flags)
    try:
        first.wait_for(lambda: metrics.is_file() and metrics.read_text())
        # Ranks read the part's own profile, which has all that was asked for.
        own = ["--profile", str(body / "hands" / "profile.json"), "--out", str(body), "--name", "hands"]
        assert arguments_of(first.ranks()[0]) == own
        first.process.send_signal(signal.SIGTERM)
        assert first.process.wait(timeout=60) == 75, first.said()
    finally:
        assert first.end() == []
    assert "upper, part 1 of 3" in first.said() and "not started: lower_trans" in first.said()
    assert first.said().splitlines()[-1].endswith(" --name=body --resume runs/body")
    assert len(read_metrics(body / "upper")) == STEPS and 0 < len(read_metrics(body / "hands")) < STEPS
    assert sorted(path.name for path in body.iterdir()) == ["hands", "upper"]
    scores = (body / "upper" / "eval" / "scores.json").stat().st_mtime_ns

    second = Launched(tmp_path, demo_folder, *flags, "--resume", "--keep_checkpoints=2", "--lr=1e-3")
    try:
        second.wait_for(lambda: "hands, part 2 of 3" in second.said() and second.ranks())
        changed = ["--set", "optimizer.params.lr=0.001", "--set", "rvqvae.training.keep_checkpoints=2"]
        assert arguments_of(second.ranks()[0]) == [*own, "--resume", *changed]
        assert second.process.wait(timeout=180) == 0, second.said()
    finally:
        assert second.end() == []
    assert "upper, part 1 of 3: already trained" in second.said() and "going on from" in second.said()
    assert second.said().count("\nnext:\n") == 1 and "\nlower_trans: val, angle " in second.said()
    for part in ("upper", "hands", "lower_trans"):
        assert [line["step"] for line in read_metrics(body / part)] == [*range(1, STEPS + 1)]
    assert (body / "upper" / "eval" / "scores.json").stat().st_mtime_ns == scores

    tokenizer = BodyTokenizer.from_pretrained(body / "tokenizer")
    clip = sorted((demo_folder / CLIP_FOLDER).iterdir())[0]
    codes = tokenizer.encode_file(clip)
    assert {part: found.shape for part, found in codes.items()} == dict.fromkeys(tokenizer.parts, (40, 3))
    tokenizer.decode_to_file(codes, tmp_path / "decoded.npz", source=clip)
    truth, found = (np.load(file, allow_pickle=False)["poses"] for file in (clip, tmp_path / "decoded.npz"))
    assert np.abs(found - truth).mean() < np.abs(truth).mean()
