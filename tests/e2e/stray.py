"""Lines in the output of a training that are not ours."""

import re

_PROGRESS = (
    *("motion .+ clips", "checks passed, starting ", "still .+ s$", "(opening|joining|building|finding|scoring) the "),
    *("importing torch and DeepSpeed$", "taking the first step$", "run: ", r"\d+ ranks?, ZeRO stage ", r"[\d,]+ param"),
    *(r"step \d+, val: ", r"\S+: step \d+ of \d+, ", "memory of each rank over ", r" +peak resident$", r"  rank \d+ "),
)
_RESULTS = (
    *(r"val: \d+ clips?, ", " +untrained +trained$", "L1, norm", "angle error, ", "velocity error ", "levels  bits/s "),
    *(r"\d+( +[\d.]+%?)+$", "(picture|tokenizer|curves): ", "next:$", "  .*ds-rvqvae (render|encode|evaluate) "),
)
_OURS = re.compile("|".join((*_PROGRESS, *_RESULTS, "$")))


def stray_lines(said: str) -> list[str]:
    """Returns the lines that this project does not print."""
    return [line for line in said.splitlines() if not _OURS.match(line)]
