#!/usr/bin/env bash
# Proves this machine's GPUs: runs the checks of tests/on_gpu and writes a report. --help lists the flags.
set -euo pipefail
unset CDPATH # with it `cd` may go elsewhere and print the folder
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/launch/environment.sh" ""
exec "$PYTHON" "$root/tests/on_gpu" "$@"
