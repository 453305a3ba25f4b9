"""Calls one probe; see the package."""

import json
import os
import sys
from pathlib import Path

from ds_rvqvae.process.tolerance import reason_of
from tests.on_gpu.probes import collectives, devices, kernels, training

_MODULES = (devices, kernels, training, collectives)


def main(name: str, arguments: str, file: str) -> int:
    function = next(getattr(module, name) for module in _MODULES if hasattr(module, name))
    try:
        result = function(**json.loads(arguments))
    except Exception as error:
        if os.environ.get("DS_RVQVAE_DEBUG"):
            raise
        print(f"error: {reason_of(error)}", file=sys.stderr)
        return 1
    unfinished = Path(f"{file}.unfinished")
    unfinished.write_text(json.dumps(result))
    unfinished.rename(file)
    sys.stdout.flush()
    # An orderly exit sometimes aborts while gloo's threads are running.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
