"""Remembers which installed files were hashed and found right, so that opening one need not hash it again.

A stamp holds while the system says the same of a file: device, inode, size, mtime and ctime. Stamps describe
one machine: they live in the user's state, never in the store. Losing them costs a hash.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import msgspec

from edgeqwen.errors import StoreError
from edgeqwen.jsonfile import NOT_JSON
from edgeqwen.models.digest import digest_of
from edgeqwen.models.store import Entry, Progress, part_of
from edgeqwen.models.volume import keeps_stamps

_Stamp = tuple[int, int, int, int, int, str]
_MAX_BYTES = 1 << 20


class Stamps:
    """The stamps of one user."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def put(self, entry: Entry) -> None:
        """Remember an entry that has just been found right. A disk that refuses costs a hash later."""
        stamps = {path: stamp for path, stamp in self._read().items() if os.path.exists(path)}  # noqa: PTH110 - never raises
        with suppress(OSError):
            for path, file in zip(entry.paths(), entry.manifest.files, strict=True):
                stamps[str(path)] = _stamp(path, file.sha256)
            self._file.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._file.with_suffix(f".{os.getpid()}")
            temporary.write_bytes(msgspec.json.encode(stamps))
            temporary.replace(self._file)

    def hold(self, entry: Entry) -> bool:
        """Say whether every file of an entry is, by its stamp, the one that was found right."""
        known = self._read()
        with suppress(OSError):
            return keeps_stamps(entry.folder) and all(
                known.get(str(path)) == _stamp(path, file.sha256)
                for path, file in zip(entry.paths(), entry.manifest.files, strict=True)
            )
        return False

    def check(self, entry: Entry, progress: Progress = lambda done, total: None) -> None:
        """Make sure that an entry's files are what was installed; hashes only what has changed. Blocking.

        Raises StoreError, which names the damaged file.
        """
        known = self._read() if keeps_stamps(entry.folder) else {}
        done, is_news = 0, False
        for path, file in zip(entry.paths(), entry.manifest.files, strict=True):
            try:
                if known.get(str(path)) != _stamp(path, file.sha256):
                    is_news = True
                    if digest_of(path, part_of(progress, done, entry.size)).sha256 != file.sha256:
                        message = f"{path.name} of {entry.ref} has changed since it was installed"
                        raise StoreError(message, path=str(path), cause="wrong_digest")
            except OSError as error:
                message = f"{path.name} of {entry.ref} cannot be read: {error.strerror}"
                raise StoreError(message, path=str(path), cause="missing_file") from error
            done += file.size
        if is_news:
            self.put(entry)

    def _read(self) -> dict[str, _Stamp]:
        try:
            if self._file.stat().st_size > _MAX_BYTES:
                return {}
            return msgspec.json.decode(self._file.read_bytes(), type=dict[str, _Stamp])
        except (OSError, *NOT_JSON):
            return {}


def _stamp(path: Path, sha256: str) -> _Stamp:
    status = path.stat()
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, sha256)
