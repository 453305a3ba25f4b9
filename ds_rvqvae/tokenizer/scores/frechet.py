"""Fréchet distance between the features of motion and of its reconstruction.

Source: Heusel et al. 2017, "GANs trained by a two time-scale update rule converge to a local Nash equilibrium" (FID);
for gestures Yoon et al. 2020 (FGD). The meaning of the number depends on the features: distances from different
encoders, from windows of different lengths or from few samples cannot be compared.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ds_rvqvae.errors import UserError

_WINDOWS_AT_ONCE = 64


class Moments:
    """Count, mean and covariance of vectors that are added in batches, fp64 (Chan et al. 1983)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = np.zeros(0)
        self._scatter = np.zeros((0, 0))

    def add(self, vectors: NDArray[np.floating[Any]]) -> None:
        """Adds `[N, D]`, N > 0."""
        vectors = vectors.astype(np.float64)
        mean = vectors.mean(axis=0)
        centred = vectors - mean
        scatter = centred.T @ centred
        if self.count:
            apart, total = mean - self.mean, self.count + len(vectors)
            scatter += self._scatter + np.outer(apart, apart) * (self.count * len(vectors) / total)
            mean = self.mean + apart * (len(vectors) / total)
        self.count, self.mean, self._scatter = self.count + len(vectors), mean, scatter

    @property
    def covariance(self) -> NDArray[np.float64]:
        """`[D, D]`, unbiased; zeros for a single vector."""
        return self._scatter / max(self.count - 1, 1)


def frechet_distance(first: Moments, second: Moments, offset: float = 0.0) -> float:
    """Returns the squared Fréchet (2-Wasserstein) distance of two Gaussians, |m - n|² + tr(A + B - 2 (A B)^½), >= 0.

    The trace of the root comes from the eigenvalues of A^½ B A^½, a symmetric matrix with the eigenvalues of A B.
    Unlike a general matrix root they are real even if the covariances are singular, as those of few samples are.

    Args:
        offset: added to the diagonals of A and B under the root, but not in the traces, as EMAGE's evaluation does.
    """
    diagonal = offset * np.eye(len(first.mean))
    values, vectors = np.linalg.eigh(first.covariance + diagonal)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ (second.covariance + diagonal) @ root), 0)).sum()
    spread = np.trace(first.covariance) + np.trace(second.covariance) - 2 * shared
    return max(float(((first.mean - second.mean) ** 2).sum() + spread), 0.0)


class FrechetFeatures:
    """Gathers features of motion and reconstruction, window by window.

    Args:
        file: a TorchScript module that takes motion `[B, T, C]`, fp32, in the data's own units, and returns `[B, D]`,
            or `[B, T', D]`, where every time step is a sample. It is code; loading it runs it.
        window: frames T per window. Windows follow one another; the remainder at a clip's end is not used.

    Raises:
        UserError: no such file, or not TorchScript.
    """

    def __init__(self, file: Path, window: int) -> None:
        self.file, self.window = file, window
        try:
            module = torch.jit.load(str(file), map_location="cpu")  # type: ignore[no-untyped-call] # as torch has it
            self._encoder: torch.nn.Module = module.eval()
        except (OSError, ValueError, RuntimeError) as error:
            reason = "no such file" if not file.is_file() else f"not a TorchScript module ({_first_line(error)})"
            raise UserError(f"--features {file}: {reason}; torch.jit.script(encoder).save(…) makes one") from None
        self.clear()

    def clear(self) -> None:
        """Removes the gathered features, for the next tokenizer."""
        self.truth, self.found = Moments(), Moments()

    def add(self, truth: Tensor, found: Tensor) -> None:
        """Adds a clip and its reconstruction, `[T, C]` each, in the data's own units.

        Raises:
            UserError: the encoder does not take them, or does not return finite `[B, D]` or `[B, T', D]`.
        """
        for moments, motion in ((self.truth, truth), (self.found, found)):
            count = len(motion) // self.window
            windows = motion[: count * self.window].float().cpu().reshape(count, self.window, motion.shape[1])
            for batch in torch.split(windows, _WINDOWS_AT_ONCE) if count else ():
                moments.add(self._features(batch))

    def scores(self) -> dict[str, Any]:
        """Returns `frechet`, the number of samples and dimensions, and the window's length.

        Raises:
            UserError: fewer than two samples, as when no clip is as long as a window.
        """
        samples, dimensions = self.truth.count, len(self.truth.mean)
        if samples < 2:
            raise UserError(
                f"--feature_window {self.window}: {samples} samples of features are too few for a distance; give fewer "
                "frames, or a split with longer clips"
            )
        return {
            "frechet": frechet_distance(self.truth, self.found),
            "frechet_samples": samples,
            "frechet_dimensions": dimensions,
            "frechet_window": self.window,
        }

    @torch.no_grad()
    def _features(self, windows: Tensor) -> NDArray[np.float32]:
        shape = list(windows.shape)
        try:
            features = self._encoder(windows)
        except Exception as error:  # the user's code can raise anything
            raise UserError(f"--features {self.file}: does not take motion {shape}: {_last_line(error)}") from None
        if not isinstance(features, Tensor) or features.dim() not in (2, 3) or len(features) != len(windows):
            gave = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise UserError(f"--features {self.file}: returns {gave} for motion {shape}, not [B, D] or [B, T', D]")
        vectors = features.float().reshape(-1, features.shape[-1]).numpy()
        if not vectors.size or not np.isfinite(vectors).all():
            raise UserError(f"--features {self.file}: returns {'NaN or infinite' if vectors.size else 'no'} features")
        if len(self.truth.mean) not in (0, vectors.shape[1]):
            raise UserError(f"--features {self.file}: returns {len(self.truth.mean)} features, then {vectors.shape[1]}")
        return vectors


def frechet_warning(scores: dict[str, Any], kind: str = "frechet") -> str | None:
    """Returns a warning if a distance is not reliable, else None.

    Args:
        kind: frechet, of `--features`, or evaluator, of a published one.
    """
    samples, dimensions = scores[f"{kind}_samples"], scores[f"{kind}_dimensions"]
    if samples > dimensions:
        return None
    return (
        f"Fréchet distance of {samples} samples in {dimensions} dimensions: the covariances are singular, so the "
        "distance is not reliable; score a larger split"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].partition(". ")[0]


def _last_line(error: Exception) -> str:
    """Returns TorchScript's own message, which comes after its traceback."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
