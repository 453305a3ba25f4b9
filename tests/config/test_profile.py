"""Profiles: shipped ones are valid, and errors name their place."""

import json

import pytest

from ds_rvqvae.config import profile as profiles
from ds_rvqvae.config.profile import load_profile, profile_from_dict, shipped_profiles
from ds_rvqvae.errors import UserError
from ds_rvqvae.gpu.sizes import parameter_count

SHIPPED = ("baseline", "best", "demo", "large", "wide")

# The table of the requirements, row by row.
TABLE = {
    "rvqvae.model.nb_code": (1024, 1024, 1024),
    "rvqvae.model.code_dim": (128, 128, 128),
    "rvqvae.model.down_t": (2, 3, 2),
    "rvqvae.model.stride_t": (2, 2, 2),
    "rvqvae.model.width": (512, 1024, 1536),
    "rvqvae.model.depth": (3, 4, 5),
    "rvqvae.model.num_quantizers": (6, 12, 16),
    "rvqvae.model.shared_codebook": (False, False, False),
    "rvqvae.data.window_size": (128, 120, 128),
    "rvqvae.data.window_stride": (64, 40, 64),
    "train_micro_batch_size_per_gpu": (80, 128, 160),
    "rvqvae.training.total_iter": (300_000, 20_000, 300_000),
    "optimizer.params.lr": (2e-4,) * 3,
    "optimizer.params.betas": ([0.9, 0.99],) * 3,
    "optimizer.params.weight_decay": (0.0,) * 3,
    "optimizer.type": ("AdamW",) * 3,
    "rvqvae.schedule.gamma": (0.05,) * 3,
    "rvqvae.schedule.milestones": ([50_000, 200_000, 400_000],) * 3,
    "gradient_clipping": (1.0,) * 3,
    "rvqvae.loss.recons_loss": ("l1_smooth",) * 3,
    "rvqvae.loss.commit": (0.02,) * 3,
    "rvqvae.loss.loss_vel": (0.5,) * 3,
    "rvqvae.model.mu": (0.99,) * 3,
    "rvqvae.model.quantize_dropout_prob": (0.2,) * 3,
    "rvqvae.model.dilation_growth_rate": (3,) * 3,
    "rvqvae.model.activation": ("relu",) * 3,
    "rvqvae.model.sample_codebook_temp": (0.0,) * 3,
    "bf16.enabled": (True,) * 3,
    "zero_optimization.stage": (2,) * 3,
    "rvqvae.training.gradient_checkpointing": (True,) * 3,
}


def read(name):
    return json.loads(shipped_profiles()[name].read_text())


def value_at(values, path):
    for key in path.split("."):
        values = values[key]
    return values


