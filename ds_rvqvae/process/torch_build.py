"""The installed torch, read without importing it: version, CUDA, whether this project was tested with it."""

import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from ds_rvqvae.errors import UserError

OLDEST, NEWEST = (2, 6), (2, 13)
"""The oldest and the newest torch on which the tests were run."""
NEWEST_FOR_CUDA_12 = "2.10.0"
"""The last torch whose package on the default index is built for CUDA 12 (12.8): 2.11 and later ask for CUDA 13."""
CHOICE = "DS_RVQVAE_TORCH"
"""The variable with which `launch/environment.sh` makes `.venv` with another torch."""
_LEAST_DRIVERS = {11: 450, 12: 525, 13: 580}
"""The oldest driver for each major version of CUDA, as NVIDIA documents ("minor version compatibility")."""


@dataclass(frozen=True)
class Build:
    """The torch that ranks will import."""

    version: str
    cuda: str | None
    """The CUDA version it was built with; None if it was built without CUDA."""

    @classmethod
    def read(cls) -> "Build":
        """Reads torch's `version.py` as text, because importing torch takes seconds. `version` is empty if the file
        does not tell."""
        spec = importlib.util.find_spec("torch")
        file = Path(spec.origin).with_name("version.py") if spec and spec.origin else Path()
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        version = re.search(r"^__version__ *= *['\"](.+?)['\"]", text, re.MULTILINE)
        cuda = re.search(r"^cuda\b.*= *['\"](.+?)['\"]", text, re.MULTILINE)
        return cls(version[1] if version else "", cuda[1] if cuda else None)

    def can_use_cards(self, serves: str) -> bool:
        """Returns whether it can use GPUs whose driver supports CUDA up to `serves`; that is empty if the driver does
        not report it."""
        return self.cuda is not None and (not serves or numbers_of(serves)[0] >= numbers_of(self.cuda)[0])

    def way_on(self, serves: str) -> str:
        """Returns what to do if the driver supports CUDA only up to `serves`, which is too old for this torch."""
        least = _LEAST_DRIVERS.get(numbers_of(self.cuda or "")[0] if self.cuda else 0)
        update = f"update the driver to {least} or newer" if least else "update the driver"
        if numbers_of(serves)[0] != 12:
            return update
        if (Path(sys.prefix) / "installed").is_file():  # written by environment.sh
            return f"{update}, or start with {CHOICE}={NEWEST_FOR_CUDA_12} once, which makes .venv again for CUDA 12"
        return f"{update}, or install a torch for CUDA 12 here: pip install torch=={NEWEST_FOR_CUDA_12}"


def check_torch(build: Build | None = None) -> str:
    """Returns a warning if the installed torch is newer than those that the tests were run on; else an empty text.

    Args:
        build: a value in place of the installed torch.

    Raises:
        UserError: it is older than the oldest of these.
    """
    build = build or Build.read()
    version = numbers_of(build.version)
    if len(version) < 2 or OLDEST <= version <= NEWEST:  # a version without numbers is a build of somebody's own
        return ""
    tested = f"tested with torch {_text(OLDEST)} to {_text(NEWEST)}"
    if version > NEWEST:
        return f"torch {build.version} is newer than this version of ds_rvqvae, which was {tested}"
    newer = f"pip install 'torch>={_text(OLDEST)}'"
    raise UserError(f"torch {build.version} in {sys.prefix} is too old: ds_rvqvae was {tested}; {newer}")


def numbers_of(version: str) -> tuple[int, ...]:
    """The first two numbers of a version: `(2, 13)` of `2.13.0+cu130`."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
