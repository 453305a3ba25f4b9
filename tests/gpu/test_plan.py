"""The plan, compared with the tensors that the engine really holds and the bytes that it really sends."""

import pytest

from ds_rvqvae.config.profile import load_profile, profile_from_dict
from ds_rvqvae.gpu.cards import CARDS, parse_bytes
from ds_rvqvae.gpu.plan import NCCL_BYTES, largest_micro_batch, make_plan
from ds_rvqvae.gpu.quantizers import staged_count
from ds_rvqvae.gpu.sizes import parameter_sizes
from ds_rvqvae.train.zero.step import ShortStep
from tests.gpu.plans import KEYS
from tests.ranks import run_ranks

CARD = CARDS["4090"]


VARIANTS = {
    "stage 2": [],
    "stage 2, fp32": ["--mixed_precision=no"],
    "stage 2, accumulating": ["--gradient_accumulation_steps=2", "--norm=LN"],
    "stage 2, nothing overlaps": ["--set=zero_optimization.overlap_comm=false"],
    "stage 2, fp32 gradients": ["--set=data_types.grad_accum_dtype=fp32"],
    "scalar quantization": ["--set=rvqvae.model.fsq_levels=[4,4,4]", "--nb_code=64", "--code_dim=9"],
    "several buckets": ["--set=zero_optimization.reduce_bucket_size=9000"],
    "DeepSpeed's own step": ["--set=wall_clock_breakdown=true", "--gradient_accumulation_steps=2"],
    "stage 1": ["--set=zero_optimization.stage=1"],
    "stage 1, accumulating": ["--set=zero_optimization.stage=1", "--gradient_accumulation_steps=2"],
}


def held_by_the_engine(folder, data, variants):
    """The bytes that this rank holds and sends in a step of each variant, from the engine's own tensors."""
    from collections import Counter

    from benchmarks.wire_bytes import count_payloads

    calls = Counter()
    count_payloads(calls)
    from tests.train.small import make_trainer

    found = {}
    for name, flags in variants.items():
        trainer = make_trainer(f"{folder}/{name}", data, ["--batch_size=4", "--total_iter=3", "--width=33", *flags])
        trainer.initialize_codebooks()
        recorder = Recorder(trainer.engine.optimizer)
        for _ in range(2):
            calls.clear()
            trainer.step()
        found[name] = {
            **recorder.held(),
            "codebooks": sum(buffer.nbytes for buffer in trainer.model.quantizer.buffers()),
            "staged": trainer.model.quantizer.staged.numel(),
            "all_reduce": calls["all_reduce"],
            "all_gather": calls["all_gather_into_tensor"] or calls["all_gather_single"],
            "sizes": [parameter.numel() for parameter in trainer.model.parameters()],
            "in_features": trainer.model.in_features,
            "profile": trainer.profile.to_dict(),
        }
        trainer.close()
    return found


