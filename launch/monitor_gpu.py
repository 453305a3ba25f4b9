#!/usr/bin/env python3
"""Shows the GPUs of this machine and their processes; `--help` lists the flags."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("ds_rvqvae") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

missing = [name for name in ("pynvml", "psutil", "pydantic", "rich") if not importlib.util.find_spec(name)]
if missing:
    print(
        f"error: {sys.executable} has no {', '.join(missing)}; use the environment that launch/train_8x4090.sh makes: "
        ".venv/bin/python launch/monitor_gpu.py",
        file=sys.stderr,
    )
    sys.exit(2)

try:
    from ds_rvqvae.gpu.monitor import main
except KeyboardInterrupt:
    sys.exit(0)

if __name__ == "__main__":
    sys.exit(main())
