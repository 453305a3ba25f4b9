"""`ds-rvqvae bench --host` on ranks."""

import pytest

from tests.ranks import run_ranks

pytestmark = pytest.mark.processes
_TINY = ["rvqvae.model.depth=1", "rvqvae.data.num_workers=1", "rvqvae.model.quantize_dropout_prob=0"]


def measured(settings: list[str]) -> dict:
    """In a rank: what is measured, without the rest of the machine's facts."""
    import torch

    from ds_rvqvae.bench.host import measure_host
    from ds_rvqvae.config.profile import load_profile
    from ds_rvqvae.model import nets

    torch.set_num_threads(1)
    before = nets.ROUND_TO_BF16
    found = measure_host(load_profile("demo", settings), rounds=2)
    assert nets.ROUND_TO_BF16 is before
    return found


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_step_is_measured_beside_the_loop_of_as_many_ranks(tmp_path, world_size):
    for found in run_ranks(world_size, measured, tmp_path, settings=_TINY):
        assert found["world_size"] == world_size and found["rounds"] == 2
        peer, other = ("plain", "ddp") if world_size == 1 else ("ddp", "plain")
        assert found[f"host_{other}_bf16_s"] is None
        assert 0 < found[f"host_{peer}_bf16_s"] < 10 and 0 < found["host_step_s"] < 10
        assert found["spread_s"].keys() == {"host_step", f"host_{peer}_bf16"}

        operations = dict(found["operations"])
        assert operations.pop("all") == sum(operations.values()) == sum(found["operations_by_kind"].values())
        assert operations.keys() >= {"forward: encoder", "forward: quantizer", "forward: decoder", "engine.step"}
        # Encoder: the first, two down-samplings with a block of two each, the last. Decoder: as many, and one more.
        assert found["operations_by_kind"]["convolution_backward"] == 8 + 9
        assert found["operations_with_checkpointing"] and not found["activation_checkpointing"]
        assert operations["backward: recomputation"] >= 4 * 4

        waits = found["host_waits"]
        assert waits["ours"] == 0 and sum(waits["where"].values()) == waits["ours"] + waits["deepspeed"]
