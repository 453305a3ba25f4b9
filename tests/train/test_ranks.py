"""Agreement of several ranks: codebooks, losses, skipped steps, optimizer shards."""

import pytest

from tests.ranks import run_ranks, train_ranks
from tests.train.small import EXACT, SMALL, make_trainer, read_metrics

pytestmark = pytest.mark.processes


def _codebooks(run):
    from safetensors.torch import load_file

    return load_file(run / "tokenizer" / "model.safetensors")["quantizer.codebooks"]


@pytest.mark.parametrize(("nb_code", "steps"), [(8, 30), (64, 15), (1024, 15)])
def test_any_number_of_ranks_computes_the_same(tmp_path, demo_folder, nb_code, steps):
    """With few codes, with so many that a batch fills half of them, and with so many that the first codes need all
    windows.

    The runs use SiLU: if a ReLU's input is within rounding of 0, Adam turns the rounding into a step, and even one rank
    with weights that differ by rounding diverges. The same happens if two codes are equally near to a vector up to
    rounding; the more codes and steps, the sooner.
    """
    shapes = {1: (12, 1), 2: (3, 2), 3: (4, 1)}
    for ranks, (micro, accumulation) in shapes.items():
        flags = [*SMALL, *EXACT, f"--data_path={demo_folder}", f"--out={tmp_path}", f"--name={ranks}"]
        flags += [f"--batch_size={micro}", f"--gradient_accumulation_steps={accumulation}", f"--total_iter={steps}"]
        flags += ["--lr=0.001", f"--nb_code={nb_code}", "--activation=silu"]
        train_ranks(ranks, *flags, new_interpreters=nb_code == 64)
    reference = read_metrics(tmp_path / "1")
    assert [line["step"] for line in reference] == list(range(1, steps + 1))
    if nb_code == 8:
        assert reference[-1]["recons"] < 0.97 * reference[0]["recons"]
    for ranks in (2, 3):
        for mine, theirs in zip(read_metrics(tmp_path / str(ranks)), reference, strict=True):
            for key in ("loss", "recons", "velocity", "commit", "grad_norm"):
                assert mine[key] == pytest.approx(theirs[key], rel=1e-4), (ranks, mine["step"], key)
        difference = (_codebooks(tmp_path / str(ranks)) - _codebooks(tmp_path / "1")).abs().max()
        assert difference < 1e-4


def train_with_everything_on(folder, data):
    """Trains with level dropout, noise, dead codes and accumulation; prints how codebooks differ between ranks."""
    import torch
    import torch.distributed as dist

    flags = ["--batch_size=4", "--gradient_accumulation_steps=2", "--total_iter=12", "--quantize_dropout_prob=0.5"]
    flags += ["--sample_codebook_temp=0.1", "--nb_code=64", "--dead_code_threshold=0.5"]
    trainer = make_trainer(folder, data, flags)
    quantizer = trainer.model.quantizer
    replaced, active = [], []
    update = quantizer.update_codebooks

    def counted_update(**keywords):
        books, uses = quantizer.codebooks.clone(), quantizer.usage_counts.clone()
        update(**keywords)
        # The mean of an unused code does not change, except by rounding.
        unused, moved = quantizer.usage_counts == uses, (quantizer.codebooks - books).norm(dim=-1)
        replaced.append(int((unused & (moved > 1e-3 * books.norm(dim=-1))).sum()))

    def count_levels(module, latents, output):
        if module.training:
            active.append(int((output[1][0, 0] >= 0).sum()))

    quantizer.update_codebooks = counted_update
    quantizer.register_forward_hook(count_levels)
    trainer.train()
    differences = {}
    for name, buffer in trainer.model.named_buffers():
        everyones = [torch.empty_like(buffer) for _ in range(dist.get_world_size())]
        dist.all_gather(everyones, buffer.contiguous())
        differences[name] = [not torch.equal(other, buffer) for other in everyones]
    return {"differences": differences, "replaced": replaced, "active": active, "updates": int(quantizer.updates)}


def test_codebooks_are_bitwise_equal_on_all_ranks(tmp_path, demo_folder):
    for result in run_ranks(2, train_with_everything_on, tmp_path, folder=str(tmp_path / "run"), data=str(demo_folder)):
        assert result["updates"] == 12 and sum(result["replaced"]) > 0
        assert {2, 3} <= set(result["active"])
        assert "quantizer.codebooks" in result["differences"] and "quantizer.ema_sum" in result["differences"]
        assert not any(any(differs) for differs in result["differences"].values()), result["differences"]


