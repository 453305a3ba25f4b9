"""The names of a tokenizer that each command accepts: a table of results, and one of errors."""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ds_rvqvae import BodyTokenizer, MotionTokenizer, cli
from ds_rvqvae.motion.layout import select_columns, smplx_layout
from tests.cli.commands import make_tokenizer
from tests.ranks import ROOT, finish, run_ranks, start_ranks, train_ranks
from tests.tokenizer.local_hub import REPOSITORY, local_hub
from tests.train.small import SMALL

pytestmark = pytest.mark.processes
pytest.importorskip("huggingface_hub")

SAME_AS = {
    "run": "run/tokenizer",
    "run/checkpoints/global_step1": "first",
    "run/checkpoints/latest": "run/tokenizer",
    "run/checkpoints/best": "best",
    "alone": "run/tokenizer",
    "body": "whole",
    "body/tokenizer": "whole",
    REPOSITORY: "run/tokenizer",
}
"""Names of a tokenizer, and the folder of a tokenizer, or of a body's, that must give the same.

Names are those of a run, three checkpoints of it, a tokenizer, a folder of a body's runs, a body, and a repository.
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory, demo_folder):
    """A folder with everything that the tables name, from one training of two steps."""
    folder = tmp_path_factory.mktemp("references")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DS_RVQVAE_CACHE", str(folder / "cache"))
        flags = [*SMALL, f"--data_path={demo_folder}", f"--out={folder}", "--name=run", "--batch_size=4"]
        train_ranks(1, *flags, "--total_iter=2", "--save_every=1", "--eval_every=1", "--keep_checkpoints=3")
    for name, which in (("first", "global_step1"), ("best", "best")):
        assert _run("export", folder / "run", "--checkpoint", which, "--out", folder / name)[0] == 0
    shutil.copytree(folder / "run" / "tokenizer", folder / "alone")
    hands = make_tokenizer(select_columns(smplx_layout(), "hands")[1], "hands")
    parts = {"upper": MotionTokenizer.from_pretrained(folder / "alone"), "hands": hands}
    for body in ("body/tokenizer", "whole"):
        BodyTokenizer(parts).save_pretrained(folder / body)
    # The runs of its parts, as far as their profiles.
    for part in parts:
        (folder / "body" / part).mkdir()
        shutil.copy(folder / "run" / "profile.json", folder / "body" / part)
    (folder / "empty").mkdir()
    return folder


@pytest.fixture(scope="module")
def hub(place):
    """Environment of a process whose hub has the run's tokenizer."""
    files = {file.name: file.read_bytes() for file in (place / "run" / "tokenizer").iterdir()}
    with local_hub(files, place / "hub") as environment:
        yield environment


@pytest.fixture(scope="module")
def clip(demo_folder):
    return sorted(demo_folder.rglob("*.npz"))[0]


@pytest.fixture
def call(place, hub, monkeypatch):
    """Runs `ds-rvqvae VERB NAME ...`, which must succeed; its JSON is in the file `result.json` of `--out`."""

    # Motion is prepared once for all tests.
    monkeypatch.setenv("DS_RVQVAE_CACHE", str(place / "cache"))

    def call(verb, name, *arguments):
        if name != REPOSITORY:
            status, _, errors = _run(verb, place / name, *arguments)
            assert status == 0, errors
            return
        # The client reads its environment once per process.
        for variable, value in hub.items():
            monkeypatch.setenv(variable, value)
        finish(start_ranks(1, ["-m", "ds_rvqvae.cli", verb, name, *map(str, arguments)]))

    return call


