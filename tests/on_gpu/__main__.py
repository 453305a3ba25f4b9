"""The program behind `bash tests/on_gpu.sh`; it runs from any folder."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python has put this folder, or the working folder, in front: neither is the place of the packages.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from ds_rvqvae.process.command import begin_program, run_program

    begin_program()
    from tests.on_gpu.program import main

    run_program(lambda: main(sys.argv[1:]))
