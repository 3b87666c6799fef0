"""The KV cache on disk: states of sequences with their tokens, checksummed, least recently used first out.

    EQKV3\\n  header length (u32 LE)  header (JSON)  tokens (i32 LE each)  state  checkpoints

Owns the folder and the format; the states themselves mean something to the engine alone. Whatever is wrong
with a file costs a line in the log and a normal prefill, never an error.
"""

from __future__ import annotations

import hashlib
import os
import struct
import sys
import threading
import time
from array import array
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import msgspec

from edgeqwen.text import clean_line

_MAGIC = b"EQKV3\n"
_LENGTH = struct.Struct("<I")
_MAX_HEADER = 1 << 16
_MAX_TOKENS = 1 << 24
_STALE_S = 3600.0


class _Header(msgspec.Struct, frozen=True):
    key: str
    n_tokens: int
    state_bytes: int
    checkpoints: dict[int, int]
    """Bytes by position."""
    tokens_sha256: str
    sha256: str
    """Of the fields before it and of everything behind the header."""

    def digest(self, *body: bytes | bytearray | memoryview) -> str:
        """Return what `sha256` must be: a checkpoint at another position would be restored in silence."""
        fields = (self.key, self.n_tokens, self.state_bytes, self.checkpoints, self.tokens_sha256)
        found = hashlib.sha256(msgspec.json.encode(fields))
        for part in body:
            found.update(part)
        return found.hexdigest()


@dataclass(frozen=True)
class State:
    """A sequence as it can be saved and restored."""

    tokens: list[int]
    data: bytes | bytearray | memoryview
    checkpoints: dict[int, bytearray] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return 4 * len(self.tokens) + len(self.data) + sum(map(len, self.checkpoints.values()))


