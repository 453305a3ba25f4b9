"""Threads that gather the windows of each step ahead of use."""

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from ds_rvqvae.data.dataset import MotionData
from ds_rvqvae.data.gathering import Gatherer
from ds_rvqvae.data.order import BatchOrder

if TYPE_CHECKING:
    import torch


class BatchLoader:
    """Batches of normalised windows, step after step, gathered in background threads.

    Args:
        data: its training windows must be those that `order` counts.
        accumulation: micro batches per step on this rank; those of all ranks divide a step's windows into equal
            pieces, in order.
        start_step: the first step to return, counted from 0.
        num_workers: threads; 0 gathers in the calling thread.
        pin_memory: page-locked tensors where there is a GPU.
    """

    def __init__(
        self,
        data: MotionData,
        order: BatchOrder,
        *,
        rank: int,
        world_size: int,
        accumulation: int = 1,
        start_step: int = 0,
        num_workers: int = 1,
        pin_memory: bool = False,
    ) -> None:
        import torch

        self._data, self._order = data, order
        self._gatherer = Gatherer(data, order.seed)
        self._starts = data.training_windows
        counted = {size: sequence.num_windows for size, sequence in order.sequences.items()}
        there = {size: len(starts) for size, starts in self._starts.items()}
        if there != counted:
            raise ValueError(f"windows by length are {there}, but the order has {counted}")
        if min(order.batches.values()) < accumulation * world_size:
            raise ValueError(f"steps of {order.batches} windows for {accumulation} x {world_size} micro batches")
        self._rank, self._world_size, self._accumulation = rank, world_size, accumulation
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
        """Returns the next step's micro batches on this rank, each float32 `[windows, window_size, C]`.

        An error of a gathering thread is raised here.
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
        """Returns the seconds spent in `next()` since the last call of this method."""
        waited, self._waited = self._waited, 0.0
        return waited

    def close(self) -> None:
        """Drops the batches gathered ahead and ends the threads."""
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

        parts, first = self._accumulation * self._world_size, self._rank * self._accumulation
        bounds = [self._order.bounds(step, part, parts) for part in range(first, first + self._accumulation)]
        batch = self.samples(step, bounds[0][0], bounds[-1][1])
        return list(torch.split(batch, [stop - start for start, stop in bounds]))

    def samples(self, step: int, first: int, stop: int) -> "torch.Tensor":
        """Returns a step's windows from `first` up to `stop`, counted over all ranks: `[windows, window_size, C]`.

        This changes neither what `next` returns nor what `take_wait` counts.
        """
        import torch

        samples = self._order.between(step, first, stop)
        starts = self._starts[samples.window_size][samples.windows]
        shape = (len(starts), samples.window_size, self._data.in_features)
        batch = torch.empty(shape, dtype=torch.float32, pin_memory=self._pin_memory)
        self._gatherer.gather(starts, samples.positions, samples.window_size, batch.numpy())
        return batch


def _use_device(device: int | None) -> None:
    """Sets a thread's GPU: pinning memory in a new thread would open a context on GPU 0, which must stay free."""
    if device is not None:
        import torch

        torch.cuda.set_device(device)
