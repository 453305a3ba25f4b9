"""The operations and waits that `ds-rvqvae bench --host` counts, on functions whose operations are known."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from ds_rvqvae import ResidualQuantizer
from ds_rvqvae.bench.counting import BACKWARD, RECOMPUTATION, REST, OperationCounter, _taken


def counted(function: Callable[[], object], part: str | None = None):
    counter = OperationCounter()
    called = function if part is None else counter.around(part, function)
    with counter:
        called()
    return _taken(counter)


def test_views_and_allocations_are_left_out_and_what_fills_memory_counts():
    tensor = torch.ones(2, 6)

    def work() -> None:
        tensor.t().unsqueeze(0)[0].view(6, 2).detach().split(2)
        torch.empty(3)
        torch.empty_like(tensor)
        torch.zeros(3)
        (tensor * 2).add_(1)

    found = counted(work)
    assert found.kinds == {"zeros": 1, "mul": 1, "add_": 1}
    assert found.operations == {REST: 3, "all": 3}


def test_an_operator_of_ones_own_counts_as_the_operations_it_dispatches():
    with torch.library._scoped_library("ds_rvqvae_made", "DEF") as library:
        library.define("twice_and_one(Tensor x) -> Tensor")
        library.impl("twice_and_one", lambda x: x.view(-1).mul(2).add(1), "CPU")
        found = counted(lambda: torch.ops.ds_rvqvae_made.twice_and_one(torch.ones(2, 2)))
    assert found.kinds == {"ones": 1, "mul": 1, "add": 1}


def test_the_backward_pass_is_split_from_what_it_computes_again():
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    motion = torch.ones(2, 4, requires_grad=True)
    plain, again = inner(motion).sum(), torch.utils.checkpoint.checkpoint(inner, motion, use_reentrant=False).sum()
    gradients = counted(lambda: torch.autograd.backward(plain), BACKWARD).operations
    assert gradients.keys() == {BACKWARD, "all"} and gradients["all"] > 3
    both = counted(lambda: torch.autograd.backward(again), BACKWARD).operations
    # The same gradients, and the layer once more: addmm and relu.
    assert both[RECOMPUTATION] == 2


@pytest.mark.parametrize("owner", ["ours", "deepspeed"])
def test_a_read_of_the_host_is_found_where_it_is(owner):
    from ds_rvqvae.bench.counting import _ROOTS

    package = {"ours": "ds_rvqvae", "deepspeed": "deepspeed"}[owner]
    code = "\ndef read(x):\n    return float(x) if x > 0 else 0\n"
    made: dict[str, Callable[..., object]] = {}
    exec(compile(code, f"{_ROOTS[owner]}/made/reading.py", "exec"), made)
    number = torch.tensor(2.0)
    waits = counted(lambda: made["read"](number)).host_waits
    assert waits.where == {f"{package}/made/reading.py:3": 2}  # of the comparison and of the number
    assert (waits.ours, waits.deepspeed) == ((2, 0) if owner == "ours" else (0, 2))
    assert counted(lambda: number + 1).host_waits == (0, 0, {})


def test_a_synchronisation_is_a_wait():
    counter = OperationCounter()
    counter.waiting(lambda: None)()
    assert sum(counter.waits.values()) == 1


def test_a_quantizers_pass_and_update_are_few_operations_at_any_number_of_levels():
    latents = torch.randn(1, 64, 32, dtype=torch.bfloat16, requires_grad=True)
    found = {}
    for levels in (2, 6):
        quantizer = ResidualQuantizer(levels, 64, 32)
        quantizer.initialize_codebooks(torch.randn(1, 256, 32))
        for step in range(2):  # the first makes what later ones use again
            quantizer.set_step(0, step)
            passed = counted(lambda quantizer=quantizer: quantizer(latents)).operations["all"]
            found[levels] = passed, counted(quantizer.update_codebooks).operations["all"]
    # A level of a pass: distances, the least of them, its vector, what that leaves.
    assert found[6][0] - found[2][0] == 4 * 4 and found[6][0] <= 49
    assert found[6][1] == found[2][1] <= 63
