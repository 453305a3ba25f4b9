#!/usr/bin/env python3
"""Starts training on GPUs 1-7 under the deepspeed launcher; `--help` lists the flags."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("ds_rvqvae") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

missing = [
    name for name in ("torch", "deepspeed", "pydantic", "pynvml", "psutil") if not importlib.util.find_spec(name)
]
if missing:
    print(
        f"error: {sys.executable} has no {', '.join(missing)}; run bash launch/train_8x4090.sh, which installs them",
        file=sys.stderr,
    )
    sys.exit(2)

from ds_rvqvae.launch.main import main  # noqa: E402  - torch and the rest are not imported before the check above

if __name__ == "__main__":
    sys.exit(main())
