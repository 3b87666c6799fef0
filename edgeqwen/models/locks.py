"""Lets one process at a time work on a variant and on the parts of its files, by lock files in a folder.

Owns what the locks are and how long they stay; knows no store and no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

from filelock import FileLock, Timeout

_ASK_AGAIN_S = 0.3


class Busy(Exception):
    """Another process holds a lock."""


def give_up() -> NoReturn:
    """Raise Busy; for those who do not wait."""
    raise Busy


@contextmanager
def locked(
    folder: Path, name: str, digests: Iterable[str] = (), on_wait: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Hold the lock of a variant, and those of its files, which others may share.

    Calls `on_wait`, which may raise, while another process has one. Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        for one in sorted({name, *digests}):  # everybody in one order, or two could wait for each other
            held.enter_context(_lock(folder / f"{one}.lock", on_wait))
        yield


def is_busy(folder: Path) -> bool:
    """Say whether a process holds any lock of a folder."""
    for path in folder.glob("*.lock"):
        try:
            with FileLock(path, timeout=0):
                continue
        except (Timeout, OSError):
            return True
    return False


@contextmanager
def _lock(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    lock = FileLock(path)
    while True:
        try:
            lock.acquire(timeout=_ASK_AGAIN_S)
            break
        except Timeout:
            on_wait()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()
