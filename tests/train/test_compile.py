"""`--compile` with the real compiler: nets that are compiled into an empty folder compute what they do without it."""

import shutil

import pytest

from tests.ranks import run_ranks
from tests.train.small import EXACT, make_trainer

pytestmark = pytest.mark.processes
STEPS = 4
_FLAGS = [*EXACT, "--batch_size=4", f"--total_iter={STEPS}", "--width=16", "--depth=1", "--lr=0.001"]
CLOSE = 1e-4
"""Relative: compiled code sums in another order, and Adam's steps carry the difference on."""


def steps_with_and_without(folder: str, data: str) -> dict:
    """In a rank: the losses of the first steps, not compiled and compiled; what the compiler noted."""
    import os

    os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/compiled"
    import torch._inductor.config
    from torch._dynamo.utils import counters

    torch._inductor.config.compile_threads = 1  # no processes of the compiler's own
    losses = []
    for flags in ([], ["--compile", "--compile_mode=reduce-overhead"]):
        trainer = make_trainer(f"{folder}/run{len(losses)}", data, [*_FLAGS, *flags])
        trainer.initialize_codebooks()
        losses.append([])
        for step in range(STEPS):
            losses[-1].append({name: float(loss) for name, loss in trainer.step()._asdict().items()})
            if flags and not step:
                torch._dynamo.config.error_on_recompile = True  # from now on
        trainer.close()
    graphs = counters["stats"]["unique_graphs"]
    breaks, skips = sum(counters["graph_break"].values()), counters["inductor"]["cudagraph_skips"]
    return {"losses": losses, "graphs": graphs, "breaks": breaks, "skips": skips}


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_compiled_nets_train_alike(tmp_path, demo_folder):
    arguments = {"folder": str(tmp_path), "data": str(demo_folder)}
    (rank,) = run_ranks(1, steps_with_and_without, tmp_path / "results", **arguments)
    plain, compiled = rank["losses"]
    assert plain[0]["loss"] != plain[-1]["loss"]
    for one, other in zip(plain, compiled, strict=True):
        assert other == {name: pytest.approx(value, rel=CLOSE) for name, value in one.items()}
    # The encoder and the decoder; the quantizer between them is left out.
    assert (rank["graphs"], rank["breaks"]) == (2, 1)
    # The mode asks for CUDA graphs, which a CPU cannot have.
    assert rank["skips"] > 0
    assert list((tmp_path / "compiled").rglob("*.so"))