COLLECTIVES = (
    *("all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "broadcast", "reduce", "gather"),
    *("reduce_scatter", "reduce_scatter_tensor", "scatter", "barrier", "send", "recv", "all_to_all"),
    *(
        "broadcast_object_list",
        "all_to_all_single",
        "monitored_barrier",
        "all_reduce_coalesced",
        "reduce_scatter_single",
    ),
    *("all_gather_single", "_all_gather_base", "_reduce_scatter_base"),
)


def count_collectives(folder, data):
    """The calls of torch.distributed in a training step, with the codebooks' update and without."""
    import torch.distributed as dist

    flags = ["--batch_size=4", "--gradient_accumulation_steps=2", "--total_iter=100", "--quantize_dropout_prob=0.5"]
    trainer = make_trainer(folder, data, flags)
    trainer.initialize_codebooks()
    calls = []

    def counted(name, function):
        def call(*arguments, **keywords):
            calls.append(name)
            return function(*arguments, **keywords)

        return call

    for name in COLLECTIVES:
        if hasattr(dist, name):
            setattr(dist, name, counted(name, getattr(dist, name)))

    def step():
        calls.clear()
        trainer.step()
        return sorted(calls)

    whole = [step() for _ in range(4)]
    trainer.model.quantizer.begin_update = lambda *_: None
    trainer.model.quantizer.update_codebooks = lambda **_: None
    return {"whole": whole, "without_update": [step() for _ in range(4)]}


def test_a_step_spends_one_collective_on_codebooks(tmp_path, demo_folder):
    arguments = {"folder": str(tmp_path / "run"), "data": str(demo_folder)}
    for result in run_ranks(2, count_collectives, tmp_path, **arguments):
        engines = result["without_update"][0]
        assert result["without_update"] == [engines] * 4
        assert result["whole"] == [sorted([*engines, "all_reduce"])] * 4


def train_with_a_nan_on_one_rank(folder, data, precision):
    """Feeds rank 1 a NaN in its third batch."""
    import torch

    trainer = make_trainer(folder, data, ["--batch_size=4", "--total_iter=6", f"--mixed_precision={precision}"])
    gather, given = trainer.loader.next, []

    def poisoned():
        batches = gather()
        given.append(1)
        if trainer.rank == 1 and len(given) == 3:
            batches[0][0, 0, 0] = float("nan")
        return batches

    trainer.loader.next = poisoned
    trainer.train()
    tensors = [*trainer.model.parameters(), *trainer.model.buffers()]
    finite = all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
    state = trainer.model.quantizer.state_dict()
    return {
        "finite": finite,
        "skipped": trainer.engine.skipped_steps,
        "updates": int(state["updates"]),
        "codebooks": state["codebooks"].flatten().tolist(),
    }


@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_a_nan_on_one_rank_is_skipped_by_all(tmp_path, demo_folder, precision):
    arguments = {"folder": str(tmp_path / "run"), "data": str(demo_folder), "precision": precision}
    first, second = run_ranks(2, train_with_a_nan_on_one_rank, tmp_path, **arguments)
    assert first["finite"] and second["finite"]
    assert first["skipped"] == second["skipped"] == 1
    assert first["updates"] == second["updates"] == 5
    assert first["codebooks"] == second["codebooks"]
    lines = read_metrics(tmp_path / "run")
    assert [line["skipped_steps"] for line in lines] == [0, 0, 1, 1, 1, 1]
    assert lines[2]["loss"] is None and lines[5]["loss"] is not None
    assert (
        "step 3 skipped" in (tmp_path / "run" / "run.log").read_text()
        if (tmp_path / "run" / "run.log").exists()
        else True
    )


def optimizer_bytes(folder, data):
    """Bytes of fp32 master weights and Adam moments on this rank, from the engine's own tensors."""
    trainer = make_trainer(folder, data, ["--batch_size=4", "--total_iter=1", "--width=64"])
    trainer.train()
    optimizer = trainer.engine.optimizer
    tensors = list(optimizer.single_partition_of_fp32_groups)
    for state in optimizer.optimizer.state.values():
        tensors += [state["exp_avg"], state["exp_avg_sq"]]
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    return {"bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors), "parameters": parameters}


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_each_rank_holds_its_share_of_the_optimizer(tmp_path, demo_folder, ranks):
    arguments = {"folder": str(tmp_path / "run"), "data": str(demo_folder)}
    for result in run_ranks(ranks, optimizer_bytes, tmp_path, **arguments):
        assert result["bytes"] == pytest.approx(12 * result["parameters"] / ranks, rel=0.05)
