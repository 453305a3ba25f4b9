"""The short step against DeepSpeed's own: equal results, overlap, and the functions that it replaces."""

import hashlib
import inspect

import pytest

from tests.ranks import run_ranks
from tests.train.small import make_trainer

SEVERAL_BUCKETS = ["--set", "zero_optimization.reduce_bucket_size=4000"]
FLAGS = ["--batch_size=4", "--gradient_accumulation_steps=2", "--total_iter=8", "--gradient_checkpointing"]


def train_both_ways(folder, data, more):
    """Trains with the short step and with DeepSpeed's own; returns losses, norms and weights of each."""
    import torch

    from ds_rvqvae.train.zero import step

    found = {}
    for name, tried in (("short", step.TRIED), ("own", ())):
        step.TRIED = tried
        trainer = make_trainer(f"{folder}/{name}", data, [*FLAGS, *SEVERAL_BUCKETS, *more])
        assert (type(getattr(trainer.engine.optimizer.step, "__self__", None)).__name__ == "ShortStep") == bool(tried)
        trainer.initialize_codebooks()
        losses, norms = [], []
        for _ in range(4):
            losses.append(float(trainer.step().loss))
            norms.append(float(trainer.engine.get_global_grad_norm()))
        part = trainer.engine.optimizer.single_partition_of_fp32_groups[0].detach()
        weights = torch.cat([parameter.detach().float().reshape(-1) for parameter in trainer.model.parameters()])
        found[name] = {"losses": losses, "norms": norms, "part": part.tolist(), "weights": weights.tolist()}
        trainer.close()
    return found


@pytest.mark.processes
@pytest.mark.parametrize(
    ("ranks", "more"),
    [
        (1, []),
        (2, []),
        (2, ["--gradient_accumulation_steps=1", "--gradient_clipping=0.01"]),
        (2, ["--set", "data_types.grad_accum_dtype=fp32"]),
        (2, ["--mixed_precision=no", "--set", "zero_optimization.overlap_comm=false"]),
    ],
    ids=["bf16", "2 ranks", "one micro batch, clipped", "fp32 sums", "fp32, no overlap"],
)
def test_it_computes_as_deepspeeds_own_step(tmp_path, demo_folder, ranks, more):
    for found in run_ranks(
        ranks, train_both_ways, tmp_path, folder=str(tmp_path / "run"), data=str(demo_folder), more=more
    ):
        short, own = found["short"], found["own"]
        assert short["losses"] == pytest.approx(own["losses"], rel=1e-5)
        assert short["norms"] == pytest.approx(own["norms"], rel=1e-5)
        assert short["part"] == pytest.approx(own["part"], abs=2e-5), "the fp32 weights of this rank's part"
        assert short["weights"] == pytest.approx(own["weights"], abs=1e-2), "in bf16, up to one rounding"


def events_of_a_step(folder, data, recomputed):
    """Returns the events of one step in their order: backward passes of convolutions, and reductions by bucket."""
    import torch
    import torch.distributed as dist
    from torch.utils._python_dispatch import TorchDispatchMode

    from ds_rvqvae.gpu import sizes
    from ds_rvqvae.model.nets import ResidualStack
    from ds_rvqvae.train.zero.recomputation import recompute

    sizes._STACK_AT_ONCE = 0 if recomputed == "by layers" else sizes._STACK_AT_ONCE
    flags = ["--batch_size=4", "--total_iter=3", f"--gradient_checkpointing={'off' if recomputed == 'not' else 'on'}"]
    trainer = make_trainer(folder, data, [*flags, *SEVERAL_BUCKETS])
    trainer.initialize_codebooks()
    trainer.step()
    events, reduce = [], dist.all_reduce

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            if function.__name__.startswith("convolution_backward"):
                events.append("convolution")
            return function(*arguments, **(keywords or {}))

    def watched(tensor, *arguments, **keywords):
        events.append(tensor.numel())
        return reduce(tensor, *arguments, **keywords)

    dist.all_reduce = watched
    with Watch():
        trainer.step()
    dist.all_reduce = reduce
    convolutions = [module for module in trainer.model.modules() if isinstance(module, torch.nn.Conv1d)]
    firsts = {module: module for module in convolutions}
    for stack in trainer.model.modules():
        if isinstance(stack, ResidualStack) and stack.checkpoint is recompute:
            own = [module for module in stack.modules() if module in firsts]
            firsts |= dict.fromkeys(own, own[0])
    expected = []
    for bucket in trainer.engine.optimizer.step.__self__.weights.buckets:
        behind = len(convolutions) - convolutions.index(firsts[bucket.first_module])
        expected += ["convolution"] * (behind - expected.count("convolution")) + [bucket.stop - bucket.start]
    trainer.close()
    return {"events": events, "expected": [trainer.model.quantizer.staged.numel(), *expected]}


