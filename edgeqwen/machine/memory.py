"""How much memory a model may take here."""

from __future__ import annotations

from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


def available_bytes() -> int:
    """Return the bytes that can be had without swapping: what the system has, or the rest of the cgroup."""
    available = int(psutil.virtual_memory().available)
    rest = _cgroup_rest(_CGROUP)
    return available if rest is None else min(available, rest)


def _cgroup_rest(folder: Path) -> int | None:
    try:
        limit = (folder / "memory.max").read_text().strip()
        if limit == "max":
            return None
        return max(0, int(limit) - int((folder / "memory.current").read_text()))
    except (OSError, ValueError):
        return None
