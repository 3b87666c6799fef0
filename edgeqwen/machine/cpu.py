"""How many threads are worth using here. Reads the system's own files; measures nothing."""

from __future__ import annotations

import math
import os
from pathlib import Path

import psutil

_TOPOLOGY = Path("/sys/devices/system/cpu")
_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores(topology: Path = _TOPOLOGY, quota_file: Path = _CGROUP_QUOTA) -> int:
    """Return the physical cores this process may use: its affinity, then the cgroup's quota, at least 1."""
    cores = _physical_cores(topology)
    quota = _quota(quota_file)
    return max(1, min(cores, quota) if quota else cores)


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


def cpu_features(file: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the CPU's features by the kernel's names (avx2, asimddp); empty where there is no such file."""
    try:
        lines = file.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    found = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(found.partition(":")[2].split())
