"""Several body parts in turn: the flags of each part's run, the order of the runs, and how they end."""

import json
import signal
from dataclasses import replace

import numpy as np
import pytest

from ds_rvqvae import BodyTokenizer
from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.config.profile import load_profile
from ds_rvqvae.config.request import read_training_flags
from ds_rvqvae.data.dataset import MotionData, open_training_data
from ds_rvqvae.errors import ExitStatus, UserError
from ds_rvqvae.launch.body import Body, CheckedRun, check_no_body
from ds_rvqvae.launch.check import _open_motion
from ds_rvqvae.launch.hosts import Ranks
from ds_rvqvae.launch.supervise import Signals
from ds_rvqvae.motion.layout import BODY_PART_CHANNELS, check_disjoint
from ds_rvqvae.runs.checkpoints import MANIFEST, digest_of, seal
from tests.damage import damage
from tests.data.motion import write_packed
from tests.tokenizer.test_body import make_part

HERE = Ranks("localhost:0", {"localhost": [0]}, [0], 29500, cpu_slots=1, first_here=True)


def flags(*line):
    return read_training_flags(line)


@pytest.fixture
def out(tmp_path, monkeypatch):
    """An empty folder to be in; runs go into `runs`."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def make_run(out, *path):
    folder = out.joinpath(*path)
    folder.mkdir(parents=True)
    profile = load_profile("baseline", [f"rvqvae.data.body_part={path[-1]}"] if len(path) > 1 else [])
    (folder / "profile.json").write_text(json.dumps(profile.to_dict()))


def given(body):
    """Of each part's flags: body part, folder, whether it resumes, profile."""
    return [(*each.parts, str(each.out / each.name), each.start.resumes, each.profile) for each in body.flags_by_part()]


def test_each_part_gets_a_run_in_the_bodys_folder(out):
    body = Body.of(flags("--body_part=upper,hands", "--profile=wide", "--width=64"))
    assert given(body) == [
        ("upper", "runs/wide-body/upper", False, "wide"),
        ("hands", "runs/wide-body/hands", False, "wide"),
    ]
    assert {each.keys["width"] for each in body.flags_by_part()} == {"64"}
    assert not out.exists()


def test_bodies_are_numbered_as_runs_are(out):
    make_run(out, "baseline-body", "upper")
    assert str(Body.of(flags("--body_part=upper,hands")).folder) == "runs/baseline-body-2"
    again = Body.of(flags("--body_part=upper,hands", "--resume"))
    assert again.said == ("--resume: the body runs/baseline-body",)
    assert given(again)[1] == ("hands", "runs/baseline-body/hands", True, None)


def test_a_body_resumed_by_its_folder_brings_its_profiles(out):
    make_run(out, "mine", "upper")
    body = Body.of(flags("--body_part=upper,hands", "--resume=runs/mine"))
    assert given(body) == [
        ("upper", "runs/mine/upper", True, "runs/mine/upper/profile.json"),
        ("hands", "runs/mine/hands", True, "runs/mine/upper/profile.json"),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["--body_part=upper,upper"], "--body_part upper,upper: body part upper is named twice"),
        (["--body_part=upper,whole"], "whole and upper both have spine1"),
        (["--body_part=lower_trans,lower"], "lower and lower_trans both have pelvis"),
        (["--body_part=upper,hands", "--name=taken"], "--name taken: runs/taken exists; continue it with --resume"),
        (["--body_part=upper,hands", "--name=single", "--resume"], "runs/single: this is the run of one body part"),
        (["--body_part=upper,hands", "--resume=global_step5"], "global_step5: this is a checkpoint of one part"),
        (["--body_part=upper,hands", "--resume=runs/single"], "runs/single: it has no run of a part"),
        (["--body_part=upper,hands", "--name=a/b"], "without slashes"),
        (["--body_part=upper,hands", "--out=/proc/self/runs"], "/proc/self"),
    ],
)
def test_what_makes_no_body_is_refused(out, line, words):
    make_run(out, "taken", "upper")
    make_run(out, "single")
    with pytest.raises(UserError, match=words) as error:
        Body.of(flags(*line))
    assert "\n" not in str(error.value)


