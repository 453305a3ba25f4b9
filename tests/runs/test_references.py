"""The meaning of tokenizers' names, and which weights of a run are used; `tests/cli/test_references.py` uses them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ds_rvqvae import RVQVAE, BodyTokenizer, MotionTokenizer
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.layout import feature_layout
from ds_rvqvae.runs.checkpoints import MANIFEST, digest_of, mark_in, seal
from ds_rvqvae.runs.references import Kind, Reference, find_reference


@pytest.fixture
def run(tmp_path):
    """A run whose tokenizer was exported after step 5, with the checkpoints of steps 4 and 5."""
    torch.manual_seed(0)
    model = RVQVAE(5, ModelConfig(width=8, depth=1, code_dim=4, nb_code=8, num_quantizers=2))
    tokenizer = MotionTokenizer(model, torch.zeros(5), torch.ones(5), feature_layout(5), 30.0, {"training_step": 5})
    folder = tmp_path / "runs" / "run"
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "profile.json").write_text("{}")
    for step in (4, 5):
        _save(folder, step)
    return folder


def _save(run, step):
    checkpoint = run / "checkpoints" / f"global_step{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.pt").write_bytes(b"weights")
    manifest = {"step": step, "files": {"model.pt": digest_of(checkpoint / "model.pt")}}
    (checkpoint / MANIFEST).write_text(json.dumps(seal(manifest)))
    (run / "checkpoints" / "latest").write_text(checkpoint.name)
    return checkpoint


def test_of_a_run_the_tokenizer_is_taken_until_training_goes_on(run):
    assert find_reference(run) == Reference(str(run), Kind.RUN, run / "tokenizer", run)
    sixth = _save(run, 6)
    assert find_reference(run) == Reference(str(run), Kind.RUN, sixth, run)
    assert find_reference(run).is_checkpoint
    shutil.rmtree(run / "tokenizer")
    assert find_reference(run).folder == sixth
    assert find_reference(run, "global_step4").folder == run / "checkpoints" / "global_step4"
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match=r"run: has no checkpoint yet$"):
        find_reference(run)


def test_a_checkpoint_may_lie_elsewhere(run, tmp_path):
    shutil.copytree(run / "checkpoints" / "global_step5", tmp_path / "global_step5")
    found = find_reference(str(tmp_path / "global_step5"))
    assert (found.kind, found.folder, found.run) == (Kind.CHECKPOINT, tmp_path / "global_step5", None)
    beside = find_reference(run / "checkpoints" / "latest")
    assert (beside.folder.name, beside.run) == ("global_step5", run)


def test_a_damaged_checkpoint_is_refused(run):
    file = run / "checkpoints" / "global_step5" / "model.pt"
    file.write_bytes(b"Weights")
    assert find_reference(file.parent, thorough=False).folder == file.parent
    with pytest.raises(UserError, match=r"checkpoints: global_step5: model\.pt does not have its sha256$"):
        find_reference(file.parent)
    file.write_bytes(b"")
    with pytest.raises(UserError, match=r"0 bytes of 7$"):
        find_reference(file.parent, thorough=False)


def test_a_body_gives_its_parts_and_their_runs(run):
    tokenizer = MotionTokenizer.from_pretrained(run / "tokenizer")
    body = run.parent / "tokenizer"
    BodyTokenizer({"run": tokenizer}).save_pretrained(body)
    expected = Reference(str(body / "run"), Kind.TOKENIZER, body / "run", run.resolve())
    for name in (body, body.parent):
        found = find_reference(name)
        assert (found.name, found.kind, found.folder, found.run) == (str(name), Kind.BODY, body, None)
        assert found.parts() == [expected]
    assert find_reference(body / "run").parts() == [expected]
    assert find_reference(run).parts() == [find_reference(run)]


def test_a_misspelt_folder_is_no_repository(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    for name in (Path("run/tokeniser"), "run/tokenizer/x", "./run/x"):
        with pytest.raises(UserError, match=r"config\.json is missing"):
            find_reference(name)


def test_nothing_loads_torch(run):
    code = (
        "import sys\n"
        "from ds_rvqvae.runs.references import find_reference\n"
        "print(*(find_reference(name).kind.name for name in sys.argv[1:]), 'torch' in sys.modules)"
    )
    names = [str(run), str(run / "checkpoints" / "latest"), str(run / "tokenizer")]
    printed = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["RUN", "CHECKPOINT", "TOKENIZER", "False"]


def _export_of(run, checkpoint, step=5):
    """The run's tokenizer, made from a checkpoint with this fingerprint."""
    tokenizer = MotionTokenizer.from_pretrained(run / "tokenizer")
    tokenizer.details |= {"training_step": step, "checkpoint": checkpoint}
    tokenizer.save_pretrained(run / "tokenizer")


def test_a_tokenizer_of_another_checkpoint_of_the_same_step_is_not_taken(run):
    fifth = run / "checkpoints" / "global_step5"
    _export_of(run, mark_in(fifth).fingerprint)
    assert find_reference(run).folder == run / "tokenizer"
    _export_of(run, "f" * 64)
    assert find_reference(run).folder == fifth
    # A tokenizer whose own checkpoint was removed is still what `latest` names.
    shutil.rmtree(fifth)
    assert find_reference(run).folder == run / "tokenizer"
    (run / "checkpoints" / "latest").write_text("global_step4")
    assert find_reference(run).folder == run / "checkpoints" / "global_step4"


def test_a_tokenizer_that_cannot_be_read_gives_way_to_the_checkpoint_with_a_note(run):
    (run / "tokenizer" / "config.json").write_bytes(b"")
    assert find_reference(run).folder == run / "tokenizer"  # the weights carry it
    (run / "tokenizer" / "model.safetensors").write_bytes(b"")
    found = find_reference(run)
    assert found.folder.name == "global_step5"
    assert found.notes[0].startswith(f"{run / 'tokenizer' / 'model.safetensors'}: ")
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        find_reference(run)


def test_a_body_whose_part_has_gone_on_is_taken_with_a_note(run):
    tokenizer = MotionTokenizer.from_pretrained(run / "tokenizer")
    BodyTokenizer({"run": tokenizer}).save_pretrained(run.parent / "tokenizer")
    assert find_reference(run.parent).notes == ()
    _save(run, 6)
    (note,) = find_reference(run.parent).notes
    assert "of step 5" in note and "is now at global_step6 of its history" in note
