"""The order of training windows: pure functions of (seed, step), independent of the number of ranks."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.config.batch_sizes import windows_a_step
from ds_rvqvae.data.store.splits import Groups

if TYPE_CHECKING:
    from ds_rvqvae.data.dataset import MotionData

# The purpose of a draw is part of its seed, so that no two draws of a run get the same numbers.
_LENGTHS, _EPOCHS, _GROUPS = range(3)


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


class Samples(NamedTuple):
    """The windows of a step, or of some of its micro batches."""

    window_size: int
    """Frames per window."""
    windows: NDArray[np.int64]
    """int64 `[samples]`: indices into `MotionData.window_starts(window_size=window_size)`."""
    positions: NDArray[np.int64]
    """int64 `[samples]`: each sample's number among all samples of the run, from 0, each used once."""


class WindowSequence(ABC):
    """The endless sequence of all windows of one length. An epoch has `num_windows` samples."""

    def __init__(self, num_windows: int) -> None:
        if num_windows < 1:
            raise ValueError(f"{num_windows} windows")
        self.num_windows = num_windows
        self._recent: dict[int, NDArray[np.int64]] = {}
        self._lock = threading.Lock()

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Returns one epoch's windows, int64 `[num_windows]`."""
        with self._lock:
            if epoch not in self._recent:
                while len(self._recent) >= 2:
                    del self._recent[min(self._recent)]
                self._recent[epoch] = self._make_epoch(epoch)
            return self._recent[epoch]

    def take(self, first: int, stop: int) -> NDArray[np.int64]:
        """Returns samples `first` up to `stop` of the sequence, int64 `[stop - first]`."""
        parts: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        while first < stop:
            epoch, position = divmod(first, self.num_windows)
            parts.append(self.epoch(epoch)[position : position + stop - first])
            first += len(parts[-1])
        return np.concatenate(parts)

    @abstractmethod
    def _make_epoch(self, epoch: int) -> NDArray[np.int64]: ...


class Shuffled(WindowSequence):
    """Every window once per epoch: a permutation by (seed, epoch), or by (seed, key, epoch)."""

    def __init__(self, num_windows: int, seed: int, *key: int) -> None:
        super().__init__(num_windows)
        self._seed, self._key = seed, key

    def _make_epoch(self, epoch: int) -> NDArray[np.int64]:
        if self._key:
            generator = _generator(self._seed, *self._key, epoch)
        else:
            # The draw of all runs so far with windows of one length: it must not change.
            generator = np.random.default_rng([self._seed, epoch])
        return generator.permutation(self.num_windows)


class Balanced(WindowSequence):
    """Each epoch has as many samples of a group as its weight gives; a group's windows are used equally often.

    A group's windows form an endless sequence of their own: one permutation by (seed, group, cycle) after another.
    Epochs take consecutive pieces of it and shuffle them by (seed, epoch).
    """

    def __init__(self, groups: Groups, seed: int, *key: int) -> None:
        super().__init__(len(groups.of_window))
        self._seed, self._key = seed, key
        windows = np.bincount(groups.of_window, minlength=len(groups.names))
        members = np.split(np.argsort(groups.of_window, kind="stable"), np.cumsum(windows)[:-1])
        self._parts = [
            (mine, count, Shuffled(len(mine), seed, _GROUPS, *key, group))
            for group, (mine, count) in enumerate(zip(members, groups.samples(self.num_windows).tolist(), strict=True))
            if count
        ]

    def _make_epoch(self, epoch: int) -> NDArray[np.int64]:
        taken = [members[order.take(epoch * count, (epoch + 1) * count)] for members, count, order in self._parts]
        return _generator(self._seed, _EPOCHS, *self._key, epoch).permutation(np.concatenate(taken))


class BatchOrder:
    """The order of the data: a pure function of (seed, step), independent of the number of ranks.

    Each window length has its own sequence, and a step takes the next samples of one of them. Steps form blocks in
    which each length occurs once, in an order by (seed, block). So the number of samples before a step, of one length
    or of all, follows by arithmetic.

    Args:
        sequences: by window length in frames.
        batches: samples per step over all ranks, by length; may be more than a sequence has windows.
    """

    def __init__(self, sequences: Mapping[int, WindowSequence], batches: Mapping[int, int], seed: int) -> None:
        if not sequences or sequences.keys() != batches.keys() or min(batches.values()) < 1:
            raise ValueError(f"windows of {list(sequences)} frames in batches of {dict(batches)}")
        self.sequences, self.batches, self.seed = dict(sequences), dict(batches), seed
        self._sizes = sorted(sequences)

    @classmethod
    def of(cls, data: "MotionData", global_batch: int, seed: int, parts: int = 1) -> "BatchOrder":
        """Returns the order of `data`'s training windows.

        Args:
            global_batch: windows of `window_size` frames per step, over all ranks.
            parts: micro batches per step, over all ranks.

        Raises:
            UserError: no clip is long enough for one of the lengths, or weights do not fit the groups.
        """
        sequences: dict[int, WindowSequence] = {}
        for size, starts in data.training_windows.items():
            key = (size,) if data.config.window_sizes else ()
            if size in data.training_groups:
                sequences[size] = Balanced(data.training_groups[size], seed, *key)
            else:
                sequences[size] = Shuffled(len(starts), seed, *((_EPOCHS, *key) if key else ()))
        return cls(sequences, windows_a_step(data.config, global_batch, parts), seed)

    def window_size(self, step: int) -> int:
        """Returns the length of a step's windows, in frames."""
        return self._place(step)[0]

    def batch(self, step: int) -> int:
        """Returns the number of a step's samples over all ranks."""
        return self.batches[self.window_size(step)]

    def step(self, step: int) -> Samples:
        """Returns a step's samples over all ranks."""
        return self.part(step, 0, 1)

    def bounds(self, step: int, part: int, parts: int) -> tuple[int, int]:
        """Returns the first of a step's samples that belongs to `part`, and the one after its last."""
        batch = self.batch(step)
        return part * batch // parts, (part + 1) * batch // parts

    def part(self, step: int, part: int, parts: int) -> Samples:
        """Returns the samples of one of `parts` pieces of a step, in order; the sizes differ by at most one sample."""
        return self.between(step, *self.bounds(step, part, parts))

    def between(self, step: int, first: int, stop: int) -> Samples:
        """Returns a step's samples from `first` up to `stop`, counted from 0 over all ranks."""
        size, earlier_steps = self._place(step)
        of_length = earlier_steps[size] * self.batches[size]
        windows = self.sequences[size].take(of_length + first, of_length + stop)
        before = sum(earlier_steps[other] * self.batches[other] for other in self._sizes)
        return Samples(size, windows, np.arange(before + first, before + stop))

    def _place(self, step: int) -> tuple[int, dict[int, int]]:
        """Returns a step's window length, and the number of earlier steps by window length."""
        block, place = divmod(step, len(self._sizes))
        order = [0] if len(self._sizes) == 1 else _generator(self.seed, _LENGTHS, block).permutation(len(self._sizes))
        lengths = [self._sizes[index] for index in order]
        return lengths[place], {size: block + (size in lengths[:place]) for size in lengths}