class Recorder:
    """Reads the step's and DeepSpeed's buffers while they exist."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.buckets = self.gradients = self.whole_gradients = 0
        if isinstance(getattr(optimizer.step, "__self__", None), ShortStep):
            self._watch_the_short_step(optimizer.step.__self__.gradient)
        else:
            self._watch_deepspeeds_own(optimizer)

    def _watch_the_short_step(self, gradient):
        collect, pop = gradient._collect, gradient.pop

        def recorded_collect():
            held = [flat for _, flat, _ in gradient._in_flight]
            # The numbers kept for the norm are few, unless they keep the memory of their bucket.
            held += [kept for kept in gradient._seen if kept.untyped_storage().nbytes() > 4096]
            self.buckets = max(self.buckets, storage_bytes(held))
            collect()

        def recorded_pop(*arguments):
            self.gradients = storage_bytes([gradient._sum])
            return pop(*arguments)

        gradient._collect, gradient.pop = recorded_collect, recorded_pop

    def _watch_deepspeeds_own(self, optimizer):
        setup_buckets, step = optimizer.setup_buckets, optimizer.step
        epilogue = optimizer.overlapping_partition_gradients_reduce_epilogue

        def recorded_setup():
            setup_buckets()
            buffers = [buffer for bucket in optimizer.ipg_buckets.values() for buffer in bucket.buffer]
            self.buckets = storage_bytes(buffers)

        def recorded_epilogue():
            gradients = [parameter.grad for group in optimizer.bit16_groups for parameter in group]
            self.whole_gradients = sum(gradient.nbytes for gradient in gradients if gradient is not None)
            epilogue()

        def recorded_step(*arguments, **keywords):
            self.gradients = storage_bytes(optimizer.averaged_gradients[0])
            return step(*arguments, **keywords)

        optimizer.setup_buckets, optimizer.step = recorded_setup, recorded_step
        optimizer.overlapping_partition_gradients_reduce_epilogue = recorded_epilogue

    def held(self):
        state = self.optimizer.optimizer.state.values()
        return {
            "parameters": self.optimizer.bit16_groups_flat[0].nbytes,
            "gradients": self.gradients,
            "whole_gradients": self.whole_gradients,
            "master_weights": self.optimizer.single_partition_of_fp32_groups[0].nbytes,
            "moments": sum(one["exp_avg"].nbytes + one["exp_avg_sq"].nbytes for one in state),
            "buckets": self.buckets,
        }


def storage_bytes(tensors):
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


@pytest.mark.processes
@pytest.mark.parametrize(("gpus", "variants"), [(1, ["stage 2"]), (2, list(VARIANTS)), (4, ["stage 2"])])
def test_each_line_is_what_the_engine_holds(tmp_path, demo_folder, gpus, variants):
    chosen = {name: VARIANTS[name] for name in variants}
    arguments = {"folder": str(tmp_path / "runs"), "data": str(demo_folder), "variants": chosen}
    ranks = run_ranks(gpus, held_by_the_engine, tmp_path / "found", **arguments)
    for name in variants:
        held = [rank[name] for rank in ranks]
        profile = profile_from_dict(held[0]["profile"])
        model, columns = profile.rvqvae.model, held[0]["in_features"]
        sizes = parameter_sizes(columns, model)
        assert sizes == held[0]["sizes"]
        plan = make_plan(profile, columns, gpus, CARD)
        assert max(rank["gradients"] for rank in held) <= plan.gradients_bytes
        whole = profile.zero_optimization.stage == 1 and profile.gradient_accumulation_steps > 1
        largest = "whole_gradients" if whole else "gradients"
        assert max(rank[largest] for rank in held) == plan.gradients_bytes, name
        for rank in held:
            assert rank["parameters"] == plan.parameters_bytes, name
            assert rank["master_weights"] + rank["moments"] == plan.optimizer_bytes, name
            assert rank["buckets"] == plan.buckets_bytes, name
            assert rank["codebooks"] == plan.codebooks_bytes and rank["staged"] == staged_count(model), name
            payload = {transfer.name: transfer.payload_bytes for transfer in plan.transfers}
            reduced = payload["gradients"] + payload["codebooks"]
            if gpus > 1:
                # In addition flags and norms, if there are any: a few bytes each.
                assert reduced <= rank["all_reduce"] <= reduced + 16, name
                assert rank["all_gather"] == payload["weights"], name


def test_traffic_of_a_ring():
    sent = [make_plan(load_profile("large"), 78, gpus, CARD).wire_bytes_per_step for gpus in (1, 7, 14, 56)]
    assert sent[0] == 0
    assert [round(one / 1e6) for one in sent[1:]] == [1205, 1306, 1381]


@pytest.mark.parametrize("name", ["baseline", "best", "wide", "large", "demo"])
def test_parts_add_up_and_fit(name):
    plan = make_plan(load_profile(name), 78, 7, CARD.with_memory(24 << 30))
    result = plan.to_dict()
    assert sum(result[f"{key}_bytes"] for key in KEYS) == result["total_bytes"]
    assert result["fits"] and result["optimizer_bytes"] == pytest.approx(12 * plan.parameter_count / 7, rel=1e-3)
    assert all(count >= 0 for count in result["overheads"].values())
    assert plan.allocated_bytes + sum(list(plan.overheads.values())[3:]) == plan.total_bytes


@pytest.mark.parametrize("override", ["rvqvae.training.gradient_checkpointing=false", "gradient_accumulation_steps=3"])
@pytest.mark.parametrize("memory", ["3GiB", "24GiB"])
def test_the_largest_micro_batch_fits_and_one_more_does_not(override, memory):
    profile, card = load_profile("wide", [override]), CARD.with_memory(parse_bytes(memory))
    largest = largest_micro_batch(profile, 78, 7, card)
    assert largest > 1
    assert make_plan(profile, 78, 7, card, largest).fits
    assert not make_plan(profile, 78, 7, card, largest + 1).fits


def test_several_lengths_of_windows_are_planned_for_by_their_longest_rounding():
    lengths = ["rvqvae.data.window_sizes=[64, 96, 160]", "rvqvae.training.gradient_checkpointing=false"]
    plan = make_plan(load_profile("baseline", lengths), 78, 7, CARD, 81)
    # 81 x 128 frames are 162 windows of 64, exactly 108 of 96, and 64.8 of 160.
    assert plan.largest_shape == (65, 160)
    longest = make_plan(load_profile("baseline", [lengths[1], "rvqvae.data.window_size=160"]), 78, 7, CARD, 65)
    for part in ("activations_bytes", "batch_bytes", "staged_vectors_bytes", "host_bytes", "flops_per_step"):
        assert getattr(plan, part) == getattr(longest, part), part
    most = plan.largest_micro_batch
    assert plan.with_micro_batch(most).fits and not plan.with_micro_batch(most + 1).fits


def test_where_nothing_fits():
    assert largest_micro_batch(load_profile("large"), 78, 7, CARD.with_memory(1 << 30)) == 0


def test_settings_move_the_lines_that_they_should():
    def plan_with(*overrides, gpus=7):
        return make_plan(load_profile("baseline", overrides), 78, gpus, CARD)

    plan = plan_with()
    assert plan_with("bf16.enabled=false").parameters_bytes == 2 * plan.parameters_bytes
    assert plan_with("rvqvae.training.gradient_checkpointing=false").activations_bytes > 2 * plan.activations_bytes
    # The largest two buckets in flight: a convolution that halves the rate; its bias and one of the stack behind it.
    neighbours = 2 * (512 * 512 * 4 + 512 * 512 * 3 + 2 * 512)
    assert plan_with("zero_optimization.reduce_bucket_size=1000000").buckets_bytes == neighbours
    assert plan_with(gpus=1).optimizer_bytes == 12 * plan.parameter_count
    # One communicator of torch's default group, one of DeepSpeed's copy of it.
    assert (plan_with(gpus=1).overheads["nccl_bytes"], plan.overheads["nccl_bytes"]) == (0, 2 * NCCL_BYTES)
    offloaded = plan_with('zero_optimization.offload_optimizer={"device": "cpu"}')
    assert offloaded.optimizer_bytes == offloaded.gradients_bytes == 0
    assert offloaded.host_bytes - plan.host_bytes == plan.optimizer_bytes
    averaged = plan_with('zero_optimization.offload_optimizer={"device": "cpu"}', "rvqvae.training.ema_decay=0.99")
    assert averaged.host_bytes - offloaded.host_bytes == -(-plan.parameter_count // averaged.gpus) * 4
    assert averaged.allocated_bytes == offloaded.allocated_bytes
    on_host = plan_with("activation_checkpointing.cpu_checkpointing=true")
    assert on_host.activations_bytes < plan.activations_bytes < on_host.activations_bytes + on_host.host_bytes
    assert on_host.host_bytes > plan.host_bytes


def test_an_average_of_the_weights_is_a_share_of_them():
    plain, averaged = (
        make_plan(load_profile("baseline", overrides), 78, 7, CARD)
        for overrides in ([], ["rvqvae.training.ema_decay=0.999"])
    )
    share = -(-plain.parameter_count // 7) * 4
    assert (plain.weight_average_bytes, averaged.weight_average_bytes) == (0, share)
    assert averaged.allocated_bytes == plain.allocated_bytes + share
    assert averaged.optimizer_bytes == plain.optimizer_bytes
