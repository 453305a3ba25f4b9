"""The flags of training."""

import json
import subprocess
import sys

import pytest

from ds_rvqvae.config.flags import PROFILE_FLAGS
from ds_rvqvae.config.profile import load_profile, profile_file, section_at
from ds_rvqvae.config.request import read_training_flags
from ds_rvqvae.errors import UserError

# One value per flag, each different from the baseline profile's.
VALUES = {
    "batch_size": (7, "train_micro_batch_size_per_gpu"),
    "gradient_accumulation_steps": (3, "gradient_accumulation_steps"),
    "gradient_clipping": (0.5, "gradient_clipping"),
    "lr": (1e-3, "optimizer.params.lr"),
    "width": (64, "rvqvae.model.width"),
    "depth": (5, "rvqvae.model.depth"),
    "down_t": (3, "rvqvae.model.down_t"),
    "stride_t": (4, "rvqvae.model.stride_t"),
    "nb_code": (512, "rvqvae.model.nb_code"),
    "code_dim": (32, "rvqvae.model.code_dim"),
    "num_quantizers": (2, "rvqvae.model.num_quantizers"),
    "window_size": (192, "rvqvae.data.window_size"),
    "window_stride": (16, "rvqvae.data.window_stride"),
    "num_workers": (0, "rvqvae.data.num_workers"),
    "body_part": ("hands", "rvqvae.data.body_part"),
    "recons_loss": ("l2", "rvqvae.loss.recons_loss"),
    "commit": (0.1, "rvqvae.loss.commit"),
    "loss_vel": (0.2, "rvqvae.loss.loss_vel"),
    "gamma": (0.3, "rvqvae.schedule.gamma"),
    "warm_up_iter": (9, "rvqvae.schedule.warm_up_iter"),
    "total_iter": (77, "rvqvae.training.total_iter"),
    "seed": (5, "rvqvae.training.seed"),
}


def parse(*line):
    return read_training_flags(line)


def profile_of(*line):
    return parse(*line).request().profile


def value_at(profile, path):
    values = profile.to_dict()
    for key in path.split("."):
        values = values[key]
    return values


@pytest.mark.parametrize("flag", VALUES)
def test_a_flag_sets_its_key(flag):
    value, path = VALUES[flag]
    assert value_at(load_profile("baseline"), path) != value
    assert value_at(profile_of(f"--{flag}", str(value)), path) == value


def test_lists():
    profile = profile_of("--milestones", "10,20", "--speakers", "2")
    assert profile.rvqvae.schedule.milestones == [10, 20]
    assert profile.rvqvae.data.speakers == [2]
    assert profile_of("--window_sizes=64,96").rvqvae.data.window_sizes == [64, 96]


def test_objects():
    data = profile_of("--balance=speaker", '--weights={"2": 3}').rvqvae.data
    assert data.balance == "speaker" and data.weights == {"2": 3}


def test_every_flag_has_a_key_in_the_profile():
    for path in PROFILE_FLAGS.values():
        *section, name = path.split(".")
        assert name in section_at(section).model_fields


@pytest.mark.parametrize(
    ("line", "bf16", "checkpointing"),
    [
        (["--mixed_precision", "--gradient_checkpointing"], True, True),
        (["--mixed_precision", "bf16", "--gradient_checkpointing", "on"], True, True),
        (["--mixed_precision", "no", "--gradient_checkpointing", "off"], False, False),
    ],
)
def test_switches_mean_on_when_bare(line, bf16, checkpointing):
    start = ["--set", "rvqvae.model.dropout=0"]
    profile = profile_of(*start, *line)
    assert profile.bf16.enabled is bf16
    assert profile.rvqvae.training.gradient_checkpointing is checkpointing


def test_set_has_the_last_word():
    assert profile_of("--set", "rvqvae.model.width=96", "--width", "64").rvqvae.model.width == 96


def test_deepspeed_config_is_another_name_of_profile():
    assert parse("--deepspeed_config", "large").profile == "large"
    request = parse().request()
    assert request.profile.rvqvae.model.width == 512 and request.resolved.profile == "baseline"


def test_a_resumed_folder_brings_its_own_profile(tmp_path):
    (tmp_path / "profile.json").write_text(profile_file("large").read_text())
    assert profile_of("--resume", str(tmp_path)).rvqvae.model.width == 1536
    assert profile_of("--resume", str(tmp_path), "--profile", "wide").rvqvae.model.width == 1024
    assert profile_of("--resume", "global_step5").rvqvae.model.width == 512


def test_data_path_comes_from_the_flag_then_the_profile_then_the_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DS_RVQVAE_DATA", "/from/environment")
    assert profile_of().rvqvae.data.path == "/from/environment"
    assert profile_of("--set", "rvqvae.data.path=/from/profile").rvqvae.data.path == "/from/profile"
    assert profile_of("--data_path", "123").rvqvae.data.path == str(tmp_path / "123")
    monkeypatch.delenv("DS_RVQVAE_DATA")
    assert profile_of().rvqvae.data.path is None


def test_arguments_come_back_as_they_went_in():
    line = (
        "--profile wide --name x --resume --width 64 --milestones [10,20] --mixed_precision --lr=-1 --set a=1 --set b=2"
    )
    flags = parse(*line.split())
    assert parse(*flags.arguments()) == flags


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["--widht", "3"], ["--widht", "did you mean --width?"]),
        (["--wid", "3"], ["--wid", "did you mean --width?"]),
        (["--width"], ["--width", "expected one argument"]),
        (["--body_part", "upper,../x"], ["--body_part", "'../x'", "known are upper, hands"]),
        (["--mixed_precision", "fp16"], ["--mixed_precision", "fp16", "bf16"]),
        (["stray"], ["stray"]),
    ],
)
def test_a_wrong_flag_is_one_line_and_exit_2(line, words, capsys):
    with pytest.raises(SystemExit) as exit:
        parse(*line)
    said = capsys.readouterr()
    assert exit.value.code == 2
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert all(word in said.err for word in words)


def test_several_body_parts_are_for_a_launcher():
    assert parse("--body_part", "upper, hands").parts == ("upper", "hands")
    with pytest.raises(
        UserError,
        match=r"--body_part upper,hands: a run trains one body part; "
        "launch/train_8x4090\.sh",
    ):
        profile_of("--body_part=upper,hands")


def test_body_parts_are_those_of_smplx_and_the_profiles_own():
    with pytest.raises(UserError, match=r"rvqvae\.data\.body_part: no body part 'uper'; did you mean 'upper'\?"):
        profile_of("--body_part=uper")
    own = """{"arms": ["Left*Arm", 20], "legs": ["*Leg"]}"""
    assert profile_of("--body_part=arms", f"--body_parts={own}").rvqvae.data.body_parts["arms"] == ["Left*Arm", 20]
    with pytest.raises(UserError, match="no body part 'leg'; did you mean 'legs'"):
        profile_of("--body_part=leg", f"--body_parts={own}")


def test_paths_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    profile = profile_of("--data_path=motion", "--init_from=runs/x/tokenizer")
    assert profile.rvqvae.training.init_from == str(tmp_path / "runs" / "x" / "tokenizer")
    assert profile.rvqvae.data.path == str(tmp_path / "motion")


def test_importing_flags_imports_neither_torch_nor_numpy():
    code = "import json, sys, ds_rvqvae.config.flags, ds_rvqvae.runs.folder; print(json.dumps(list(sys.modules)))"
    modules = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert not {"torch", "numpy", "deepspeed"} & set(modules)
