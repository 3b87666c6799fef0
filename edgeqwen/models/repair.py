"""Makes a damaged file right again with as few bytes as possible: only the chunks that are wrong are fetched.

Works on a copy; the installed file is replaced in one step, and only by bytes with the right sha256.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from edgeqwen.errors import DownloadError, NotInstalled, StoreError
from edgeqwen.models.digest import CHUNK, digest_of
from edgeqwen.models.download import Wanted, Watch, fetch
from edgeqwen.models.install import check_room, make_own, store_error
from edgeqwen.models.locks import locked
from edgeqwen.models.remote import Address, Refused, TryAgain, open_stretch
from edgeqwen.models.sources import Origin, Sources
from edgeqwen.models.store import MANIFEST, Entry, ManifestFile, Store

_TRIES = 6
_BLOCK = 1 << 20


def repair(
    entry: Entry, file: ManifestFile, origin: Origin, store: Store, sources: Sources, watch: Watch
) -> int:
    """Replace a damaged or missing file of an entry and return the bytes fetched. Blocking.

    Raises StoreError or DownloadError; then the file is as it was.
    """
    if not entry.is_writable:
        message = f"{entry.ref} lies in {entry.folder}, which edgeqwen only reads"
        raise StoreError(message, path=str(entry.folder), cause="no_permission")
    path = entry.folder / file.name
    try:
        with locked(store.partial, f"{entry.manifest.model}-{entry.manifest.quant}", [file.sha256]):
            if not (entry.folder / MANIFEST).exists():
                raise NotInstalled(f"{entry.ref} was removed meanwhile", ref=entry.ref)
            check_room(store, file.size)
            if file.chunks and path.is_file():
                fetched = _patch(path, file, origin, store, sources, watch)
                if fetched is not None:
                    return fetched
            return _whole(path, file, origin, store, sources, watch)
    except OSError as error:
        raise store_error(error, store, file.size) from error


def _patch(
    path: Path, file: ManifestFile, origin: Origin, store: Store, sources: Sources, watch: Watch
) -> int | None:
    """Fetch the wrong chunks into a copy; None when the result is not right either."""
    copy = store.partial / f"{file.sha256}.mend"
    fetched = 0
    try:
        _copy_readable(path, copy)
        with copy.open("r+b", buffering=0) as target:
            target.truncate(file.size)
            for start in wrong_chunks(copy, file):
                end = min(start + CHUNK, file.size)
                data = _chunk(sources.addresses(origin), start, end, file, watch)
                target.seek(start)
                target.write(data)
                fetched += len(data)
            os.fsync(target.fileno())
        if digest_of(copy).sha256 != file.sha256:
            return None
        copy.chmod(0o444)
        copy.replace(path)
        return fetched
    finally:
        copy.unlink(missing_ok=True)


def _copy_readable(path: Path, copy: Path) -> None:
    """Copy a file; where the disk cannot read it any more, the copy is wrong. Raises OSError for the copy."""
    with path.open("rb", buffering=0) as source, copy.open("wb") as target:
        for start in range(0, os.fstat(source.fileno()).st_size, _BLOCK):
            try:
                source.seek(start)
                data = source.read(_BLOCK)
            except OSError:
                continue  # a hole, whose checksum will tell
            target.seek(start)
            target.write(data)


def wrong_chunks(path: Path, file: ManifestFile) -> Iterator[int]:
    """Yield where each chunk begins that is not as its table says. Blocking."""
    with path.open("rb", buffering=0) as source:
        for index, crc in enumerate(file.chunks):
            start = index * CHUNK
            found, left = 0, min(CHUNK, file.size - start)
            source.seek(start)
            while left and (data := source.read(min(left, 1 << 20))):
                found, left = zlib.crc32(data, found), left - len(data)
            if found != crc:
                yield start


def _chunk(addresses: list[Address], start: int, end: int, file: ManifestFile, watch: Watch) -> bytes:
    """Return one stretch of a file, from the first address that has it. Raises DownloadError."""
    reasons = []
    for address in addresses:
        for _ in range(_TRIES):
            try:
                return _stretch(address, start, end, file.size)
            except TryAgain as error:
                reason = str(error)
                watch.wait(1.0 if error.wait_s is None else error.wait_s)
            except Refused as error:
                reason = str(error)
                break
        reasons.append(f"{address.host}: {reason}")
    raise DownloadError(f"{file.name} could not be repaired: {'; '.join(reasons)}", retryable=True)


def _stretch(address: Address, start: int, end: int, size: int) -> bytes:
    gathered = bytearray()
    with open_stretch(address, start, size, end) as body:
        if body.start != start:
            raise Refused("it sends whole files only")
        while len(gathered) < end - start:
            data = body.read()
            if not data:
                raise TryAgain("the line was closed early")
            gathered += data
    return bytes(gathered[: end - start])


def _whole(
    path: Path, file: ManifestFile, origin: Origin, store: Store, sources: Sources, watch: Watch
) -> int:
    part = store.part(file.sha256)
    make_own(part)
    held = part.stat().st_size if part.exists() else 0
    fetch(Wanted(file.name, file.size, file.sha256), sources.addresses(origin), part, watch)
    part.chmod(0o444)
    path.parent.mkdir(parents=True, exist_ok=True)
    part.replace(path)
    return file.size - held
