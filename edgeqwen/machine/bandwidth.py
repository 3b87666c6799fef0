"""How fast this machine reads memory, which is what decoding on a CPU waits for."""

from __future__ import annotations

import time

_BLOCK = 64 << 20  # larger than most caches
_ROUNDS = 4


def memory_bytes_per_s() -> float:
    """Measure how many bytes per second one core copies from memory to memory. Blocking, about 0.1 s.

    The best of four rounds over 64 MiB. All cores together may read faster; on two cores of a VM the weights
    read per second while decoding came to 1.1 of this (2026-11).
    """
    source, target = bytearray(_BLOCK), bytearray(_BLOCK)
    view, best = memoryview(target), 0.0
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        view[:] = source
        best = max(best, _BLOCK / (time.perf_counter() - start))
    return best