def _run(*arguments):
    """Exit status, and what went to standard output and to stderr."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        status = cli.main([*map(str, arguments)])
    return status, out.getvalue(), errors.getvalue()


def _encode(call, name, plain, clip, folder):
    call("encode", name, clip, "--out", folder)
    (file,) = folder.iterdir()
    with np.load(file) as codes:
        return {key: codes[key].tolist() for key in codes.files}


def _decode(call, name, plain, clip, folder):
    call("encode", plain, clip, "--out", folder / "codes")
    call("decode", name, folder / "codes", "--out", folder / "motion", "--matrices")
    return (folder / "motion" / f"{clip.stem}.npy").read_bytes()


def _evaluate(call, name, plain, clip, folder):
    folder.mkdir()
    call("evaluate", name, "--data_path", clip.parents[1], "--json", folder / "scores.json")
    return _scores(folder / "scores.json")


def _scores(file: Path) -> list[dict]:
    """By tokenizer, without its name."""
    scores = json.loads(file.read_text())
    names = ("name", "normalised_by")
    tokenizers = scores.get("tokenizers", [scores])
    return [{key: value for key, value in one.items() if key not in names} for one in tokenizers]


def _export(call, name, plain, clip, folder):
    call("export", name, "--out", folder)
    return _contents(folder)


def _render(call, name, plain, clip, folder):
    call("render", name, clip, "--out", folder / "clip.gif", "--seconds=0.2", "--size=320x160")
    return _contents(folder)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


COMMANDS = {"encode": _encode, "decode": _decode, "evaluate": _evaluate, "export": _export, "render": _render}


@pytest.fixture(scope="module")
def results_of_folders():
    """Results by command and folder of a tokenizer, after the command ran."""
    return {}


@pytest.fixture
def expected(call, clip, tmp_path, results_of_folders):
    """Returns the expected result of a command for a name."""

    def expected(command, plain):
        if (command, plain) not in results_of_folders:
            result = COMMANDS[command](call, plain, plain, clip, tmp_path / "plain")
            results_of_folders[command, plain] = result
        return results_of_folders[command, plain]

    return expected


@pytest.mark.parametrize("name", SAME_AS)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_name_gives_what_its_tokenizer_gives(call, clip, tmp_path, expected, command, name):
    plain = SAME_AS[name]
    assert COMMANDS[command](call, name, plain, clip, tmp_path / "named") == expected(command, plain)


BESIDE_A_RUN = {"run/checkpoints/global_step1": "first", "run/tokenizer": "run/tokenizer", "body": "whole"}


@pytest.mark.parametrize(("name", "plain"), BESIDE_A_RUN.items())
def test_evaluate_finds_the_motion_of_the_run(call, tmp_path, expected, name, plain):
    call("evaluate", name, "--json", tmp_path / "scores.json")
    assert _scores(tmp_path / "scores.json") == expected("evaluate", plain)


REFUSALS = {
    "no tokenizer": (["encode", "empty"], "empty: not a run's folder .* config.json is missing$"),
    "runs": (["encode", "."], "it holds runs, name one of them: .*/run$"),
    "checkpoints": (["render", "run/checkpoints"], "name one of them: .*/global_step2, .*/global_step1$"),
    "no such checkpoint": (["decode", "run/checkpoints/global_step7"], "no checkpoint global_step7; there is glo"),
    "no checkpoint": (["evaluate", "empty/checkpoints/best"], "no checkpoint best; there is none$"),
    "no such part": (["encode", "body/tokenizer/face"], "the body's tokenizer in .*/body/tokenizer has no such part$"),
    "no motion": (["evaluate", "alone"], "alone: no motion to score.*give --data_path$"),
    "no motion of a part": (["evaluate", "whole"], "whole/upper: no motion to score"),
    "format of a part": (
        ["export", "body", "--format=momask"],
        "those of a body; name one of its parts: .*/upper .*/hands$",
    ),
    "checkpoint of a body": (["export", "body", "--checkpoint=best"], "a body's tokenizer, which has no checkpoints"),
    "checkpoint of a tokenizer": (["export", "alone", "--checkpoint=best"], "a tokenizer, which has no checkpoints"),
    "checkpoint of one": (["export", "run/checkpoints/best", "--checkpoint=best"], "is a checkpoint itself.*/run$"),
}


@pytest.mark.parametrize(("arguments", "complaint"), REFUSALS.values(), ids=REFUSALS)
def test_refusals_are_one_line_that_says_what_to_give(place, clip, tmp_path, arguments, complaint):
    verb, name, *flags = arguments
    out, files = ["--out", tmp_path / "out.gif"], [clip] if verb in ("encode", "decode", "render") else []
    status, printed, errors = _run(verb, place / name, *files, *([] if verb == "evaluate" else out), *flags)
    assert (status, printed, errors.count("\n")) == (2, "", 1)
    assert re.search(complaint, errors.strip()), errors
    assert not (tmp_path / "out.gif").exists()


def initial_digests(names: list[str], flags: list[str], run: str) -> dict[str, str]:
    """In a rank: by name, a sha256 of what a run starts from: fp32 weights, buffers and normalisation."""
    from ds_rvqvae.config.request import Start, read_training_flags
    from ds_rvqvae.data.dataset import MotionData
    from ds_rvqvae.runs.init_from import take_start
    from ds_rvqvae.train.engine import build_engine, fp32_model, start_distributed

    start_distributed()
    digests = {}
    for name in names:
        profile = read_training_flags([*flags, f"--init_from={name}"]).request().profile
        data = MotionData.open(profile.rvqvae.data)
        initial = take_start(Path(run), profile, data, Start.of(False))
        engine = build_engine(profile, data.in_features, Path(run), init_from=initial.folder)
        digests[name] = digest_of(fp32_model(engine), torch.from_numpy(data.mean), torch.from_numpy(data.std))
    return digests


def digest_of(model, mean, std) -> str:
    digest = hashlib.sha256()
    for name, value in [*sorted(model.state_dict().items()), ("mean", mean), ("std", std)]:
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()


def test_init_from_starts_from_the_weights_of_every_name(place, hub, demo_folder, tmp_path, monkeypatch):
    for variable, value in hub.items():
        monkeypatch.setenv(variable, value)
    names = {name if name == REPOSITORY else str(place / name): plain for name, plain in SAME_AS.items()}
    flags = [*SMALL, f"--data_path={demo_folder}", "--batch_size=4"]
    arguments = {"names": list(names), "flags": flags, "run": str(tmp_path / "new")}
    (found,) = run_ranks(1, initial_digests, tmp_path / "results", **arguments)
    parts = {plain: place / plain / "upper" if plain == "whole" else place / plain for plain in SAME_AS.values()}
    loaded = {plain: MotionTokenizer.from_pretrained(folder) for plain, folder in parts.items()}
    wanted = {plain: digest_of(own.model, own.mean, own.std) for plain, own in loaded.items()}
    assert found == {name: wanted[plain] for name, plain in names.items()}
    assert len(set(wanted.values())) > 1


LAUNCH = """
import contextlib, io, json, sys
from ds_rvqvae.launch.main import main
for line in json.loads(sys.argv[1]):
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        status = main(line)
    print(json.dumps([status, "torch" in sys.modules, errors.getvalue()]))
