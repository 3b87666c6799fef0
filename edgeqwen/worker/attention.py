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

_ROWS, _TILE = 4, 64  # ggml-cpu/repack.cpp; GGML_FA_TILE_Q in ggml-cpu/common.h
_PER_CELL = 1 / 3  # what looking at a cell costs against n_embd products, for each value of all heads
_EVEN = 0.75  # of what tiles gain on one head is left where threads share several of them
_F32, _F16 = 0, 1  # ggml_type
_N_CELLS = 256
_MAX_HEAD = 512
_ARENA_BYTES = 8 << 20  # for heads of up to _MAX_HEAD; ggml aborts where it is too small


def cpu_kernels(n_embd: int, n_head: int, head_size: int, *, has_tiles: bool) -> Kernels:
    """Return those of the CPU for a model's shape; `has_tiles`: keys and values are f16."""
    if not has_tiles or not 0 < head_size <= _MAX_HEAD or n_embd <= 0:
        return Kernels(rows=_ROWS)
    per_cell = _PER_CELL * n_head * head_size / n_embd**2
    return Kernels(_ROWS, _TILE, per_cell, cache(lambda: measure_untiled(head_size)))


class _Arena(ctypes.Structure):
    """ggml_init_params (ggml/include/ggml.h)."""

    _fields_ = [("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


def measure_untiled(head_size: int) -> float:
    """Return how many times as long a row's attention takes in a batch too small for tiles; 1.0 if unknown.

    Some milliseconds: attention of one head to 256 cells of zeros, on one thread, as llama.cpp computes it.
    """
    try:
        base, cpu = _open_libraries()
    except (OSError, AttributeError):
        return 1.0

    def seconds(n_rows: int) -> float:
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
            cpu.ggml_graph_compute_with_ctx(arena, graph, 1)
            times.append(time.perf_counter() - start)
        base.ggml_free(arena)
        return min(times)

    return max(1.0, _EVEN * seconds(_TILE - 1) / seconds(_TILE))


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
