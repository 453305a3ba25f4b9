"""`python -m ds_rvqvae.cli`."""

import sys

from ds_rvqvae.cli import main

if __name__ == "__main__":
    sys.exit(main())
