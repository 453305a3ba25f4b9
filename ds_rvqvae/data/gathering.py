"""Training samples: normalised windows of motion, with random changes if the settings ask for them."""

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.data.augment import Augment, Draws
from ds_rvqvae.data.cache import gather, selected_frames, will_need
from ds_rvqvae.data.dataset import MotionData


class Gatherer:
    """The gatherer of a data set's training samples; several threads may use one.

    Args:
        seed: of the run; augmentation draws from it.

    Raises:
        UserError: columns that cannot be augmented as asked.
    """

    def __init__(self, data: MotionData, seed: int) -> None:
        self._data = data
        augment = data.config.augment
        self._augment = Augment(data.layout, augment, seed, data.store.skeleton) if augment.is_on else None
        self._frames = selected_frames(data.store, data.columns, data.mean, data.std)

    def gather(
        self, starts: NDArray[np.int64], positions: NDArray[np.int64], size: int, out: NDArray[np.float32]
    ) -> None:
        """Writes the samples at `positions` of the run, windows of `size` frames from `starts`, into `out`.

        Args:
            starts: int64 `[windows]`, rows of the store.
            positions: int64 `[windows]`.
            out: float32 `[windows, size, C]`.
        """
        if self._frames is not None:
            gather(self._frames, starts, size, out)
        else:
            will_need(self._data.store, starts, size)
            self._data.windows(starts, size, out)
        if self._augment is None:
            return
        for window, start, position in zip(out, starts.tolist(), positions.tolist(), strict=True):
            draws = self._augment.draw(position)
            if draws.changes:
                window[:] = self._data.normalise(self._changed(start, draws, size))
            self._mix(window, position, size)
            self._augment.scale(window, position)
            self._augment.add_offset(window, position)
            self._augment.add_noise(window, position)

    def _mix(self, window: NDArray[np.float32], position: int, size: int) -> None:
        """Replaces some columns of a normalised window by those of other windows of the training split."""
        assert self._augment is not None
        starts = self._data.training_windows[size]
        groups = self._data.training_groups.get(size)
        reach = None if groups is None else groups.reach
        for other, columns in self._augment.mixed_from(position, len(starts), reach):
            window[:, columns] = self._data.windows(starts[other : other + 1], size)[0][:, columns]

    def _changed(self, start: int, draws: Draws, size: int) -> NDArray[np.float32]:
        assert self._augment is not None
        motion = self._data.training_frames(start, self._augment.needed(size, draws.speed))
        return np.array(self._augment.apply(motion, draws, size))  # a copy: it may be a view of the store
