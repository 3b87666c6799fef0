"""What the CPU is, and how many threads are worth using. Reads the system's own files; measures nothing."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import psutil

from edgeqwen.machine.cgroup import own_cgroups

_TOPOLOGY = Path("/sys/devices/system/cpu")
_CPUINFO = Path("/proc/cpuinfo")


def usable_cores(topology: Path = _TOPOLOGY, cgroups: Sequence[Path] | None = None) -> int:
    """Return the physical cores this process may use: its affinity, then its cgroups' quota, at least 1."""
    folders = own_cgroups() if cgroups is None else cgroups
    quotas = filter(None, (_quota(folder / "cpu.max") for folder in folders))
    return max(1, min([_physical_cores(topology), *quotas]))


def _physical_cores(topology: Path) -> int:
    if not hasattr(os, "sched_getaffinity"):
        return psutil.cpu_count(logical=False) or os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    groups = {_siblings(topology, cpu) for cpu in allowed}
    return len(groups)


def _siblings(topology: Path, cpu: int) -> str:
    """Return what the hardware threads of one core have in common."""
    try:
        return (topology / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota(file: Path) -> int | None:
    """Return the cores a cgroup v2 grants, rounded up; None without a limit."""
    try:
        limit, period = file.read_text().split()
        return None if limit == "max" else math.ceil(int(limit) / int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return None


def cpu_features(file: Path = _CPUINFO) -> frozenset[str]:
    """Return the CPU's features by the kernel's names (avx2, asimddp); empty where there is no such file."""
    return frozenset(_told(file, "flags", "Features").split())


def cpu_name(file: Path = _CPUINFO) -> str:
    """Return what the kernel calls the CPU or the board, with the model's number: names tell little."""
    name, number = _told(file, "model name", "Model"), _told(file, "model\t", "CPU part")
    if not name:
        return platform.processor() or platform.machine()
    return f"{name} ({number})" if number else name


def _told(file: Path, *keys: str) -> str:
    """Return what stands behind the first line with one of the keys; "" where there is none."""
    try:
        lines = file.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return ""
    found = next((line for line in lines if line.startswith(keys)), "")
    return found.partition(":")[2].strip()
