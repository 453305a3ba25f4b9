"""DeepSpeed's keys in a profile: DeepSpeed knows them, and sections take nothing else."""

import ast
from pathlib import Path

from ds_rvqvae.config import profile as profiles
from ds_rvqvae.config.deepspeed import DeepSpeedKeys


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
    # The rest is read key by key, by names that stand as string constants in the modules that read the file.
    package = Path(deepspeed.__file__).parent
    files = [*package.glob("runtime/*.py"), *package.glob("runtime/*/config.py"), *package.glob("*/con*.py")]
    trees = [ast.parse(file.read_text()) for file in files]
    literals = {node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert {*DeepSpeedKeys.model_fields, *ours("data_types"), *ours("checkpoint")} <= literals
