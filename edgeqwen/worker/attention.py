"""What the CPU kernels of this build of llama.cpp are fastest with, for a model's shape.

Measures what differs from build to build: what attention gains by tiles. Loads no model.
"""

from __future__ import annotations

import ctypes
import time
from functools import cache
from typing import Any

from edgeqwen.worker.binding import ggml_library
from edgeqwen.worker.kernels import Kernels

_ROWS, TILE = 4, 64  # ggml-cpu/repack.cpp; GGML_FA_TILE_Q in ggml-cpu/common.h
# A layer multiplies some 12 n_embd^2 values per token, and 2 heads * head_size per cell it looks at: a
# sixth, at half the speed of quantized products. Held against the table of docs/decisions/0012-kernels.md.
_PER_CELL = 1 / 3
# What tiles gain for one head is more than they do where threads share several and leave tiles half full.
_SHARED = 0.75
_F32, _F16 = 0, 1  # ggml_type
_N_CELLS = 256
_MAX_HEAD = 512
_ARENA_BYTES = 4 << 20  # 3 MB for heads of _MAX_HEAD; ggml aborts where it is too small


def cpu_kernels(n_embd: int, n_head: int, head_size: int, *, repacks: bool, has_tiles: bool) -> Kernels:
    """Return those of the CPU for a model's shape.

    `repacks`: the weights are rearranged for products of four rows. `has_tiles`: keys and values are f16,
    and a batch holds a tile.
    """
    rows = _ROWS if repacks else 1
    if not has_tiles or not 0 < head_size <= _MAX_HEAD or n_embd <= 0:
        return Kernels(rows)
    per_cell = _PER_CELL * n_head * head_size / n_embd**2
    return Kernels(rows, TILE, per_cell, cache(lambda: measure_untiled(head_size)))


class _Arena(ctypes.Structure):
    """ggml_init_params (ggml/include/ggml.h)."""

    _fields_ = [("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


def measure_untiled(head_size: int) -> float:
    """Return how many times as long a row's attention takes in a batch too small for tiles; 1.0 if unknown.

    Some milliseconds: attention of one head to 256 cells of zeros, on one thread, as llama.cpp computes it.
    """
    try:
        return max(1.0, _SHARED * _attend(head_size, TILE - 1) / _attend(head_size, TILE))
    except (OSError, AttributeError, MemoryError):
        return 1.0


def _attend(head_size: int, n_rows: int) -> float:
    """Return the seconds of one head's attention of `n_rows` tokens.

    Raises OSError, AttributeError, MemoryError.
    """
    base, cpu = _open_libraries()
    memory = ctypes.create_string_buffer(_ARENA_BYTES)
    arena = base.ggml_init(_Arena(len(memory), ctypes.addressof(memory), False))
    query = base.ggml_new_tensor_3d(arena, _F32, head_size, n_rows, 1)
    keys, values = (base.ggml_new_tensor_3d(arena, _F16, head_size, _N_CELLS, 1) for _ in range(2))
    mask = base.ggml_new_tensor_3d(arena, _F16, _N_CELLS, n_rows, 1)
    result = base.ggml_flash_attn_ext(arena, query, keys, values, mask, 1.0, 0.0, 0.0)
    graph = base.ggml_new_graph(arena)
    base.ggml_build_forward_expand(graph, result)
    times = []
    for _ in range(3):  # the first brings the memory
        start = time.perf_counter()
        if cpu.ggml_graph_compute_with_ctx(arena, graph, 1) != 0:
            raise OSError("ggml could not compute attention")
        times.append(time.perf_counter() - start)
    base.ggml_free(arena)
    return min(times)


@cache
def _open_libraries() -> tuple[Any, Any]:
    """Return ggml-base and ggml-cpu with the functions of a small graph."""
    base, cpu = ggml_library("ggml-base"), ggml_library("ggml-cpu")
    pointer, whole, real = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
    for function, takes in (
        (base.ggml_init, [_Arena]),
        (base.ggml_new_tensor_3d, [pointer, whole, *[ctypes.c_int64] * 3]),
        (base.ggml_flash_attn_ext, [*[pointer] * 5, *[real] * 3]),
        (base.ggml_new_graph, [pointer]),
    ):
        function.argtypes, function.restype = takes, pointer
    base.ggml_build_forward_expand.argtypes, base.ggml_build_forward_expand.restype = [pointer] * 2, None
    base.ggml_free.argtypes, base.ggml_free.restype = [pointer], None
    cpu.ggml_graph_compute_with_ctx.argtypes = [pointer, pointer, whole]
    return base, cpu
