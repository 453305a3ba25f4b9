"""A rehearsal has CPU ranks for GPUs, the tests' stand-in for the driver, and a played nvidia-smi."""

import os
from pathlib import Path

from ds_rvqvae.errors import UserError
from tests.gpu.stand_in import StandIn, compile_library

_NVIDIA_SMI = """#!/bin/sh
# Plays `nvidia-smi --query-gpu=index,name,memory.total,memory.used --format=csv,noheader,nounits`.
for index in 0 1 2 3 4 5 6 7; do
  echo "$index, NVIDIA GeForce RTX 4090, 24564, 1"
done
"""


class Rehearsal:
    """Files of a rehearsal in a folder, and the variables with which commands use them.

    Args:
        folder: exists.
        ranks: CPU slots of the machine.

    Raises:
        UserError: there is no C compiler.
    """

    def __init__(self, folder: Path, ranks: int) -> None:
        (folder / "driver").mkdir()
        library = compile_library(folder / "driver")
        if library is None:
            raise UserError("--rehearse needs a C compiler (cc, gcc or clang) for its stand-in for the driver")
        self.driver = StandIn(library, folder / "cards.txt")
        self.driver.play()
        programs = folder / "bin"
        programs.mkdir()
        (programs / "nvidia-smi").write_text(_NVIDIA_SMI)
        (programs / "nvidia-smi").chmod(0o755)
        self.environment = {
            "DS_ACCELERATOR": "cpu",
            "LOCAL_SIZE": str(ranks),
            "OMP_NUM_THREADS": "1",
            "LD_LIBRARY_PATH": str(library.parent),
            "NVML_STAND_IN": str(self.driver.file),
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        }
