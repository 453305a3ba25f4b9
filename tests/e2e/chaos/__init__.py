"""Starts real two-rank runs, kills them at random moments and compares what they end with.

`python -m tests.e2e.chaos --rounds 60 --seed 0 --report docs/reports/kills.md`
"""
