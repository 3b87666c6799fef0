"""How much memory a model may take here."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


def available_bytes(cgroup: Path = _CGROUP) -> int:
    """Return the bytes that can be had without swapping: what the system has, or the rest of the cgroup."""
    available = int(psutil.virtual_memory().available)
    rest = _cgroup_rest(cgroup)
    return available if rest is None else min(available, rest)


def _cgroup_rest(folder: Path) -> int | None:
    try:
        limit = (folder / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((folder / "memory.current").read_text()) - _page_cache(folder)
        return max(0, int(limit) - used)
    except (OSError, ValueError):
        return None


def _page_cache(folder: Path) -> int:
    """Return bytes of files that the kernel drops before memory runs out; `memory.current` counts them."""
    with suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "inactive_file":
                return int(value)
    return 0