def test_parts_that_share_nothing_fit():
    for parts in (["upper", "hands", "lower_trans", "face"], ["face", "whole_trans"]):
        check_disjoint([(part, BODY_PART_CHANNELS[part]) for part in parts])


def test_one_part_stays_out_of_a_bodys_folder(out):
    make_run(out, "body", "hands")
    make_run(out, "body", "upper")
    for line in (["--name=body", "--resume"], ["--resume=runs/body"], ["--name=body", "--resume=global_step5"]):
        with pytest.raises(UserError, match=r"several body parts \(hands, upper\).*--out runs/body --name hands"):
            check_no_body(flags("--body_part=upper", *line))
    check_no_body(flags("--out=runs/body", "--name=upper", "--resume"))
    check_no_body(flags("--resume=runs/body/upper"))
    check_no_body(flags("--body_part=upper"))


def test_a_part_whose_profile_is_damaged_is_gone_on_with(out):
    make_run(out, "mine", "upper")
    part = out / "mine" / "upper"
    checkpoint = part / "checkpoints" / "global_step3"
    checkpoint.mkdir(parents=True)
    copy = checkpoint / "profile.json"
    copy.write_bytes((part / "profile.json").read_bytes())
    beside = {"profile.json": digest_of(copy)}
    (checkpoint / MANIFEST).write_text(json.dumps(seal({"step": 3, "files": {}, "beside": beside})))
    damage(part / "profile.json", "half")
    body = Body.of(flags("--body_part=upper,hands", "--resume=runs/mine"))
    assert given(body) == [
        ("upper", "runs/mine/upper", True, str(copy.relative_to(out.parent))),
        ("hands", "runs/mine/hands", True, str(copy.relative_to(out.parent))),
    ]
    assert [request.profile.rvqvae.data.body_part for request in body.requests()] == ["upper", "hands"]
    with pytest.raises(UserError, match=r"has the runs of several body parts \(upper\)"):
        check_no_body(flags("--resume=runs/mine"))


@pytest.mark.parametrize("line", [["--resume=runs/mine"], ["--name=mine", "--profile=wide", "--resume"]])
def test_a_part_that_has_not_begun_reads_its_motion_as_one_that_has(out, line):
    make_run(out, "mine", "upper")
    profile = json.loads((out / "mine" / "upper" / "profile.json").read_text())
    del profile["rvqvae"]["data"]["reading_version"]  # as versions up to 0.2 wrote it
    profile["rvqvae"]["data"]["up_axis"] = "y"
    (out / "mine" / "upper" / "profile.json").write_text(json.dumps(profile))

    def read(*more):
        data = [request.profile.rvqvae.data for request in Body.of(flags(*line, *more)).requests()]
        return [(own.body_part, own.reading_version, own.up_axis) for own in data]

    both = "--body_part=upper,hands"
    assert read(both)[1] == ("hands", 2, "y" if len(line) == 1 else None)  # none has begun
    (out / "mine" / "upper" / "checkpoints" / "global_step3").mkdir(parents=True)
    assert read(both)[1] == ("hands", 1, "y")
    assert read("--body_part=hands,upper")[0] == ("hands", 1, "y")
    assert read(both, "--up_axis=z")[1] == ("hands", 1, "z")


def test_parts_that_are_read_by_different_rules_make_no_body(out, tmp_path):
    body, data = own(tmp_path, OWN_PARTS)
    path = str(tmp_path / "task.npz")
    data[1] = MotionData.open(DataConfig(path=path, body_part="legs", body_parts=OWN_PARTS, reading_version=1))
    with pytest.raises(UserError, match=r"--body_part arms,legs: .*different rules .*arms 2, legs 1"):
        body.check(data, 0)


