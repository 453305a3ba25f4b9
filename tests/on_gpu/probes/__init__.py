"""Functions that run in processes of their own, with torch and on the GPU: what no public command tells.

`python -m tests.on_gpu.probes NAME ARGUMENTS FILE` calls one and writes its result as JSON.
"""
