"""How many layers go on GPUs, and how it goes down from there."""

from __future__ import annotations

import pytest

from edgeqwen.engine.protocol import Device, Layers
from edgeqwen.worker.devices import layer_notices, layers_to_try, list_devices

GB = 1 << 30
CPU = Device(name="CPU", description="", kind="cpu", total_bytes=8 * GB, free_bytes=8 * GB)


def gpu(free_bytes: int) -> Device:
    return Device(name="GPU", description="", kind="gpu", total_bytes=16 * GB, free_bytes=free_bytes)


@pytest.mark.parametrize("asked", [-1, 0, 7])
def test_without_a_gpu_the_cpu_has_all_layers(asked: int) -> None:
    assert layers_to_try(asked, Layers(n=24, n_bytes=GB), [CPU]) == (0,)


def test_a_large_gpu_takes_all_and_the_output_layer() -> None:
    assert layers_to_try(-1, Layers(n=28, n_bytes=GB // 10), [CPU, gpu(16 * GB)]) == (29, 21, 14, 7, 0)


def test_a_small_gpu_takes_what_its_free_memory_holds() -> None:
    assert layers_to_try(-1, Layers(n=28, n_bytes=GB), [gpu(10 * GB)])[0] == 9
    assert layers_to_try(-1, Layers(n=28, n_bytes=GB), [gpu(5 * GB), gpu(5 * GB)])[0] == 9


def test_a_full_gpu_takes_none() -> None:
    assert layers_to_try(-1, Layers(n=28, n_bytes=GB), [gpu(0)]) == (0,)


def test_what_was_asked_for_comes_first_but_never_more_than_there_are() -> None:
    assert layers_to_try(8, Layers(n=28, n_bytes=GB), [gpu(GB)]) == (8, 6, 4, 2, 0)
    assert layers_to_try(999, Layers(n=28, n_bytes=GB), [gpu(GB)])[0] == 29


def test_a_model_of_unknown_shape_is_tried_whole() -> None:
    assert layers_to_try(-1, None, [gpu(GB)]) == (-1, 0)


def test_layers_that_are_not_on_a_gpu_are_told() -> None:
    layers = Layers(n=28, n_bytes=GB)
    assert "0 layers of 29" in layer_notices(-1, layers, [CPU, gpu(0)], 0)[0]
    assert "9 layers of 29" in layer_notices(-1, layers, [gpu(10 * GB)], 9)[0]
    assert "no GPU" in layer_notices(8, layers, [CPU], 0)[0]
    assert "-1" not in layer_notices(-1, None, [gpu(GB)], 0)[0]


@pytest.mark.parametrize(
    ("asked", "devices", "n_layers"),
    [(-1, [CPU], 0), (0, [gpu(GB)], 0), (8, [gpu(GB)], 8), (-1, [gpu(GB)], 29)],
)
def test_what_went_as_asked_for_is_not_told(asked: int, devices: list[Device], n_layers: int) -> None:
    assert layer_notices(asked, Layers(n=28, n_bytes=GB // 100), devices, n_layers) == ()


def test_the_shipped_libraries_name_this_cpu() -> None:
    cpus = [device for device in list_devices() if device.kind == "cpu"]
    assert cpus
    assert cpus[0].total_bytes > 0
