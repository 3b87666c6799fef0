"""Brings the bytes of a known file into a part file: resumed, hashed on the way, from whoever has them.

A file is known by size and sha256 before its first byte; nothing that a server says is believed. Owns the
part file while it runs; knows no store, no catalogue and no hub.
"""

from __future__ import annotations

import os
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeqwen.errors import DownloadError
from edgeqwen.models.digest import Digest, Digests
from edgeqwen.models.remote import Address, Refused, TryAgain, open_stretch

_STRIKES = 6  # tries in a row without a single byte
_STRIKES_BEFORE_ANOTHER = 3  # the same, where there is another source to ask
_LONGEST_WAIT_S = 30.0
_MAGIC = b"GGUF"


@dataclass(frozen=True)
class Wanted:
    """A file as its publisher has it."""

    name: str
    size: int
    """Bytes."""
    sha256: str


@dataclass
class Watch:
    """What a download tells while it runs, and how it is stopped."""

    on_bytes: Callable[[int], None] = lambda held: None
    """Gets the bytes held; may raise to stop the download, which keeps its part."""
    on_trouble: Callable[[str], None] = lambda sentence: None
    """Gets a sentence when a line breaks or a source is given up."""
    wait: Callable[[float], None] = time.sleep
    """Waits so many seconds; may raise."""


def fetch(wanted: Wanted, addresses: Sequence[Address], part: Path, watch: Watch) -> Digests:
    """Complete `part` and return its digests. Blocking.

    A part that is there is gone on with. Raises DownloadError, with what was got kept in the part, and
    OSError when the disk fails.
    """
    reasons: list[str] = []
    for address in addresses:
        try:
            strikes = _STRIKES if address is addresses[-1] else _STRIKES_BEFORE_ANOTHER
            return _from_one(wanted, address, part, watch, strikes)
        except Refused as error:
            reasons.append(f"{address.host}: {error}")
            watch.on_trouble(reasons[-1])
    where = "; ".join(reasons) or "no source is known for it"
    raise DownloadError(
        f"{wanted.name} could not be downloaded: {where}",
        url=addresses[-1].url if addresses else "",
        retryable=True,
    )


def _from_one(wanted: Wanted, address: Address, part: Path, watch: Watch, max_strikes: int) -> Digests:
    """Try one address until the file is whole. Raises Refused."""
    for is_last_try in (False, True):
        with _Part(part, wanted.size) as held:
            _transfer(wanted, address, held, watch, max_strikes)
            fetched = held.finish()
        if fetched.sha256 == wanted.sha256:
            return fetched
        part.unlink()
        found = f"the bytes are wrong (sha256 {fetched.sha256[:12]}…, not {wanted.sha256[:12]}…)"
        if not is_last_try:
            watch.on_trouble(f"{address.host}: {found}; once more from the start")
    raise Refused(f"{found}, twice")


def _transfer(wanted: Wanted, address: Address, part: _Part, watch: Watch, max_strikes: int) -> None:
    strikes = 0
    while part.size < wanted.size:
        before = part.size
        try:
            _one_answer(wanted, address, part, watch)
        except TryAgain as error:
            strikes = 0 if part.size > before else strikes + 1
            if strikes >= max_strikes:
                raise Refused(f"{error}, {strikes} times in a row") from error
            pause = error.wait_s
            if pause is None:
                pause = min(2.0**strikes, _LONGEST_WAIT_S) * random.uniform(0.5, 1.0) if strikes else 0.0
            if pause >= 1:
                watch.on_trouble(f"{address.host}: {error}; trying again in {pause:.0f} s")
            watch.wait(pause)


def _one_answer(wanted: Wanted, address: Address, part: _Part, watch: Watch) -> None:
    with open_stretch(address, part.size, wanted.size) as body:
        at = body.start
        while at < wanted.size:
            data = body.read()
            if not data:
                raise TryAgain("the line was closed early")
            if at + len(data) > wanted.size:
                raise Refused(f"it sends more than the {wanted.size:,} bytes of the file")
            if at == 0 and not data.startswith(_MAGIC[: len(data)]):
                raise Refused("what it sends is not a GGUF file")
            # Who sends the file from its start passes over what is held: the sha256 judges both in the end.
            part.append(data[max(0, part.size - at) :])
            at += len(data)
            watch.on_bytes(part.size)


class _Part:
    """A growing part file, hashed by a thread of its own so that hashing costs the download no time."""

    def __init__(self, path: Path, limit: int) -> None:
        self._path, self._limit = path, limit
        self.size = 0

    def __enter__(self) -> _Part:
        self._file = self._path.open("r+b" if self._path.exists() else "w+b", buffering=0)
        self._start_hashing()
        try:
            self._hash_what_is_there()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._todo.put(None)
        self._hasher.join()
        self._file.close()

    def append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self.size += len(data)
        self._todo.put(data)

    def finish(self) -> Digests:
        os.fsync(self._file.fileno())
        self._todo.put(None)
        self._hasher.join()
        return self._digest.finish()

    def _start_hashing(self) -> None:
        self._digest = Digest()
        self._todo: queue.Queue[bytes | None] = queue.Queue(maxsize=8)
        self._hasher = threading.Thread(target=self._hash, args=(self._todo, self._digest), daemon=True)
        self._hasher.start()

    @staticmethod
    def _hash(todo: queue.Queue[bytes | None], digest: Digest) -> None:
        while (data := todo.get()) is not None:
            digest.update(data)

    def _hash_what_is_there(self) -> None:
        """Hash the part of an earlier run; more than the whole file is no part of it."""
        if self._path.stat().st_size > self._limit:
            self._file.truncate(0)
        while data := self._file.read(1 << 20):
            self.size += len(data)
            self._todo.put(data)
