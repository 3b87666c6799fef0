"""How fast this machine reads memory, which is what decoding on a CPU waits for."""

from __future__ import annotations

import ctypes
import time
from concurrent.futures import ThreadPoolExecutor

_BLOCK = 64 << 20  # larger than most caches
_ROUNDS = 4
_MOST_THREADS = 8  # of 64 MiB each; so many keep most memories busy


def memory_bytes_per_s() -> float:
    """Measure how many bytes per second one core copies from memory to memory. Blocking, about 0.1 s.

    The best of four rounds over 64 MiB. What `recommend` reckons with: on two cores of a VM the weights read
    per second while decoding came to 1.1 of this (2026-11).
    """
    source, target = bytearray(_BLOCK), bytearray(_BLOCK)
    view, best = memoryview(target), 0.0
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        view[:] = source
        best = max(best, _BLOCK / (time.perf_counter() - start))
    return best


def reading_bytes_per_s(n_threads: int) -> float:
    """Measure how many bytes per second so many threads together read from memory. Blocking, about 0.1 s.

    The best of four rounds, in which each thread looks through 64 MiB of its own for a byte that is not there
    (the C library's memchr, which waits for memory alone).
    """
    n_threads = min(n_threads, _MOST_THREADS)
    blocks = [bytearray(_BLOCK) for _ in range(n_threads)]
    views = [(ctypes.c_char * _BLOCK).from_buffer(block) for block in blocks]
    memchr = ctypes.CDLL(None).memchr  # ctypes lets go of the GIL meanwhile
    memchr.argtypes, memchr.restype = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t), ctypes.c_void_p

    def read(view: ctypes.Array[ctypes.c_char]) -> None:
        memchr(view, 1, _BLOCK)

    best = 0.0
    with ThreadPoolExecutor(n_threads) as pool:
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            list(pool.map(read, views))
            best = max(best, n_threads * _BLOCK / (time.perf_counter() - start))
    return best
