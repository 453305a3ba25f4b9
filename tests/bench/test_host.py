"""`ds-rvqvae bench --host` on ranks."""

import pytest

from ds_rvqvae.bench.host import buckets_of, measure_host, shrunk
from ds_rvqvae.config.profile import load_profile
from ds_rvqvae.errors import UserError
from tests.ranks import run_ranks

pytestmark = pytest.mark.processes
MOST_OPERATIONS = 700
"""Operations of a step of `baseline`, with activation checkpointing, on one rank."""


def measured() -> dict:
    """In a rank: what is measured of `baseline`."""
    import torch

    from ds_rvqvae.bench.host import measure_host
    from ds_rvqvae.config.profile import load_profile
    from ds_rvqvae.model import nets

    torch.set_num_threads(1)
    before = nets.ROUND_TO_BF16
    found = measure_host(load_profile("baseline"), rounds=2)
    assert nets.ROUND_TO_BF16 is before
    return found


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_step_is_measured_beside_the_loop_of_as_many_ranks(tmp_path, world_size):
    for found in run_ranks(world_size, measured, tmp_path):
        assert found["world_size"] == world_size and found["rounds"] == 2
        peer, other = ("plain", "ddp") if world_size == 1 else ("ddp", "plain")
        assert found[f"host_{other}_bf16_s"] is None
        assert 0 < found[f"host_{peer}_bf16_s"] < 10 and 0 < found["host_step_s"] < 10
        assert found["spread_s"].keys() == {"host_step", f"host_{peer}_bf16"}

        operations = dict(found["operations"])
        assert operations.pop("all") == sum(operations.values()) == sum(found["operations_by_kind"].values())
        assert operations.keys() >= {"forward: encoder", "forward: quantizer", "forward: decoder", "engine.step"}
        # Encoder: the first, two down-samplings with three blocks of two each, the last. Decoder: one more.
        assert found["operations_by_kind"]["convolution_backward"] == 16 + 17
        assert found["operations_with_checkpointing"] and not found["activation_checkpointing"]
        assert operations["backward: recomputation"] >= 4 * 3 * 4
        assert found["operations"]["all"] <= MOST_OPERATIONS

        waits = found["host_waits"]
        assert (waits["ours"], waits["deepspeed"]) == (0, 1), "whether the norm is finite, by DeepSpeed's function"
        assert sum(waits["where"].values()) == 1


def test_buckets_of_the_profiles():
    assert [buckets_of(load_profile(name)) for name in ("baseline", "wide", "large", "demo")] == [7, 16, 13, 1]
    assert buckets_of(shrunk(load_profile("large"))) == 1


def test_a_loop_in_bf16_is_not_compared_with_a_step_in_fp32():
    with pytest.raises(UserError, match="leave the loop out by --no_plain"):
        measure_host(load_profile("demo", ["bf16.enabled=false"]))