def test_motion_without_body_parts_is_refused(out, tmp_path):
    (tmp_path / "matrices").mkdir()
    np.save(tmp_path / "matrices" / "a.npy", np.random.default_rng(0).normal(size=(200, 78)).astype(np.float32))
    data = MotionData.open(DataConfig(path=str(tmp_path / "matrices"), split="time"))
    with pytest.raises(UserError, match=r"^--body_part upper: .*matrices has no body parts to select; only SMPL-X"):
        Body.of(flags("--body_part=upper,hands")).check([data, data], 0)


def test_a_flag_is_meant_for_the_parts_that_can_have_it(out, demo_folder):
    weights, mirror = "rvqvae.loss.joint_weights", "rvqvae.data.augment.mirror"

    def checked(parts, *line):
        line = (f"--data_path={demo_folder}", "--window_size=32", "--window_stride=16", f"--body_part={parts}", *line)
        body, found = Body.of(flags(*line)), []
        for request in body.requests():
            found.append(_open_motion(request, body.folder, [data for _, data in found]))
        body.check([data for _, data in found], 0)
        return found

    found = checked("hands,upper,face", f"--set={mirror}=0.5", f"--set={weights}.head=3")
    (hands, _), (upper, _), (_, of_face) = found
    assert hands.profile.rvqvae.loss.joint_weights is None
    assert upper.profile.rvqvae.loss.joint_weights == {"head": 3}
    augments = [request.profile.rvqvae.data.augment.mirror for request, _ in found]
    assert augments == [0.5, 0.5, 0]
    (note,) = of_face.notes()
    assert note.startswith("face: left out of the profile: ")
    assert f"{mirror}, because " in note and f"{weights}, because " in note
    # Read alone, a part's flags mean the same, and nothing is refused.
    for request, _ in found:
        again = replace(read_training_flags(request.flags.arguments()), environment={}).request()
        assert again.profile == request.profile
        assert open_training_data(again.profile, asked=again.asked).left_out == ()
    with pytest.raises(UserError) as error:
        checked("hands,lower_trans", '--joint_weights={"head": 3, "left_*": 2}')
    none = "no joint of this part is called head"
    assert str(error.value) == (
        f"--body_part hands,lower_trans: {weights}.head: fits none of these parts: hands, because {none}; "
        f"lower_trans, because {none}"
    )
    with pytest.raises(UserError, match=f"^--body_part hands: {weights}: no joint is called haed"):
        checked("hands,upper", f"--set={weights}.haed=3")


LAYOUT = [
    {"name": name, "kind": "rotation_6d", "columns": [6 * index, 6 * index + 6]}
    for index, name in enumerate(("Hips", "LeftArm", "LeftForeArm", "LeftLeg"))
]
OWN_PARTS = {"arms": ["Left*Arm"], "legs": ["*Leg", 0]}


def own(tmp_path, parts, chosen="arms,legs"):
    """The body of own parts, and what each part's run would read."""
    if not (tmp_path / "task.npz").is_file():
        write_packed(tmp_path / "task.npz", (200, 200), width=24, layout=np.array(json.dumps(LAYOUT)))
    body = Body.of(flags(f"--body_part={chosen}", f"--body_parts={json.dumps(parts)}"))
    path = str(tmp_path / "task.npz")
    return body, [MotionData.open(DataConfig(path=path, body_part=part, body_parts=parts)) for part in body.parts]


def test_own_parts_are_found_in_any_motion_with_names(out, tmp_path):
    body, data = own(tmp_path, OWN_PARTS)
    assert [each.name for each in body.flags_by_part()] == ["arms", "legs"]
    assert [[channels.name for channels in motion.layout] for motion in data] == [
        ["LeftArm", "LeftForeArm"],
        ["LeftLeg", "Hips"],
    ]
    body.check(data, 0)


