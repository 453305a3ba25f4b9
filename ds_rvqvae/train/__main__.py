import sys

from ds_rvqvae.train.rank import main

if __name__ == "__main__":
    sys.exit(main())
