"""What llama.cpp can compute on here, and how many layers of a model to put there.

Reads the device list of the shipped ggml libraries, which llama-cpp-python does not bind. Loads no model.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from edgeqwen.engine.protocol import Device, DeviceKind, Layers
from edgeqwen.text import clean_line
from edgeqwen.worker.binding import L, ggml_library

_KINDS: dict[int, DeviceKind] = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accelerator"}  # ggml_backend_dev_type
_USABLE = 0.9  # of a GPU's free memory: the rest is for scratch space and for whoever draws the screen


class _Capabilities(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_bool)
        for name in ("is_async", "host_buffer", "buffer_from_host_ptr", "events", "mmap_support")
    ]


class _Properties(ctypes.Structure):
    """ggml_backend_dev_props (ggml/include/ggml-backend.h)."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("description", ctypes.c_char_p),
        ("memory_free", ctypes.c_size_t),
        ("memory_total", ctypes.c_size_t),
        ("type", ctypes.c_int),
        ("device_id", ctypes.c_char_p),
        ("capabilities", _Capabilities),
    ]


@cache
def _libraries() -> tuple[Any, Any]:
    """Return ggml and ggml-base, the two libraries that hold the device functions."""
    ggml, base = ggml_library("ggml"), ggml_library("ggml-base")
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    base.ggml_backend_dev_get_props.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Properties)]
    base.ggml_backend_dev_get_props.restype = None
    return ggml, base


def list_devices() -> tuple[Device, ...]:
    """Return every device of this build, the CPU among them; none where the libraries cannot be asked."""
    L.llama_backend_init()
    try:
        ggml, base = _libraries()
    except (OSError, AttributeError):
        return ()
    return tuple(
        _read(base, ggml.ggml_backend_dev_get(index)) for index in range(ggml.ggml_backend_dev_count())
    )


def list_features() -> tuple[str, ...]:
    """Return what the build uses of the CPU, by the names that llama.cpp prints when it starts."""
    text = L.llama_print_system_info().decode("utf-8", "replace")
    return tuple(re.findall(r"(\w+) = 1\b", text))


def _read(base: Any, handle: int) -> Device:  # noqa: ANN401 - a ctypes library
    properties = _Properties()
    base.ggml_backend_dev_get_props(handle, ctypes.byref(properties))
    return Device(
        name=clean_line((properties.name or b"").decode("utf-8", "replace")),
        description=clean_line((properties.description or b"").decode("utf-8", "replace")),
        kind=_KINDS.get(properties.type, "other"),
        total_bytes=properties.memory_total,
        free_bytes=properties.memory_free,
    )


def layers_to_try(asked: int, layers: Layers | None, devices: Sequence[Device]) -> tuple[int, ...]:
    """Return how many layers to put on GPUs, the most wanted count first and 0 last.

    `asked` -1 takes what the free memory of all GPUs holds. Below the first count it goes down in quarters:
    a card's memory is shared with others, so what seems to fit can still be refused.
    """
    gpus = _gpus(devices)
    if not gpus:
        return (0,)
    if asked < 0 and layers is None:
        return (-1, 0)
    n_all = layers.n + 1 if layers else asked  # llama.cpp counts the output layer, too
    first = min(asked, n_all) if asked >= 0 else n_all
    if asked < 0 and layers:
        room = int(_USABLE * sum(device.free_bytes for device in gpus))
        first = min(n_all, room // max(1, layers.n_bytes))
    return tuple(dict.fromkeys(first * quarters // 4 for quarters in (4, 3, 2, 1, 0)))


def layer_notices(
    asked: int, layers: Layers | None, devices: Sequence[Device], n_layers: int
) -> tuple[str, ...]:
    """Say so where `n_layers`, fewer than were asked for, are on GPUs; `asked` as in layers_to_try."""
    if not _gpus(devices):
        return ("no GPU can be used here, so the CPU computes all layers",) if asked > 0 else ()
    n_all = layers.n + 1 if layers else asked
    if n_layers == (min(asked, n_all) if asked >= 0 else n_all):
        return ()
    of_all = f" of {n_all}" if n_all > 0 else ""
    return (f"the GPU takes {n_layers} layers{of_all}, as its memory allows; the CPU computes the others",)


def _gpus(devices: Sequence[Device]) -> list[Device]:
    return [device for device in devices if device.kind in ("gpu", "igpu")]
