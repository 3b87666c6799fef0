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
from edgeqwen.models.install import (
    check_free_name,
    check_largest,
    check_room,
    link,
    make_own,
    publish,
    store_error,
)
from edgeqwen.models.locks import locked
from edgeqwen.models.store import Entry, ManifestFile, Progress, Store, part_of, verify

_BLOCK = 1 << 20


def move(source: Store, target: Store, progress: Progress = lambda done, total: None) -> int:
    """Move every model and every part of `source`; returns how many models came. Blocking.

    Raises StoreError; what had not been moved by then is still installed in `source`.
    """
    entries = source.entries()
    total, done = sum(entry.size for entry in entries), 0
    try:
        with locked(target.partial, "store-move"):
            for entry in entries:
                name = f"{entry.manifest.model}-{entry.manifest.quant}"
                with locked(target.partial, name, [file.sha256 for file in entry.manifest.files]):
                    _move_entry(entry, source, target, part_of(progress, done, total))
                done += entry.size
            for part in sorted(source.partial.glob("*.part")):
                # A pull may be at the same one, there or here; one that is done has taken it away.
                with locked(source.partial, part.stem), locked(target.partial, part.stem):
                    if not part.exists():
                        continue
                    if not link(part, target.partial / part.name):
                        _copy(part, target.partial / part.name, lambda held: None)
                    part.unlink()
        for folder in (source.partial, source.root):
            with suppress(OSError):  # not empty: somebody else's files
                folder.rmdir()
    except OSError as error:
        raise store_error(error, target, total) from error
    return len(entries)


def check(source: Store, target: Store) -> None:
    """Raise StoreError, before anything is touched, when a move cannot be: no room, or one works there."""
    entries = source.entries()
    if source.is_busy():
        message = f"another edgeqwen works in {source.root}; try again when it is done"
        raise StoreError(message, path=str(source.root), cause="in_use")
    total = sum(entry.size for entry in entries)
    try:
        target.partial.mkdir(parents=True, exist_ok=True)
        if entries and source.root.stat().st_dev != target.root.stat().st_dev:
            check_largest(target, max(file.size for entry in entries for file in entry.manifest.files))
            check_room(target, total)
    except OSError as error:
        raise store_error(error, target, total) from error
    for entry in entries:
        check_free_name(target, entry.manifest.model, entry.manifest.quant, entry.manifest.files)


def _move_entry(entry: Entry, source: Store, target: Store, progress: Callable[[int], None]) -> None:
    manifest = entry.manifest
    check_free_name(target, manifest.model, manifest.quant, manifest.files)
    there = [one for one in target.entries() if one.ref == entry.ref]
    if not there or any(result.problem for result in verify(there[0])):
        done = 0
        for file, path in zip(manifest.files, entry.paths(), strict=True):
            part = target.part(file.sha256)
            make_own(part)
            if not part.exists() and link(path, part):
                continue
            check_largest(target, file.size)
            check_room(target, file.size - (part.stat().st_size if part.exists() else 0))
            _copy_whole(path, part, file, partial(_tell, progress, done))
            done += file.size
        publish(target, manifest)
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
            message = f"{path} is damaged, so it was not moved; `edgeqwen verify --all --repair` may mend it"
            raise StoreError(message, path=str(path), cause="wrong_digest")


def _copy(source: Path, target: Path, progress: Callable[[int], None]) -> None:
    """Append what the target lacks of the source; one that is longer already holds more of the same file."""
    with source.open("rb") as reader, target.open("ab") as writer:
        reader.seek(writer.tell())
        while block := reader.read(_BLOCK):
            writer.write(block)
            progress(writer.tell())
        writer.flush()
        os.fsync(writer.fileno())
