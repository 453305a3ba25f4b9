#!/usr/bin/env bash
# Runs the tests: finds or makes the Python environment; arguments go to pytest.
set -euo pipefail
unset CDPATH # with it `cd` may go elsewhere and print the folder
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/launch/environment.sh" dev
# The tests' ranks are CPU processes on every machine, and a rank with more threads than it has cores is very slow.
export DS_ACCELERATOR=${DS_ACCELERATOR:-cpu} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
cd "$root"
# One worker per core: tests of one process run beside those that start ranks. Arguments come last and override (-n 0: one by one).
workers=$(env -u OMP_NUM_THREADS nproc) # with it nproc would print its value
exec "$PYTHON" -m pytest -n $((workers < 8 ? workers : 8)) --dist worksteal "$@"
