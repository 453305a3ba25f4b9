import sys

from ds_rvqvae.config.request import read_training_flags

if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        read_training_flags()  # before torch is imported

    from ds_rvqvae.train.rank import main

    sys.exit(main())
