#!/usr/bin/env bash
# Trains on GPUs 1-7: finds or makes the Python environment, then passes all flags to train_8x4090.py (--help lists them).
set -euo pipefail
unset CDPATH # with it `cd` may go elsewhere and print the folder
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/environment.sh" ""
exec "$PYTHON" "$here/train_8x4090.py" "$@"
