"""A home folder and a user's name, which libraries ask for and a container or a batch system may not give."""

import getpass
import os
from collections.abc import MutableMapping
from pathlib import Path

CACHE_VARIABLE = "DS_RVQVAE_CACHE"
"""Environment variable with the folder that our cache is kept in, in place of one in the user's home."""


def has_home() -> bool:
    """Whether this process's user has a home folder, as HOME or the system's list of users says."""
    try:
        Path.home()
        return True
    except RuntimeError:
        return False


def expanded(path: str | Path) -> Path:
    """A path with the folder that `~` or `~user` at its beginning means; unchanged where there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def settle_home(environment: MutableMapping[str, str] = os.environ) -> None:
    """Gives libraries a home in the cache folder, where one is named and the user has none, or else a place in the
    folder of temporary files for matplotlib; and the user's number for a name, where there is none."""
    cache = environment.get(CACHE_VARIABLE)
    if not has_home():
        if cache:
            environment["HOME"] = str(Path(cache).absolute() / "home")
        else:  # matplotlib alone gives up where it finds no place for what it keeps
            import tempfile

            environment.setdefault("MPLCONFIGDIR", str(Path(tempfile.gettempdir()) / f"matplotlib-{os.getuid()}"))
    try:
        getpass.getuser()
    except (KeyError, OSError):  # KeyError up to Python 3.12
        environment["LOGNAME"] = str(os.getuid())
