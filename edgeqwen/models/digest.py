"""The two digests of a model file: sha256 says whether it is right, a chunk table says where it is not.

Pure but for `digest_of`, which reads a file. Knows no store and no network.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

CHUNK = 16 << 20
"""Bytes per entry of a chunk table."""
_BLOCK = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_sha256(text: str) -> bool:
    """Say whether a text is 64 lower-case hex digits, and so can name a file."""
    return _SHA256.fullmatch(text) is not None


@dataclass(frozen=True)
class Digests:
    """What a file's bytes come to."""

    sha256: str
    """64 hex digits, lower case."""
    chunks: tuple[int, ...]
    """CRC-32 of each 16 MiB: finds a damaged place, proves nothing."""


@dataclass
class Digest:
    """Both digests of bytes that come in order."""

    _sha256: hashlib._Hash = field(default_factory=hashlib.sha256)
    _chunks: list[int] = field(default_factory=list)
    _crc: int = 0
    _room: int = CHUNK

    def update(self, data: bytes | memoryview) -> None:
        """Take more of a file's bytes, in order."""
        self._sha256.update(data)
        view = memoryview(data)
        while view:
            piece = view[: self._room]
            self._crc = zlib.crc32(piece, self._crc)
            self._room -= len(piece)
            if self._room == 0:
                self._close_chunk()
            view = view[len(piece) :]

    def _close_chunk(self) -> None:
        self._chunks.append(self._crc)
        self._crc, self._room = 0, CHUNK

    def finish(self) -> Digests:
        """Return sha256 and chunk table of all bytes."""
        if self._room < CHUNK:
            self._close_chunk()
        return Digests(self._sha256.hexdigest(), tuple(self._chunks))


def digest_of(path: Path, progress: Callable[[int], None] = lambda _: None) -> Digests:
    """Read a whole file; `progress` gets bytes read. Blocking. Raises OSError."""
    digest, done = Digest(), 0
    buffer = memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            done += count
            progress(done)
    return digest.finish()
