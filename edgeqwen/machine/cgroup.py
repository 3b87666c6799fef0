"""Where the limits of this process's own cgroup stand. Knows version 2 alone; source: cgroups(7)."""

from __future__ import annotations

from pathlib import Path

_ROOT, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def own_cgroups(root: Path = _ROOT, own: Path = _OWN) -> list[Path]:
    """Return the folders whose limits hold for this process: its cgroup's and those above it, `root` last.

    In a namespace of its own, as in most containers, that is `root` alone.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return [root]
    path = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    return [root / folder for folder in (Path(path), *Path(path).parents)]
