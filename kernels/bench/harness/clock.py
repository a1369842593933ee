"""Times, memory, and the limits of the device that they are held against."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from harness.case import Work

# Larger than any cache; and zeroing it takes long enough for the host to have the next call enqueued, so that what is
# timed is the device and not Python.
FLUSHED_BYTES = 2**30
COPIED_BYTES = {"full": 2**30, "small": 2**27, "tiny": 2**20}
MATRIX_SIZE = {"full": 8192, "small": 1024, "tiny": 64}


class Limits(NamedTuple):
    """bandwidth: bytes a second, read and written, of a large copy; flops: a second, of a large matrix product."""

    bandwidth: float
    flops: float

    def least_seconds(self, work: Work) -> float:
        return max(work.moved / self.bandwidth, work.flops / self.flops)


class Clock:
    """Seconds that a function takes: by events on a CUDA device, its L2 cache flushed before; by the wall elsewhere."""

    def __init__(self, device: str):
        self.device = device
        self.flushed = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device=device) if device == "cuda" else None

    def seconds(self, function: Callable[[], Any]) -> float:
        if self.flushed is None:
            start = time.perf_counter()
            function()
            return time.perf_counter() - start
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self.flushed.zero_()
        start.record()
        function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000

    def peak_bytes(self, function: Callable[[], Any]) -> int | None:
        """Memory that a call needs above what is allocated before it; None on the CPU, where torch does not count."""
        if self.flushed is None:
            function()
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def limits(self, dtype: torch.dtype, size: str) -> Limits:
        copied, n = COPIED_BYTES[size], MATRIX_SIZE[size]
        return Limits(2 * copied / self._copy_seconds(copied), 2 * n**3 / self._product_seconds(n, dtype))

    def _copy_seconds(self, size: int) -> float:
        source = torch.zeros(size, dtype=torch.int8, device=self.device)
        target = torch.empty_like(source)
        return self._median(lambda: target.copy_(source))

    def _product_seconds(self, size: int, dtype: torch.dtype) -> float:
        left, right = (torch.randn(size, size, device=self.device).to(dtype) for _ in range(2))
        return self._median(lambda: left @ right)

    def _median(self, function: Callable[[], Any], rounds: int = 20) -> float:
        function()
        return statistics.median(self.seconds(function) for _ in range(rounds))
