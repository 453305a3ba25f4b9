"""Proves a machine: `bash tests/on_gpu.sh` runs the checks of this package on its GPUs and writes a report."""