def refusal(*overrides, name="baseline"):
    with pytest.raises(UserError) as error:
        load_profile(name, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_ships():
    assert tuple(shipped_profiles()) == SHIPPED


@pytest.mark.parametrize("path", TABLE)
def test_shipped_numbers_are_those_of_the_requirements(path):
    assert tuple(value_at(read(name), path) for name in ("baseline", "wide", "large")) == TABLE[path]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_profile_is_valid_and_fits_any_number_of_ranks(name):
    profile = load_profile(name)
    assert profile.train_batch_size is None
    for world_size in (1, 2, 7):
        profile.check_world_size(world_size)
    config = profile.deepspeed_config()
    assert "rvqvae" not in config and "$schema" not in config
    assert config["zero_optimization"]["stage"] == 2
    assert config["train_micro_batch_size_per_gpu"] == profile.train_micro_batch_size_per_gpu


@pytest.mark.parametrize("name", SHIPPED)
def test_a_profile_survives_being_written_out(name):
    profile = load_profile(name)
    assert profile_from_dict(json.loads(json.dumps(profile.to_dict()))) == profile


def test_the_schema_is_fresh_and_every_profile_names_it():
    folder = shipped_profiles()["baseline"].parent
    fresh = json.dumps(profiles.json_schema(), indent=2) + "\n"
    assert (folder / "profile.schema.json").read_text() == fresh, "run: ds-rvqvae profile schema > the file"
    assert {read(name)["$schema"] for name in SHIPPED} == {"profile.schema.json"}


_MODEL_KEYS_OF_BEST = (
    *("activation", "weight_init", "zero_init_residual", "dropout", "code_dim"),
    *("quantize_dropout_prob", "input_noise", "beam_size"),
)


def test_best_costs_what_baseline_costs():
    """`best` has nets of the same shape and no more weights, and the same codes, batch and steps; only the training
    differs."""
    baseline, best = (load_profile(name).to_dict() for name in ("baseline", "best"))
    trained_otherwise = [
        ("optimizer", "params", "lr"),
        ("rvqvae", "loss"),
        ("rvqvae", "schedule"),
        ("rvqvae", "data", "augment"),
        *(("rvqvae", "model", key) for key in _MODEL_KEYS_OF_BEST),
    ]
    sizes = [parameter_count(78, load_profile(name).rvqvae.model) for name in ("best", "baseline")]
    assert 0.98 * sizes[1] < sizes[0] <= sizes[1]
    for values in (baseline, best):
        for *path, last in trained_otherwise:
            section = values
            for key in path:
                section = section[key]
            del section[last]
    assert best == baseline


def test_buckets_fit_the_model():
    # DeepSpeed's own 5e8 elements are a gigabyte of buffer.
    for name in SHIPPED:
        assert load_profile(name).zero_optimization.reduce_bucket_size <= 250_000_000


def test_the_seventh_gpu_makes_the_batch_560():
    assert load_profile("baseline").global_batch(7) == 560


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("gradient_cliping=1", ["gradient_cliping", "did you mean gradient_clipping?"]),
        ("zero_optimization.stge=2", ["zero_optimization.stge", "did you mean stage?"]),
        ("optimizer.params.lrr=1e-3", ["optimizer.params.lrr", "did you mean lr?"]),
        ("bf16.enable=true", ["bf16.enable", "did you mean enabled?"]),
        ("activation_checkpointing.enabled=true", ["activation_checkpointing.enabled", "unknown key"]),
        ("data_types.grad_acum_dtype=fp32", ["data_types.grad_acum_dtype", "did you mean grad_accum_dtype?"]),
        ("checkpoint.keep=3", ["checkpoint.keep", "unknown key"]),
        ("tensorboard.jobname=x", ["tensorboard.jobname", "did you mean job_name?"]),
        ("rvqvae.modle.width=3", ["rvqvae.modle", "did you mean model?"]),
        ("rvqvae.model.widht=3", ["rvqvae.model.widht", "did you mean width?"]),
        ("rvqvae.data.window=3", ["rvqvae.data.window", "unknown key"]),
        ("width=3", ["width: unknown key; did you mean rvqvae.model.width?"]),
        ("model.width=3", ["model: unknown key; did you mean rvqvae.model?"]),
        ("rvqvae.schedule.milestone=[3]", ["rvqvae.schedule.milestone", "did you mean milestones?"]),
        ("amp.enabled=false", ["amp: unknown key here: this trainer computes in bf16"]),
        ("fp16.enabled=true", ["fp16: unknown key here", "bf16.enabled false"]),
        ("scheduler.type=WarmupLR", ["scheduler: unknown key here: ", "rvqvae.schedule"]),
        ("comet.enabled=true", ["comet: unknown key here: scalars go to tensorboard and csv_monitor"]),
        ("zero_optimization.stage3_max_live_parameters=1", ["stage3_max_live_parameters", "belongs to ZeRO stage 3"]),
    ],
)
def test_a_misspelt_key_is_named_with_the_nearest(override, words):
    text = refusal(override)
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rvqvae.model.width=-1", ["rvqvae.model.width", "greater than 0", "-1"]),
        ("rvqvae.model.width=wide", ["rvqvae.model.width", "integer", '"wide"']),
        ("rvqvae.model.width=true", ["rvqvae.model.width", "integer"]),
        ('rvqvae.model.shared_codebook="yes"', ["rvqvae.model.shared_codebook", "boolean"]),
        ("rvqvae.model.dropout=1", ["rvqvae.model.dropout", "less than 1"]),
        ("rvqvae.loss.commit=NaN", ["rvqvae.loss.commit", "finite"]),
        ("rvqvae.data.body_part=uper", ["rvqvae.data.body_part", "upper"]),
        ("rvqvae.data.window_size=130", ["rvqvae.data.window_size", "130", "128 or 132"]),
        ("rvqvae.data.window_size=2", ["rvqvae.data.window_size", "use 4"]),
        ("rvqvae.data.mean_file=a.npy", ["mean_file", "together"]),
        ("rvqvae.schedule.milestones=[20,10]", ["rvqvae.schedule.milestones", "ascending"]),
        ("bf16.bf16_optimizer_states=true", ["bf16_master_weights_and_grads"]),
        ("bf16=true", ["bf16"]),
        ("zero_optimization.stage=3", ["zero_optimization.stage", "2"]),
        ("zero_optimization.overlap_comm=auto", ["zero_optimization.overlap_comm", "auto"]),
        ("optimizer.type=Lion", ["optimizer.type", "AdamW"]),
        ("rvqvae.model.width.x=3", ["--set", "width is not an object"]),
        ("rvqvae.model.width", ["--set", "path.to.key=value"]),
        ("=3", ["--set", "path.to.key=value"]),
    ],
)
def test_a_wrong_value_is_named_by_its_path(override, words):
    text = refusal(override)
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", [":1:", "not JSON"]),
        ('{"a": 1,\n "b": }', [":2:", "not JSON"]),
        ("[]", ["a list"]),
        ('{"bf16": {}, "bf16": {}}', ["bf16", "twice"]),
        ("{}", ["missing"]),
        ('{"rvqvae": {}}', ["train_micro_batch_size_per_gpu: missing"]),
    ],
)
def test_a_broken_file_is_named(tmp_path, text, words):
    file = tmp_path / "mine.json"
    file.write_text(text)
    said = refusal(name=file)
    assert str(file) in said
    assert all(word in said for word in words), said


