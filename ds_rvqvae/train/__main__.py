import sys

from ds_rvqvae.train.run import main

if __name__ == "__main__":
    sys.exit(main())