@pytest.mark.processes
@pytest.mark.parametrize("recomputed", ["at once", "by layers", "not"])
def test_reductions_begin_while_the_backward_pass_goes_on(tmp_path, demo_folder, recomputed):
    """Each bucket's all-reduce begins as soon as the backward pass has done the bucket's first layer, or the stack of
    that layer if it is recomputed at once. That of the codebooks begins before the backward pass, and the norm needs
    none."""
    arguments = {"folder": str(tmp_path / "run"), "data": str(demo_folder), "recomputed": recomputed}
    for found in run_ranks(2, events_of_a_step, tmp_path, **arguments):
        assert found["events"] == found["expected"]
        first = next(index for index, event in enumerate(found["events"][1:]) if event != "convolution")
        assert first < found["events"].count("convolution") / 2


def test_a_step_needs_a_backward_pass(tmp_path, demo_folder):
    (said,) = run_ranks(1, step_without_backward, tmp_path, folder=str(tmp_path / "run"), data=str(demo_folder))
    assert said.startswith("no gradient: run the model by engine(motion)")


def step_without_backward(folder, data):
    trainer = make_trainer(folder, data, ["--total_iter=3"])
    try:
        trainer.engine.step()
    except RuntimeError as error:
        return str(error)


@pytest.mark.processes
def test_an_engine_that_cannot_have_it_says_why(tmp_path, demo_folder):
    arguments = {"folder": str(tmp_path), "data": str(demo_folder)}
    (reasons,) = run_ranks(1, reasons_of_engines, tmp_path, **arguments)
    assert reasons == [
        "",
        "zero_optimization.stage is not 2",
        "zero_optimization.use_multi_rank_bucket_allreduce is false",
        "zero_optimization.offload_optimizer is set",
        "deepspeed 9.9 is not among those tried with it, 0.19.8",
    ]


def reasons_of_engines(folder, data):
    """Trains two steps by each profile; returns why each has DeepSpeed's own step."""
    import deepspeed

    from ds_rvqvae.train.zero import step

    reasons, install = [], step.reason_against

    def kept(profile):
        reasons.append(install(profile))
        return reasons[-1]

    step.reason_against = kept
    version = deepspeed.__version__
    for index, override in enumerate(
        [
            "zero_optimization.stage=2",
            "zero_optimization.stage=1",
            "zero_optimization.use_multi_rank_bucket_allreduce=false",
            'zero_optimization.offload_optimizer={"device": "cpu"}',
            "",
        ]
    ):
        deepspeed.__version__ = version if override else "9.9"
        flags = ["--set", override] if override else []
        trainer = make_trainer(f"{folder}/{index}", data, ["--total_iter=3", *flags])
        deepspeed.__version__ = version
        trainer.initialize_codebooks()
        trainer.step()
        assert trainer.engine.was_step_applied()
        trainer.close()
    return reasons


REPLACED = {
    "DeepSpeedZeroOptimizer": (
        *("step", "zero_grad", "overlapping_partition_gradients_reduce_epilogue", "average_tensor", "reduce_ipg_grads"),
        *("independent_gradient_partition_epilogue", "scaled_global_norm", "get_grad_norm_direct"),
        *("unscale_and_clip_grads", "_optimizer_step", "_lazy_init_hp_params_optimizer_state"),
        *("_update_model_bit16_weights", "clear_backward_seen_flag", "state_dict"),
    ),
    "DeepSpeedEngine": (
        *("forward", "backward", "step", "_take_model_step", "_backward_prologue", "_backward_epilogue"),
        *("allreduce_gradients", "was_step_applied", "train"),
    ),
}
"""The private functions of DeepSpeed that the short step replaces, or whose calls of it it relies on."""


def test_deepspeed_is_as_it_was_when_the_short_step_was_tried():
    """A new DeepSpeed fails here: read the changes, run the tests of this folder, and only then add its version."""
    import deepspeed
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    from ds_rvqvae.train.zero.step import TRIED

    digest = hashlib.sha256()
    for kind in (DeepSpeedZeroOptimizer, DeepSpeedEngine):
        for name in REPLACED[kind.__name__]:
            digest.update(inspect.getsource(inspect.unwrap(getattr(kind, name))).encode())
    assert deepspeed.__version__ in TRIED
    assert digest.hexdigest()[:16] == "89846aac9b4c3d1e"