def test_own_parts_that_overlap_are_refused(out, tmp_path):
    with pytest.raises(UserError, match=r"--body_part arms,legs: body part legs and arms both have \*Arm"):
        own(tmp_path, {"arms": ["*Arm"], "legs": ["*Leg", "*Arm"]})
    # By pattern and number only the motion shows it.
    for legs, joint in (([1], "LeftArm"), (["LeftF*"], "LeftForeArm")):
        body, data = own(tmp_path, {"arms": ["Left*Arm"], "legs": legs})
        with pytest.raises(UserError, match=f"--body_part arms,legs: body part legs and arms both have {joint};"):
            body.check(data, 0)


def test_unknown_parts_and_names_are_refused_before_any_motion_is_read(out, tmp_path):
    with pytest.raises(UserError, match="no body part 'arm'; did you mean 'arms'"):
        own(tmp_path, OWN_PARTS, "arm,legs")
    with pytest.raises(UserError, match="'tokenizer': name parts"):
        own(tmp_path, {**OWN_PARTS, "tokenizer": ["Hips"]})


@pytest.fixture
def body(out, demo_folder):
    """A body whose parts' tokenizers are where runs would leave them, with its checked runs."""
    data = MotionData.open(DataConfig(path=str(demo_folder)))
    body = Body.of(flags("--body_part=upper,hands,lower_trans", "--name=body"))
    for index, part in enumerate(body.parts):
        make_part(part, seed=index).save_pretrained(out / "body" / part / "tokenizer")
    runs = [CheckedRun(each, body.folder / each.flags.name, HERE, data, 0, done=False) for each in body.requests()]
    return body, runs


def train(body, runs, ends=None, signals=None):
    """Trains a body whose runs end as `ends` says, else with success. Returns the status and the parts that were
    started."""
    started = []

    def end(run):
        started.append(run.folder.name)
        return (ends or {}).get(run.folder.name, ExitStatus.DONE)

    return body.train(runs, end, signals or Signals()), started


def test_parts_are_trained_in_turn_and_become_a_body(body, out, capfd):
    assert train(*body) == (ExitStatus.DONE, ["upper", "hands", "lower_trans"])
    assert list(BodyTokenizer.from_pretrained(out / "body" / "tokenizer").parts) == ["upper", "hands", "lower_trans"]
    assert "hands, part 2 of 3: runs/body/hands" in capfd.readouterr().err


def test_what_is_done_is_not_trained_again(body, out, capfd):
    of_parts, runs = body
    runs[0] = replace(runs[0], done=True)
    assert train(of_parts, runs) == (ExitStatus.DONE, ["hands", "lower_trans"])
    assert "upper, part 1 of 3: already trained" in capfd.readouterr().err
    assert train(of_parts, [replace(run, done=True) for run in runs]) == (ExitStatus.DONE, [])
    assert (out / "body" / "tokenizer" / "body.json").is_file()


@pytest.mark.parametrize("status", [ExitStatus.STOPPED, ExitStatus.FAILED, ExitStatus.BAD_INPUT])
def test_a_part_that_does_not_end_well_is_the_last(body, out, status, capfd):
    assert train(*body, ends={"hands": status}) == (status, ["upper", "hands"])
    assert "not started: lower_trans" in capfd.readouterr().err
    assert not (out / "body" / "tokenizer").exists()


def test_a_signal_that_comes_as_a_part_ends_stops_the_next(body, capfd):
    assert train(*body, signals=Signals(stops=[signal.SIGTERM])) == (ExitStatus.STOPPED, ["upper"])
    said = capfd.readouterr().err
    assert "stopped\n" in said and "not started: hands, lower_trans" in said


def test_only_the_machine_of_rank_0_writes_the_bodys_tokenizer(body, out):
    of_parts, runs = body
    elsewhere = [replace(run, ranks=replace(HERE, first_here=False)) for run in runs]
    assert train(of_parts, elsewhere)[0] is ExitStatus.DONE
    assert not (out / "body" / "tokenizer").exists()


def test_a_part_without_its_tokenizer_is_named(body, out):
    (out / "body" / "hands" / "tokenizer" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"body/hands/tokenizer: .*model\.safetensors is missing"):
        train(*body)
    assert not (out / "body" / "tokenizer").exists()
