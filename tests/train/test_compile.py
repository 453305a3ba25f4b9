"""`--compile` with the real compiler: nets that are compiled into an empty folder compute what they do without it."""

import shutil

import pytest

from tests.ranks import run_ranks
from tests.train.small import EXACT, SMALL

pytestmark = pytest.mark.processes
STEPS = 4
_FLAGS = [*SMALL, *EXACT, "--batch_size=4", "--width=16", "--depth=1", "--lr=0.001", "--compile_mode=reduce-overhead"]
CLOSE = 1e-4
"""Relative: compiled code sums in another order, and Adam's steps carry the difference on."""


def steps_with_and_without(folder: str, data: str) -> dict:
    """In a rank: what `bench --compile` finds; what the compiler noted of CUDA graphs."""
    import os

    os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/compiled"
    import torch._inductor.config
    from torch._dynamo.utils import counters

    from ds_rvqvae.bench.compiled import measure_compiled
    from ds_rvqvae.config.request import read_training_flags

    torch._inductor.config.compile_threads = 1  # no processes of the compiler's own
    profile = read_training_flags([*_FLAGS, f"--data_path={data}"]).request().profile
    return {**measure_compiled(profile, rounds=2, steps=STEPS), "skips": counters["inductor"]["cudagraph_skips"]}


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_compiled_nets_train_alike(tmp_path, demo_folder):
    arguments = {"folder": str(tmp_path), "data": str(demo_folder)}
    (found,) = run_ranks(1, steps_with_and_without, tmp_path / "results", **arguments)
    plain, compiled = found["losses"]["uncompiled"], found["losses"]["compiled"]
    assert plain[0] != plain[-1] and len(plain) == STEPS
    assert compiled == pytest.approx(plain, rel=CLOSE) and found["loss_difference"] <= CLOSE
    # The encoder and the decoder; the quantizer between them is left out.
    assert (found["graphs"], found["graph_breaks"], found["recompilations"]) == (2, 1, 0)
    assert 0 < found["step_s"] < found["first_step_s"] and found["uncompiled_step_s"] > 0
    # The mode asks for CUDA graphs, which a CPU cannot have.
    assert found["mode"] == "reduce-overhead" and found["skips"] > 0
    assert list((tmp_path / "compiled").rglob("*.so"))
