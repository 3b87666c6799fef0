"""What the machine and the worker take right now, read from the system's own counters, and advice in words.

Knows pids and bytes; knows no screen and no conversation. A figure that the system does not tell is None.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from edgeqwen.machine.memory import available_bytes, total_bytes

_HOT_C = 85.0
_PRESSED = 10.0  # percent of the time in which something waited for memory
_SHORT = 0.08  # of the memory
_FULL = 0.9  # of the context
_GPU_FULL = 0.97


@dataclass(frozen=True)
class WorkerMemory:
    """Resident memory of the worker, in bytes."""

    rss: int
    mapped: int | None
    """Pages of files, above all the weights; the system can drop and read them again."""
    own: int | None
    """Everything else: KV cache, repacked weights, scratch space, Python."""


@dataclass(frozen=True)
class Gpu:
    """Memory of one GPU, in bytes, by whomever."""

    name: str
    used: int
    total: int


@dataclass(frozen=True)
class Sample:
    """One look at the machine."""

    worker: WorkerMemory | None
    available: int
    """Bytes that can be had without swapping, as machine/memory.py counts them."""
    total: int
    swap_used: int
    swapped_in: int | None
    """Bytes that came back from swap since the sample before."""
    memory_pressure: float | None
    """Percent of the last 10 s in which some process waited for memory (Linux, PSI `some avg10`)."""
    cpu: tuple[float, ...]
    """Percent of each logical CPU since the sample before."""
    temperature: float | None
    """Of the hottest sensor of the CPU, in degrees Celsius."""
    is_throttled: bool | None
    """The CPU is held below its speed for its heat or supply (Raspberry Pi)."""
    gpus: tuple[Gpu, ...] = ()


class Monitor:
    """Takes samples; differences are those to the sample before."""

    def __init__(self, proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> None:
        self._proc, self._sys = proc, sys
        self._swapped_in = _swapped_in()
        self._smi = shutil.which("nvidia-smi")
        psutil.cpu_percent(percpu=True)

    def sample(self, worker: int | None) -> Sample:
        """Look at the machine and at the process `worker`. Blocking, a few milliseconds without a GPU."""
        swap = psutil.swap_memory()
        swapped_in = _swapped_in()
        since = None
        if swapped_in is not None and self._swapped_in is not None:
            since = max(0, swapped_in - self._swapped_in)
        self._swapped_in = swapped_in
        return Sample(
            worker=self._worker(worker),
            available=available_bytes(),
            total=total_bytes(),
            swap_used=int(swap.used),
            swapped_in=since,
            memory_pressure=_pressure(self._proc / "pressure" / "memory"),
            cpu=tuple(psutil.cpu_percent(percpu=True)),
            temperature=_temperature(),
            is_throttled=self._throttled(),
            gpus=self._gpus(),
        )

    def _worker(self, pid: int | None) -> WorkerMemory | None:
        if pid is None:
            return None
        with suppress(OSError, ValueError, KeyError):
            lines = (self._proc / str(pid) / "status").read_text().splitlines()
            fields = dict(line.split(":", 1) for line in lines if ":" in line)
            rss, mapped = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "RssFile"))
            return WorkerMemory(rss, mapped, rss - mapped)
        with suppress(psutil.Error):
            return WorkerMemory(int(psutil.Process(pid).memory_info().rss), None, None)
        return None

    def _throttled(self) -> bool | None:
        """Read the firmware's flags: bits 0 to 3 say under-voltage, capped, throttled, soft limit now."""
        file = self._sys / "devices/platform/soc/soc:firmware/get_throttled"
        with suppress(OSError, ValueError):
            return bool(int(file.read_text(), 16) & 0b1111)
        return None

    def _gpus(self) -> tuple[Gpu, ...]:
        found = []
        for used in sorted(self._sys.glob("class/drm/card*/device/mem_info_vram_used")):
            with suppress(OSError, ValueError):
                total = int(used.with_name("mem_info_vram_total").read_text())
                found.append(Gpu(used.parent.parent.name, int(used.read_text()), total))
        return (*found, *(_nvidia(self._smi) if self._smi else ()))


def advice(sample: Sample, *, n_context: int = 0, n_ctx: int = 0) -> list[str]:
    """Return what is wrong and what to do, the worst first; `n_context` of `n_ctx` tokens are used."""
    found = []
    if sample.swapped_in and sample.swapped_in > 4 << 20:
        found.append("swapping: use a smaller quant (q4_0) or a smaller context")
    if sample.memory_pressure is not None and sample.memory_pressure > _PRESSED:
        found.append(f"memory is waited for {sample.memory_pressure:.0f}% of the time: close other programs")
    if sample.available < _SHORT * sample.total:
        found.append("memory is nearly full: use a smaller model or context")
    if sample.is_throttled:
        found.append("the CPU is throttled: cool it, or give it a stronger power supply")
    elif sample.temperature is not None and sample.temperature > _HOT_C:
        found.append(f"the CPU is hot ({sample.temperature:.0f} °C) and will slow down: use fewer threads")
    found += [
        f"the memory of {gpu.name} is full: fewer GPU layers or a smaller context"
        for gpu in sample.gpus
        if gpu.total and gpu.used > _GPU_FULL * gpu.total
    ]
    if n_ctx and n_context >= _FULL * n_ctx:
        share = 100 * n_context // n_ctx
        found.append(f"context {share}% full: begin a new chat, or let old turns be dropped")
    return found


def _pressure(file: Path) -> float | None:
    """Return `avg10` of the line `some`. Format: Documentation/accounting/psi.rst of the Linux kernel."""
    with suppress(OSError, ValueError, IndexError):
        first = file.read_text().splitlines()[0]
        return float(next(part for part in first.split() if part.startswith("avg10="))[6:])
    return None


def _swapped_in() -> int | None:
    with suppress(OSError, RuntimeError):
        return int(psutil.swap_memory().sin)
    return None


def _temperature() -> float | None:
    if not hasattr(psutil, "sensors_temperatures"):
        return None
    with suppress(OSError, RuntimeError):
        sensors = psutil.sensors_temperatures()
        for name in ("coretemp", "k10temp", "cpu_thermal", "cpu-thermal", "soc_thermal", "acpitz"):
            readings = [reading.current for reading in sensors.get(name, ()) if reading.current]
            if readings:
                return float(max(readings))
    return None


def _nvidia(program: str) -> Sequence[Gpu]:
    query = [program, "--query-gpu=name,memory.used,memory.total", "--format=csv,noheader,nounits"]
    with suppress(OSError, subprocess.SubprocessError, ValueError):
        done = subprocess.run(query, capture_output=True, text=True, timeout=2, check=True)
        rows = [line.rsplit(",", 2) for line in done.stdout.splitlines() if line.count(",") >= 2]
        return [Gpu(name.strip(), int(used) << 20, int(total) << 20) for name, used, total in rows]
    return ()
