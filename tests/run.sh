#!/usr/bin/env bash
# Runs the tests: finds or makes the Python environment; arguments go to pytest.
set -euo pipefail
unset CDPATH # with it `cd` may go elsewhere, and says where
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/launch/environment.sh" dev
# The tests' ranks are CPU processes on every machine, and a rank with more threads than its share of cores crawls.
export DS_ACCELERATOR=${DS_ACCELERATOR:-cpu} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
cd "$root"
# A worker a core: tests of one process run beside those that start ranks. Arguments come last and win (-n 0: one by one).
workers=$(env -u OMP_NUM_THREADS nproc) # which would take that for the number of cores
exec "$PYTHON" -m pytest -n $((workers < 8 ? workers : 8)) --dist worksteal "$@"
