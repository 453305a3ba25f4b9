"""Measures a training step and its parts beside a plain PyTorch loop: the same as `ds-rvqvae bench`, for a checkout.

python benchmarks/step.py [PROFILE] [--json [FILE]] [...]
"""

import sys

from ds_rvqvae.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "bench")
    sys.exit(main())