@dataclass(frozen=True)
class _Known:
    """What is kept in memory of a file."""

    tokens: array[int]
    checkpoints: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A state that is not on disk yet; memory has all of it."""

    future: Future[None]
    box: list[State]
    """Emptied by whoever takes it: a future that was cancelled keeps what it was given."""
    tokens: list[int]
    on_failure: Callable[[], None]


class _ForeignError(ValueError):
    """The file is whole, and for somebody else."""


class SavedStates:
    """The saved sequences of one engine: those with its `key`, which names all that must be the same."""

    def __init__(self, folder: Path, key: str, max_bytes: int, n_sequences: int = 1) -> None:
        self._folder, self._key, self._max_bytes = folder, key, max_bytes
        self._most_waiting = n_sequences + 1
        self._index: dict[Path, _Known] = {}
        self._seen: set[Path] = set()
        """Every file that was looked at, so that each strange one is told of once."""
        self._folder_stamp = -1
        self._lock = threading.Lock()  # of the index
        self._writer = ThreadPoolExecutor(1)
        self._waiting: list[_Waiting] = []

    def find(self, gain: Callable[[Sequence[int], Collection[int]], int]) -> Path | None:
        """Return the saved sequence that gains most, of equal ones the shortest; None if none gains anything.

        `gain` gets a sequence's tokens and the positions of its checkpoints.
        """
        gains = [
            (n_gained, -len(known.tokens), path)
            for path, known in self._known()
            if (n_gained := gain(known.tokens, known.checkpoints)) > 0
        ]
        return max(gains)[2] if gains else None

    def read(self, path: Path) -> State | None:
        """Return a saved sequence, or None when it cannot be had, which is told in the log.

        A damaged one is removed; one that could not be read may be readable the next time.
        """
        try:
            with path.open("rb") as file:
                header = self._read_header(file)
                body = bytearray(os.fstat(file.fileno()).st_size - file.tell())
                file.readinto(body)  # the one copy of it: a small machine has no room for more
            if header.digest(body) != header.sha256:
                raise ValueError("its checksum is wrong")
            with suppress(OSError):
                os.utime(path)  # it was used: the others go first
            return _parse(header, memoryview(body))
        except (OSError, MemoryError) as error:
            log(f"the saved KV cache {path.name} cannot be read: {in_words(error)}")
        except (ValueError, msgspec.DecodeError) as error:
            self.forget(path, str(error))
        return None

    def forget(self, path: Path, reason: str) -> None:
        """Remove a saved sequence that is of no use."""
        log(f"a saved KV cache cannot be used: {reason}")
        self._remove(path)

    def takes(self, n_bytes: int) -> bool:
        """Say whether a state of this size may be kept at all."""
        return n_bytes <= self._max_bytes

    def write(self, state: State, on_failure: Callable[[], None] = lambda: None) -> None:
        """Save a sequence in the background; one write at a time. `on_failure` is called over there.

        On a slow disk what waits is given up: what this one goes on with, else the oldest, when there are
        more than one for each sequence and one that was left.
        """
        if not self.takes(state.size):
            return
        waiting = [one for one in self._waiting if not (one.future.running() or one.future.done())]
        outdated = [one for one in waiting if one.tokens == state.tokens[: len(one.tokens)]]
        for one in outdated or waiting[: max(0, len(waiting) - self._most_waiting)]:
            if one.future.cancel():
                one.box.clear()
                if one not in outdated:
                    one.on_failure()
        box = [state]
        future = self._writer.submit(self._try_to_write, box, on_failure)
        self._waiting = [*waiting, _Waiting(future, box, state.tokens, on_failure)]

    def close(self) -> None:
        """Return when everything is on disk; nothing can be written after it."""
        self._writer.shutdown()

    def _known(self) -> list[tuple[Path, _Known]]:
        """Return what is there now: other workers may write into the same folder."""
        with self._lock:
            stamp = _stamp(self._folder)
            if stamp != self._folder_stamp:
                self._folder_stamp = stamp
                files = _files(self._folder)
                self._index = {path: self._index[path] for path in files if path in self._index}
                self._index |= self._read_new([path for path in files if path not in self._seen])
                self._seen = set(files)
            return list(self._index.items())

    def _read_new(self, paths: Sequence[Path]) -> dict[Path, _Known]:
        found: dict[Path, _Known] = {}
        n_foreign = 0
        for path in paths:
            try:
                with path.open("rb") as file:
                    header = self._read_header(file)
                    tokens = array("i")
                    tokens.frombytes(file.read(4 * header.n_tokens))
                if hashlib.sha256(tokens.tobytes()).hexdigest() != header.tokens_sha256:
                    raise ValueError("its tokens are damaged")
                found[path] = _Known(tokens, tuple(header.checkpoints))
            except _ForeignError:
                n_foreign += 1
            except (OSError, ValueError, msgspec.DecodeError) as error:
                log(f"the saved KV cache {path.name} is not used: {error}")
        if n_foreign:
            log(f"{n_foreign} saved KV caches belong to other models, settings or versions")
        return found

    def _read_header(self, file: BinaryIO) -> _Header:
        """Read the header of an open file. Raises ValueError when it is not one of ours, whole and for us."""
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError("it is no saved KV cache")
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size).ljust(_LENGTH.size, b"\0"))
        if length > _MAX_HEADER:
            raise ValueError("its header is too long")
        header = msgspec.json.decode(file.read(length), type=_Header)
        if header.key != self._key:
            raise _ForeignError("it belongs to another model, setting or version")
        are_inside = all(0 < position <= header.n_tokens for position in header.checkpoints)
        if not 0 < header.n_tokens <= _MAX_TOKENS or header.state_bytes < 0 or not are_inside:
            raise ValueError("its header makes no sense")
        body = 4 * header.n_tokens + header.state_bytes + sum(header.checkpoints.values())
        if (
            os.fstat(file.fileno()).st_size != file.tell() + body
            or min(header.checkpoints.values(), default=0) < 0
        ):
            raise ValueError("it is cut off")
        return header

    def _try_to_write(self, box: list[State], on_failure: Callable[[], None]) -> None:
        try:
            self._write(box.pop())
        except (OSError, MemoryError) as error:
            log(f"the KV cache could not be saved: {in_words(error)}")
            on_failure()

    def _write(self, state: State) -> None:
        """Write one file under its final name. Raises OSError."""
        tokens = array("i", state.tokens)
        parts = [tokens.tobytes(), state.data, *state.checkpoints.values()]
        sizes = {position: len(data) for position, data in state.checkpoints.items()}
        tokens_sha256 = hashlib.sha256(parts[0]).hexdigest()
        header = _Header(self._key, len(tokens), len(state.data), sizes, tokens_sha256, "")
        raw = msgspec.json.encode(msgspec.structs.replace(header, sha256=header.digest(*parts)))
        name = hashlib.sha256(self._key.encode() + parts[0]).hexdigest()[:32]
        path, temporary = self._folder / f"{name}.kv", self._folder / f"{name}.{os.getpid()}.part"
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Those that hold no more than the beginning of this one go once it is there.
            outdated = {other for other, known in self._known() if _is_beginning(known.tokens, tokens)}
            self._make_room(state.size, outdated | {path})
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "wb") as file:
                for part in (_MAGIC, _LENGTH.pack(len(raw)), raw, *parts):
                    file.write(part)
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise
        for other in outdated - {path}:
            self._remove(other)

    def _remove(self, path: Path) -> None:
        with self._lock:
            self._index.pop(path, None)
            self._seen.discard(path)  # one of the same name may come again
        with suppress(OSError):
            path.unlink()

    def _make_room(self, n_bytes: int, outdated: Collection[Path]) -> None:
        """Remove files that are none of ours, then those not used for longest, until a new one has room.

        What it puts out of date does not count: it goes anyway, and others must not go for it.
        """
        files = []
        for stale in self._folder.glob("*.part"):  # of a process that was killed while it wrote
            with suppress(OSError):
                if time.time() - stale.stat().st_mtime > _STALE_S:
                    stale.unlink()
        for path in set(_files(self._folder)).difference(outdated):
            with suppress(OSError):
                status = path.stat()
                files.append((_is_ours(path), status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, _, size, _ in files) + n_bytes
        for _, _, size, path in sorted(files):
            if total <= self._max_bytes:
                return
            self._remove(path)
            total -= size


def _stamp(folder: Path) -> int:
    """Return what changes whenever a file comes or goes."""
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def _parse(header: _Header, body: memoryview) -> State:
    tokens = array("i")
    at = 4 * header.n_tokens
    tokens.frombytes(body[:at])
    data = body[at : at + header.state_bytes]
    at += header.state_bytes
    checkpoints: dict[int, bytearray] = {}
    for position, size in header.checkpoints.items():
        checkpoints[position] = bytearray(body[at : at + size])  # a view would keep the whole file in memory
        at += size
    return State(tokens.tolist(), data, checkpoints)


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.glob("*.kv") if path.is_file() and not path.is_symlink())
    except OSError:
        return []


def _is_beginning(short: Sequence[int], long: Sequence[int]) -> bool:
    return len(short) <= len(long) and common_prefix(short, long) == len(short)


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many first tokens two sequences share."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))


def in_words(error: Exception) -> str:
    """Return what went wrong; Python leaves a MemoryError without words."""
    return getattr(error, "strerror", None) or str(error) or "memory is short"


def log(sentence: str) -> None:
    """Write one line to the worker's log."""
    sys.stderr.write(f"edgeqwen: {clean_line(sentence)}\n")
