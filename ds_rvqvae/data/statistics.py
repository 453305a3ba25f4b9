"""Mean and standard deviation of many frames in one pass."""

import numpy as np

_BLOCK = 16_384
"""Frames at a time: bounds the float64 copy."""


class RunningStatistics:
    """Mean and std a column, in float64, by merging blocks.

    Source: T. Chan, G. Golub, R. LeVeque, "Algorithms for Computing the Sample Variance", 1983.
    """

    def __init__(self, columns: int):
        self.count = 0
        self._mean = np.zeros(columns)
        self._squares = np.zeros(columns)

    def add(self, frames: np.ndarray) -> None:
        """Takes frames `[frames, columns]`."""
        for start in range(0, len(frames), _BLOCK):
            block = frames[start : start + _BLOCK].astype(np.float64)
            mean = block.mean(axis=0)
            squares = np.square(block - mean).sum(axis=0)
            total = self.count + len(block)
            difference = mean - self._mean
            self._squares += squares + np.square(difference) * (self.count * len(block) / total)
            self._mean += difference * (len(block) / total)
            self.count = total

    def mean_and_std(self) -> tuple[np.ndarray, np.ndarray]:
        """float32 `[columns]` each; the std is the population's (divided by the count)."""
        return self._mean.astype(np.float32), np.sqrt(self._squares / max(self.count, 1)).astype(np.float32)
