"""What the verbs about profiles share: how wide the motion is, by a flag, by motion, or as SMPL-X data are."""

import argparse

from ds_rvqvae.errors import UserError
from ds_rvqvae.profile import Profile


def add_column_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `--in_features` and `--data_path`."""
    parser.add_argument(
        "--in_features", type=int, metavar="N", help="columns of the motion (default: those of the body part in SMPL-X)"
    )
    parser.add_argument("--data_path", metavar="PATH", help="motion or a store whose columns are counted")


def columns_of(args: argparse.Namespace, profile: Profile) -> int:
    """The columns that the flags ask for.

    Raises:
        UserError: columns that cannot be known; see `columns_in_use`.
    """
    if args.in_features is not None:
        if args.in_features < 1:
            raise UserError(f"--in_features {args.in_features}: give 1 or more")
        return args.in_features
    from ds_rvqvae.data.columns import columns_in_use

    data = profile.rvqvae.data
    # The motion that a profile names may lie on another machine, and is looked at only where nothing else tells.
    is_own = data.body_part in (data.body_parts or ())
    return columns_in_use(data, args.data_path or (data.path if is_own else None))