def test_a_profile_that_is_not_there(tmp_path):
    assert "baseline, best, demo, large, wide" in refusal(name="basline")
    assert "folder" in refusal(name=tmp_path)


def test_overrides_reach_every_section():
    profile = load_profile("baseline", ["rvqvae.model.norm=LN", "optimizer.params.lr=1e-3", "wandb.enabled=true"])
    assert (profile.rvqvae.model.norm, profile.optimizer.params.lr, profile.wandb.enabled) == ("LN", 1e-3, True)


def test_milestones_past_the_end_are_a_note_where_a_profile_is_looked_at():
    assert load_profile("baseline").warnings() == []
    (note,) = load_profile("baseline").notes()
    assert note == "rvqvae.schedule.milestones: 400,000 lies at or past total_iter 300,000: no effect"
    assert load_profile("baseline", ["rvqvae.training.total_iter=500000"]).notes() == []


_BF16_OF_STAGE_1 = ["zero_optimization.stage=1", "data_types.grad_accum_dtype=fp32"]


@pytest.mark.parametrize(
    ("override", "also"),
    [
        ("wandb.enabled=true", None),
        ("steps_per_print=10", ["log_level=info"]),
        ("dump_state=true", ["log_level=debug"]),
        ("comms_logger.enabled=true", ["log_level=info", "comms_logger.verbose=true"]),
        ("zero_optimization.allgather_partitions=false", None),
        ("bf16.immediate_grad_update=true", _BF16_OF_STAGE_1),
        ("activation_checkpointing.number_checkpoints=4", None),
        ("prescale_gradients=true", ["zero_optimization.reduce_scatter=false"]),
        ("gradient_predivide_factor=2.0", ["zero_optimization.reduce_scatter=false"]),
    ],
)
def test_keys_that_change_nothing_are_told_and_those_that_work_are_not(override, also):
    key = override.partition("=")[0]
    (told,) = load_profile("baseline", [override]).without_effect()
    assert told.startswith(f"{key}: ")
    assert load_profile("baseline", [override]).warnings() == [f"no effect: {told}"]
    if also is not None:
        assert load_profile("baseline", [override, *also]).without_effect() == []


@pytest.mark.parametrize(
    ("override", "also"),
    [
        ("rvqvae.schedule.milestones=[2,3]", "rvqvae.schedule.kind=cosine"),
        ("rvqvae.schedule.gamma=0.1", "rvqvae.schedule.kind=cosine"),
        ("rvqvae.model.sample_anneal_iter=9", "rvqvae.model.sample_codebook_temp=0"),
        ("rvqvae.model.quantize_dropout_min_levels=2", "rvqvae.model.quantize_dropout_prob=0"),
        ("rvqvae.loss.rotation_distance=geodesic", "rvqvae.loss.loss_rotation=0"),
        ("rvqvae.training.reference_batch=64", "rvqvae.training.scale_lr=null"),
        ("rvqvae.training.compile_mode=reduce-overhead", "rvqvae.training.compile=false"),
        ("activation_checkpointing.cpu_checkpointing=true", "rvqvae.training.gradient_checkpointing=false"),
    ],
)
def test_keys_that_are_asked_for_and_change_nothing_beside_others(override, also):
    key, other = override.partition("=")[0], also.partition("=")[0]
    profile = load_profile("baseline", [override, also])
    (told,) = profile.idle([key, other])
    assert told.startswith(f"{key}: no effect, as {other} is ") and profile.idle([other]) == []
    works = {"cosine": "milestones", "0": "0.5", "null": "linear", "false": "true"}[also.partition("=")[2]]
    assert load_profile("baseline", [override, f"{other}={works}"]).idle([key]) == []