"""
STARTS = [
    ("run", [], False, None),
    ("body", [], False, None),
    ("empty", [], False, "empty: not a run's folder .* config.json is missing"),
    ("body", ["--body_part=lower"], False, "this body has no part lower"),
    ("run/checkpoints/global_step7", [], False, "no checkpoint global_step7; there is global_step1"),
    ("run/checkpoints/global_step1", [], True, None),
    ("run/checkpoints/best", ["--width=64"], True, "width is 32 there and 64 in the profile"),
    ("run/checkpoints/best", ["--body_part=hands"], True, "takes 78 columns, but .* has 180 for body part hands"),
]
"""The value of `--init_from`, more flags, whether the launcher has imported torch by then, and its message if it
refuses."""


def test_the_launcher_checks_what_a_run_starts_from(place, demo_folder, tmp_path):
    flags = [*SMALL, "--dry_run", "--include=localhost:0", f"--data_path={demo_folder}", f"--out={tmp_path / 'runs'}"]
    lines = [[*flags, f"--init_from={place / name}", *more] for name, more, *_ in STARTS]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "LOCAL_SIZE": "1"}
    command = [sys.executable, "-c", LAUNCH, json.dumps(lines)]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=True)
    for (name, _, has_torch, complaint), answer in zip(STARTS, ran.stdout.splitlines(), strict=True):
        status, imported, said = json.loads(answer)
        errors = [text for text in said.splitlines() if text.startswith("error: ")]
        assert (status, imported, len(errors)) == ((2, has_torch, 1) if complaint else (0, has_torch, 0)), (name, said)
        assert complaint is None or re.search(f"^error: --init_from .*{complaint}", errors[0]), said
    assert not (tmp_path / "runs").exists()
