"""How much memory a model may take here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from edgeqwen.machine.cgroup import own_cgroups


def available_bytes(cgroups: Sequence[Path] | None = None) -> int:
    """Return the bytes that can be had without swapping: what the system has, or the rest of a cgroup."""
    available = int(psutil.virtual_memory().available)
    return min([available, *(rest for _, rest in _limits(cgroups))])


def total_bytes(cgroups: Sequence[Path] | None = None) -> int:
    """Return the bytes that this process may ever have: the system's, or the limit of a cgroup."""
    total = int(psutil.virtual_memory().total)
    return min([total, *(limit for limit, _ in _limits(cgroups))])


def _limits(cgroups: Sequence[Path] | None) -> Iterator[tuple[int, int]]:
    """Yield limit and rest of each cgroup that has a limit."""
    for folder in own_cgroups() if cgroups is None else cgroups:
        with suppress(OSError, ValueError):  # no such file, or "max"
            limit = int((folder / "memory.max").read_text())
            used = int((folder / "memory.current").read_text()) - _page_cache(folder)
            yield limit, max(0, limit - used)


def _page_cache(folder: Path) -> int:
    """Return bytes of files that the kernel drops before memory runs out; `memory.current` counts them."""
    with suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "inactive_file":
                return int(value)
    return 0
