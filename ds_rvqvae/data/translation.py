"""A figure's way through the world: positions, and the features that stand for them."""

import numpy as np


def translation_features(positions: np.ndarray) -> np.ndarray:
    """Root positions in metres `[frames, 3]` to x velocity, y height and z velocity.

    Velocities are metres a frame; the first frame, which has none before it, has 0.
    """
    features = positions.copy()
    features[1:, [0, 2]] = np.diff(positions[:, [0, 2]], axis=0)
    features[:1, [0, 2]] = 0
    return features


def translation_positions(features: np.ndarray, start: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """Root positions in metres `[frames, 3]` of what `translation_features` gives; `start` is the first x and z."""
    positions = features.astype(np.float64)
    positions[:, [0, 2]] = np.cumsum(positions[:, [0, 2]], axis=0) - positions[:1, [0, 2]] + start
    return positions
