"""Moves a store to another folder, one model at a time: at every moment each is installed in one of the two.

Stopped anywhere, the same call goes on. Knows no settings: who calls keeps both folders known until the end.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from edgeqwen.errors import StoreError
from edgeqwen.models.digest import digest_of
from edgeqwen.models.install import check_room, find_same, link, locked, publish, store_error
from edgeqwen.models.store import Entry, ManifestFile, Progress, Store, part_of

_BLOCK = 1 << 20


def move(source: Store, target: Store, progress: Progress = lambda done, total: None) -> int:
    """Move every model and every part of `source`; returns how many models came. Blocking.

    Raises StoreError; what had not been moved by then is still installed in `source`.
    """
    entries = source.entries()
    total, done = sum(entry.size for entry in entries), 0
    try:
        target.partial.mkdir(parents=True, exist_ok=True)
        for entry in entries:
            with locked(target, f"{entry.manifest.model}-{entry.manifest.quant}"):
                _move_entry(entry, source, target, part_of(progress, done, total))
            done += entry.size
        for part in sorted(source.partial.glob("*.part")):
            if not link(part, target.partial / part.name):
                _copy(part, target.partial / part.name, lambda held: None)
            part.unlink()
        for folder in (source.partial, source.root):
            with suppress(OSError):  # not empty: somebody else's files
                folder.rmdir()
    except OSError as error:
        raise store_error(error, target, total) from error
    return len(entries)


def _move_entry(entry: Entry, source: Store, target: Store, progress: Callable[[int], None]) -> None:
    if find_same(target, entry.manifest.files) is None:
        done = 0
        for file, path in zip(entry.manifest.files, entry.paths(), strict=True):
            part = target.part(file.sha256)
            if not part.exists() and link(path, part):
                continue
            check_room(target, file.size - (part.stat().st_size if part.exists() else 0))
            _copy_whole(path, part, file, partial(_tell, progress, done))
            done += file.size
        publish(target, entry.manifest)
    source.remove(entry)


def _tell(progress: Callable[[int], None], base: int, held: int) -> None:
    progress(base + held)


def _copy_whole(path: Path, part: Path, file: ManifestFile, progress: Callable[[int], None]) -> None:
    """Copy a file, going on with what an earlier try left, and check it. Raises StoreError or OSError."""
    for is_last_try in (False, True):
        _copy(path, part, progress)
        if digest_of(part).sha256 == file.sha256:
            part.chmod(0o444)
            return
        part.unlink()
        if is_last_try:
            message = f"{path} is damaged, so it was not moved; `edgeqwen verify --repair` may mend it"
            raise StoreError(message, path=str(path), cause="wrong_digest")


def _copy(source: Path, target: Path, progress: Callable[[int], None]) -> None:
    with source.open("rb") as reader, target.open("ab") as writer:
        if writer.tell() > source.stat().st_size:
            writer.truncate(0)
        reader.seek(writer.tell())
        while block := reader.read(_BLOCK):
            writer.write(block)
            progress(writer.tell())
        writer.flush()
        os.fsync(writer.fileno())
