"""DeepSpeed's keys in a profile: DeepSpeed knows them, and sections accept no others."""

import ast
from pathlib import Path

import pytest
from pydantic import ValidationError

from ds_rvqvae.config import profile as profiles
from ds_rvqvae.config.deepspeed import DeepSpeedKeys, OptimizerParams, ZeroSection


def test_deepspeed_knows_every_key_that_profiles_may_hold():
    import deepspeed
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.monitor.config import CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.profiling.config import DeepSpeedFlopsProfilerConfig
    from deepspeed.runtime.activation_checkpointing import config as activation
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig

    def ours(*section):
        keys = profiles.section_at(section).model_fields
        return {field.alias or name for name, field in keys.items()}

    for section, theirs in {
        ("bf16",): DeepSpeedBF16Config,
        ("zero_optimization",): DeepSpeedZeroConfig,
        ("zero_optimization", "offload_optimizer"): DeepSpeedZeroOffloadOptimizerConfig,
        ("tensorboard",): TensorBoardConfig,
        ("csv_monitor",): CSVConfig,
        ("wandb",): WandbConfig,
        ("comms_logger",): CommsLoggerConfig,
    }.items():
        assert ours(*section) <= set(theirs.model_fields), section
    assert ours("flops_profiler") <= set(vars(DeepSpeedFlopsProfilerConfig({})))
    assert ours("activation_checkpointing") <= set(activation.ACT_CHKPT_DEFAULT)
    # DeepSpeed reads the rest key by key; the names are string constants in the modules that read the file.
    package = Path(deepspeed.__file__).parent
    files = [*package.glob("runtime/*.py"), *package.glob("runtime/*/config.py"), *package.glob("*/con*.py")]
    trees = [ast.parse(file.read_text()) for file in files]
    literals = {node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert {*DeepSpeedKeys.model_fields, *ours("data_types"), *ours("checkpoint")} <= literals


def test_whole_numbers_may_be_written_as_floats_where_things_are_counted():
    assert ZeroSection(reduce_bucket_size=5e8).reduce_bucket_size == 500_000_000
    assert type(ZeroSection(reduce_bucket_size=5e8).reduce_bucket_size) is int
    for wrong in (1.5, 0, -1, "5", True):
        with pytest.raises(ValidationError):
            ZeroSection(reduce_bucket_size=wrong)


@pytest.mark.parametrize(
    "values", [{"lr": 0.0}, {"lr": float("nan")}, {"lr": float("inf")}, {"betas": [0.9]}, {"lrr": 1.0}]
)
def test_a_section_takes_no_other_keys_types_or_numbers(values):
    with pytest.raises(ValidationError):
        OptimizerParams(**values)


def test_a_copy_with_other_values_leaves_the_section_as_it_was():
    keys = DeepSpeedKeys(train_micro_batch_size_per_gpu=8)
    copy = keys.with_values(
        {"optimizer.params.lr": 1e-3, "optimizer.type": "Adam", "optimizer.params.eps": 1e-6, "dump_state": True}
    )
    assert (copy.optimizer.params.lr, copy.optimizer.params.eps, copy.optimizer.type) == (1e-3, 1e-6, "Adam")
    assert copy.dump_state and copy.optimizer.params.betas == [0.9, 0.99] and copy.bf16 == keys.bf16
    assert keys == DeepSpeedKeys(train_micro_batch_size_per_gpu=8) != copy
    with pytest.raises(ValidationError, match="frozen"):
        keys.dump_state = True