def test_what_works_is_not_told():
    works = ["wall_clock_breakdown=true", "memory_breakdown=true", "flops_profiler.enabled=true", "wandb.enabled=false"]
    works += ["csv_monitor.enabled=true", "disable_python_gc=true", "activation_checkpointing.profile=true"]
    assert load_profile("baseline", works).without_effect() == []
    assert [load_profile(name).without_effect() for name in SHIPPED] == [[]] * len(SHIPPED)
    on_cpu = [f"activation_checkpointing.{key}=true" for key in ("cpu_checkpointing", "profile")]
    (told,) = load_profile("baseline", on_cpu).without_effect()
    assert told.startswith("activation_checkpointing.profile: has no effect together with cpu_checkpointing")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["rvqvae.training.init_from=t", "rvqvae.model.weight_init=he"],
            "weight_init, zero_init_residual: weights come",
        ),
        (
            ["rvqvae.training.init_from=t", "rvqvae.model.codebook_init=kmeans"],
            "rvqvae.model.codebook_init: codebooks come",
        ),
        (
            ["rvqvae.model.fsq_levels=[4,4,4,4,4]", "rvqvae.model.code_dim=30", "rvqvae.loss.commit=1"],
            "rvqvae.loss.commit: with fsq_levels",
        ),
    ],
)
def test_settings_without_effect_are_a_warning(overrides, words):
    common = ["rvqvae.training.total_iter=500000"]
    (warning,) = load_profile("baseline", [*common, *overrides]).warnings()
    assert words in warning and warning.endswith("no effect")
    assert load_profile("baseline", [*common, *overrides[:-1]]).warnings() == []


def test_an_average_of_bf16_weights_is_refused():
    zero = ["bf16.bf16_master_weights_and_grads=true"]
    load_profile("baseline", zero)
    with pytest.raises(UserError, match=r"ema_decay: a moving average stalls in bf16"):
        load_profile("baseline", [*zero, "rvqvae.training.ema_decay=0.99"])


def test_a_global_batch_that_spans_epochs_is_a_warning_by_length():
    settings = ["rvqvae.training.total_iter=500000", "rvqvae.data.window_sizes=[64, 256]"]
    profile = load_profile("baseline", settings)
    (warning,) = profile.warnings(7, {64: 1119, 256: 280})
    assert "1,120 is larger than the 1,119 training windows of 64 frames" in warning
    assert profile.warnings(7, {64: 1120, 256: 280}) == []
    (warning,) = load_profile("baseline", settings[:1]).warnings(7, {128: 559})
    assert "560 is larger than the 559 training windows: a step spans epochs" in warning
    (warning,) = load_profile("baseline", [*settings, "rvqvae.training.compile=true"]).warnings()
    assert "rvqvae.training.compile: windows have 2 lengths" in warning


def test_a_global_batch_fits_its_ranks_only():
    profile = load_profile("baseline", ["train_batch_size=160"])
    profile.check_world_size(2)
    with pytest.raises(UserError, match="train_batch_size: 160 is not micro batch 80 x accumulation 1 x 7 ranks = 560"):
        profile.check_world_size(7)


def test_windows_without_the_differences_that_losses_take_are_refused():
    """The mean of no differences is NaN, which would make the loss and all weights NaN."""
    short = ["rvqvae.model.down_t=0", "rvqvae.data.window_size=2"]
    load_profile("demo", short)
    with pytest.raises(
        UserError, match=r"rvqvae\.data\.window_size: 2 frames have no second differences .*use 3 or more"
    ):
        load_profile("demo", [*short, "rvqvae.loss.loss_acc=0.5"])
    with pytest.raises(UserError, match=r"window_size: 1 frames have no differences; use 2 or more"):
        load_profile("demo", [*short, "rvqvae.data.window_sizes=[1, 8]"])


def test_nesting_without_end_is_no_json(tmp_path):
    file = tmp_path / "deep.json"
    file.write_text('{"rvqvae": ' + "[" * 200_000)
    with pytest.raises(UserError, match=r"deep\.json: not JSON: nested too deeply"):
        load_profile(file)
    with pytest.raises(UserError, match=r"rvqvae\.model\.width"):
        load_profile("demo", ["rvqvae.model.width=" + "[" * 100_000])


def test_a_profile_may_be_as_windows_saves_it(tmp_path):
    file, text = tmp_path / "mine.json", shipped_profiles()["demo"].read_text().replace("\n", "\r\n")
    file.write_text(text, encoding="utf-8-sig")
    assert load_profile(file) == load_profile("demo")
    file.write_text(text, encoding="utf-16")
    with pytest.raises(UserError, match=r"mine.json: cannot be read: the text is UTF-16; save it as UTF-8"):
        load_profile(file)
