"""Provide a home folder and a user name, which libraries need and which a container or batch system may not set."""

import getpass
import os
from collections.abc import MutableMapping
from pathlib import Path

CACHE_VARIABLE = "DS_RVQVAE_CACHE"
"""Environment variable with the folder of our cache, which is in the user's home by default."""


def has_home() -> bool:
    """Returns whether this process's user has a home folder, from HOME or the system's list of users."""
    try:
        Path.home()
        return True
    except RuntimeError:
        return False


def expanded(path: str | Path) -> Path:
    """Returns a path with `~` or `~user` at its beginning expanded; unchanged if that user has no home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def settle_home(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets environment variables that libraries need. If the user has no home folder, HOME is put into the cache
    folder, or, if no cache folder is set, matplotlib gets a folder among the temporary files. If the user has no name,
    the user id becomes the name."""
    cache = environment.get(CACHE_VARIABLE)
    if not has_home():
        if cache:
            environment["HOME"] = str(Path(cache).absolute() / "home")
        else:  # only matplotlib fails if it finds no folder for its files
            import tempfile

            environment.setdefault("MPLCONFIGDIR", str(Path(tempfile.gettempdir()) / f"matplotlib-{os.getuid()}"))
    try:
        getpass.getuser()
    except (KeyError, OSError):  # KeyError up to Python 3.12
        environment["LOGNAME"] = str(os.getuid())
