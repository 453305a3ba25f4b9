"""Which windows each step takes, and threads that gather them ahead of use."""

import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from ds_rvqvae.data.motion_data import MotionData

if TYPE_CHECKING:
    import torch


class BatchOrder:
    """The order of the data: a pure function of (seed, step), whatever the number of ranks.

    Samples form one endless sequence, epoch after epoch, each a permutation of all windows by (seed, epoch). Step s
    takes samples s * G up to (s + 1) * G of it, G being the global batch; G may be larger than the number of windows.
    """

    def __init__(self, num_windows: int, global_batch: int, seed: int):
        if num_windows < 1 or global_batch < 1:
            raise ValueError(f"{num_windows} windows in batches of {global_batch}")
        self.num_windows = num_windows
        self.global_batch = global_batch
        self.seed = seed
        self._recent: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def epoch(self, epoch: int) -> np.ndarray:
        """The permutation of one epoch, int64 `[num_windows]`."""
        with self._lock:
            if epoch not in self._recent:
                while len(self._recent) >= 2:
                    del self._recent[min(self._recent)]
                self._recent[epoch] = np.random.default_rng([self.seed, epoch]).permutation(self.num_windows)
            return self._recent[epoch]

    def step(self, step: int) -> np.ndarray:
        """Windows of one step over all ranks, int64 `[global_batch]`."""
        first = step * self.global_batch
        parts = []
        while first < (step + 1) * self.global_batch:
            epoch, position = divmod(first, self.num_windows)
            part = self.epoch(epoch)[position : position + (step + 1) * self.global_batch - first]
            parts.append(part)
            first += len(part)
        return np.concatenate(parts)

    def rank_step(self, step: int, rank: int, world_size: int) -> np.ndarray:
        """Windows of one step on one rank: its contiguous slice, `[global_batch / world_size]`."""
        share = self.global_batch // world_size
        return self.step(step)[rank * share : (rank + 1) * share]


class BatchLoader:
    """Batches of normalised windows, step after step, gathered in background threads.

    Args:
        data: its training windows must be the ones that `order` counts.
        micro_batch: windows a forward pass; `order.global_batch` is micro_batch * accumulation * world_size.
        start_step: the first step to give, counted from 0.
        num_workers: threads; 0 gathers when asked.
        pin_memory: page-locked tensors where there is a GPU.
    """

    def __init__(
        self,
        data: MotionData,
        order: BatchOrder,
        *,
        rank: int,
        world_size: int,
        micro_batch: int,
        accumulation: int = 1,
        start_step: int = 0,
        num_workers: int = 1,
        pin_memory: bool = False,
    ):
        import torch

        self._data, self._order = data, order
        self._starts = data.window_starts("train")
        if len(self._starts) != order.num_windows or micro_batch * accumulation * world_size != order.global_batch:
            raise ValueError(
                f"{len(self._starts)} windows in batches of {micro_batch} x {accumulation} x {world_size}, "
                f"but the order has {order.num_windows} in batches of {order.global_batch}"
            )
        self._rank, self._world_size = rank, world_size
        self._shape = (accumulation, micro_batch, data.config.window_size, data.in_features)
        self._pin_memory = pin_memory and torch.cuda.is_available()
        self._next_step = start_step
        self._waited = 0.0
        self._closed = False
        self._ahead: deque[Future[list[torch.Tensor]]] = deque()
        self._threads: ThreadPoolExecutor | None = None
        if num_workers:
            device = torch.cuda.current_device() if self._pin_memory else None
            self._threads = ThreadPoolExecutor(num_workers, "gather", _use_device, (device,))
            for _ in range(num_workers + 1):
                self._submit()

    def next(self) -> list["torch.Tensor"]:
        """The next step's micro batches on this rank, each float32 `[micro_batch, window_size, C]`.

        Raises what a thread raised while gathering them.
        """
        if self._closed:
            raise RuntimeError("the batch loader is closed")
        started = time.perf_counter()
        try:
            if self._threads is None:
                self._next_step += 1
                return self._gather(self._next_step - 1)
            self._submit()
            return self._ahead.popleft().result()
        finally:
            self._waited += time.perf_counter() - started

    def take_wait(self) -> float:
        """Seconds spent in `next()` since this was last asked."""
        waited, self._waited = self._waited, 0.0
        return waited

    def close(self) -> None:
        """Drops what was gathered ahead and ends the threads."""
        self._closed = True
        self._ahead.clear()
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "BatchLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(self) -> None:
        assert self._threads is not None
        self._ahead.append(self._threads.submit(self._gather, self._next_step))
        self._next_step += 1

    def _gather(self, step: int) -> list["torch.Tensor"]:
        import torch

        starts = self._starts[self._order.rank_step(step, self._rank, self._world_size)]
        batch = torch.empty(self._shape, dtype=torch.float32, pin_memory=self._pin_memory)
        self._data.windows(starts, out=batch.view(-1, *self._shape[2:]).numpy())
        return list(batch)


def _use_device(device: int | None) -> None:
    """Pinning in a fresh thread would otherwise open a context on card 0, which is to stay free."""
    if device is not None:
        import torch

        torch.cuda.set_device(device)
