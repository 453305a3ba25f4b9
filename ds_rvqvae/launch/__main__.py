"""`python -m ds_rvqvae.launch`."""

import sys

from ds_rvqvae.launch.main import main

if __name__ == "__main__":
    sys.exit(main())
