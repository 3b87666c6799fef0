"""Says how much memory this process holds."""

from __future__ import annotations

import os
from pathlib import Path


def resident_bytes() -> int:
    """Return the resident set of this process in bytes."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError):
        import psutil  # only where there is no /proc: 20 ms to import

        return int(psutil.Process().memory_info().rss)
    return pages * os.sysconf("SC_PAGE_SIZE")
