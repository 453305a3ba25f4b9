"""Gradients of one optimizer step: reduced by buckets while the backward pass goes on, kept for this rank's part."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ds_rvqvae.gpu.sizes import BUCKETS_IN_FLIGHT
from ds_rvqvae.train.zero.weights import Bucket

_ROW = 1024
"""Numbers whose squares are summed one after another."""


class PartGradient:
    """The gradient of the parameters that one rank updates: ZeRO stage 2 keeps no other.

    If there is one micro batch per step, each rank sees the complete sums of all gradients, so it knows their norm
    without another reduction.

    Args:
        rank, world_size: of the ranks that divide the parameters into equal parts, in rank order.
        size: elements of a part; the last part may end with padding, whose gradient is 0.
        padding: elements of it in this rank's part.
        dtype: type in which the gradients of micro batches are summed.
        overlaps: whether reductions run while the backward pass goes on.
        accumulates: whether a step has several micro batches.
        group: the ranks' process group.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        size: int,
        padding: int,
        dtype: torch.dtype,
        overlaps: bool,
        accumulates: bool,
        group: dist.ProcessGroup | None,
    ) -> None:
        self._accumulates = accumulates
        self._seen: list[Tensor] = []
        self._world_size, self._group, self._overlaps = world_size, group, overlaps
        self._first, self._stop = rank * size, (rank + 1) * size
        self._padding, self._dtype = padding, dtype
        self._sum: Tensor | None = None
        self._waiting: dict[int, tuple[Bucket, Sequence[Tensor | None]]] = {}
        self._in_flight: list[tuple[Bucket, Tensor, dist.Work | None]] = []
        self._next = 0
        self._continues = False

    def take(self, bucket: Bucket, gradients: Sequence[Tensor | None]) -> None:
        """Starts the reduction of a bucket's gradients; all ranks reduce the buckets in one order.

        Raises:
            RuntimeError: the bucket already has gradients of this micro batch.
        """
        if bucket.index < self._next or bucket.index in self._waiting:
            raise RuntimeError("a second backward pass of one micro batch: call engine.backward(loss) once per forward")
        self._waiting[bucket.index] = (bucket, gradients)
        while self._next in self._waiting:
            self._reduce(*self._waiting.pop(self._next))
            self._next += 1

    def end_micro_batch(self, buckets: Sequence[Bucket]) -> None:
        """Ends a backward pass: waits until all sums have arrived, and adds them to this rank's part.

        Args:
            buckets: all of them; those that took no part in the pass have a gradient of 0.
        """
        if self._next or self._waiting:
            for bucket in buckets[self._next :]:
                self._reduce(*self._waiting.pop(bucket.index, (bucket, [None] * len(bucket.parameters))))
        while self._in_flight:
            self._collect()
        self._next, self._continues = 0, self._sum is not None

    def pop(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Returns the step's gradient `[size]` in a type, and the norm of the gradient of all parts; forgets both.

        Raises:
            RuntimeError: there was no backward pass through the engine since the last step.
        """
        if self._sum is None:
            raise RuntimeError("no gradient: run the model by engine(motion), and engine.backward(loss), before a step")
        gradient, seen = self._sum.to(dtype), self._seen
        self._sum, self._seen, self._continues = None, [], False
        if seen:
            return gradient, _norm(*seen)
        norm = _norm(*_lengths(gradient))
        if self._world_size > 1:
            squares = norm.square()
            dist.all_reduce(squares, group=self._group)
            norm = squares.sqrt()
        return gradient, norm

    def _reduce(self, bucket: Bucket, gradients: Sequence[Tensor | None]) -> None:
        while len(self._in_flight) >= BUCKETS_IN_FLIGHT:
            self._collect()
        given = [
            torch.zeros_like(weight) if gradient is None else gradient
            for gradient, weight in zip(gradients, bucket.parameters, strict=True)
        ]
        flat: Tensor = torch._C._nn.flatten_dense_tensors(given)
        work = None
        if self._world_size > 1:
            flat.div_(self._world_size)
            work = dist.all_reduce(flat, group=self._group, async_op=True)
        self._in_flight.append((bucket, flat, work))
        if not self._overlaps or self._world_size == 1:
            self._collect()

    def _collect(self) -> None:
        """Waits for the oldest reduction, and keeps the elements of this rank's part."""
        bucket, flat, work = self._in_flight.pop(0)
        if work is not None:
            work.wait()
            if not self._accumulates:
                self._seen += _lengths(flat)
        first, stop = max(bucket.start, self._first), min(bucket.stop, self._stop)
        if self._sum is None:
            self._sum = flat.new_empty(self._stop - self._first, dtype=self._dtype)
            if self._padding:
                self._sum[-self._padding :].zero_()
        if first >= stop:
            return
        own = self._sum[first - self._first : stop - self._first]
        part = flat[first - bucket.start : stop - bucket.start]
        own.add_(part) if self._continues else own.copy_(part)


def _lengths(values: Tensor) -> list[Tensor]:
    """Numbers with the same norm as `values [N]`, a thousandth as many: on CPUs, torch sums all squares one after
    another, which loses three digits over some million numbers. They share no memory with `values`."""
    rows = len(values) // _ROW * _ROW
    of_rows = torch.linalg.vector_norm(values[:rows].view(-1, _ROW), dim=1, dtype=torch.float32)
    return [of_rows, values[rows:].clone()] if rows < len(values) else [of_rows]


def _norm(*numbers: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(torch.cat(numbers) if len(numbers) > 1 else numbers[0], dtype=torch.float32)
    return norm
