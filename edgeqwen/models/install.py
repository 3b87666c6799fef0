"""The last steps into the store, the same for every way in: part files, final names, manifest.

Knows nothing of where the bytes come from.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from edgeqwen.errors import StoreError
from edgeqwen.models.digest import digest_of
from edgeqwen.models.store import MANIFEST, Entry, Manifest, ManifestFile, Store, sync_folder, write_manifest
from edgeqwen.models.volume import FAT_LARGEST, is_fat

_MARGIN = 64 << 20  # bytes left free on the disk
_FICLONE = 0x40049409  # linux/fs.h

Way = Literal["hard link", "reflink", "copy"]


def find_same(store: Store, files: Sequence[ManifestFile]) -> Entry | None:
    """Return the entry that holds these very bytes, under whatever name; one that lost a file does not."""
    wanted = [file.sha256 for file in files]
    same = (entry for entry in store.entries() if [file.sha256 for file in entry.manifest.files] == wanted)
    return next((entry for entry in same if _is_whole(entry)), None)


def _is_whole(entry: Entry) -> bool:
    try:
        sizes = [path.stat().st_size for path in entry.paths()]
    except OSError:
        return False
    return sizes == [file.size for file in entry.manifest.files]


def check_free_name(store: Store, model: str, quant: str, files: Sequence[ManifestFile]) -> None:
    """Raise StoreError when other bytes than those of `files` are installed under a name."""
    folder = store.root / model / quant
    wanted = [file.sha256 for file in files]
    entries = (entry for entry in store.entries() if entry.folder == folder)
    if any([file.sha256 for file in entry.manifest.files] == wanted for entry in entries):
        return
    if (folder / MANIFEST).exists():
        message = f"another {model}:{quant} is installed already; remove it first, or rename the file"
        raise StoreError(message, path=str(folder), cause="name_taken")


def check_largest(store: Store, largest: int) -> None:
    """Raise StoreError when the store's disk holds no file of so many bytes."""
    if largest > FAT_LARGEST and is_fat(store.root):
        message = f"{store.root} is on a FAT disk, which holds no file of {largest:,} bytes; exFAT does"
        raise StoreError(message, path=str(store.root), cause="io")


def check_room(store: Store, n_bytes: int) -> None:
    """Raise OSError when the store's disk has no room for so many bytes."""
    free = shutil.disk_usage(store.partial).free
    if free < n_bytes + _MARGIN:
        raise OSError(errno.ENOSPC, f"{n_bytes:,} bytes needed, {free:,} free")


def publish(store: Store, manifest: Manifest) -> Entry:
    """Give the part files of a manifest their final names and write it. Raises OSError.

    When that fails the files are parts again, and nothing counts as installed.
    """
    folder = store.root / manifest.model / manifest.quant
    placed: list[ManifestFile] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in manifest.files:
            placed.append(file)
            store.part(file.sha256).replace(folder / file.name)
            store.part(file.sha256).unlink(missing_ok=True)  # rename leaves it where both are one file
        sync_folder(folder)
        write_manifest(folder, manifest)
    except BaseException:  # Ctrl-C as well
        for file in placed:
            with suppress(OSError):
                (folder / file.name).replace(store.part(file.sha256))
        with suppress(OSError):
            folder.rmdir()
            folder.parent.rmdir()
        raise
    return Entry(folder, manifest, is_writable=True)


def make_own(part: Path) -> None:
    """Make sure that a part may be written to: a link to somebody's file is let go, a read-only one opened.

    Raises OSError.
    """
    with suppress(FileNotFoundError):
        status = part.stat()
        if status.st_nlink > 1:
            part.unlink()
        elif not status.st_mode & stat.S_IWUSR:
            part.chmod(0o644)


def bring(source: Path, part: Path, file: ManifestFile) -> Way:
    """Make a part file of a local one by the cheapest way the disk offers. Raises OSError or StoreError."""
    part.unlink(missing_ok=True)
    ways: tuple[tuple[Way, Callable[[Path, Path], bool]], ...] = (("hard link", link), ("reflink", _reflink))
    way = next((name for name, attempt in ways if attempt(source, part)), None)
    if way is not None:
        if part.stat().st_size != file.size:
            message = f"{source.name} changed while it was read"
            raise StoreError(message, path=str(source), cause="wrong_digest")
        return way
    with source.open("rb") as reader, part.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
        writer.flush()
        os.fsync(writer.fileno())
    if digest_of(part).sha256 != file.sha256:
        raise StoreError(f"{source.name} changed while it was copied", path=str(source), cause="wrong_digest")
    part.chmod(0o444)  # a linked file stays as its owner has it
    return "copy"


def stamped_now() -> tuple[str, str]:
    """Return what a manifest says of its making: the time, and the program."""
    return datetime.now(UTC).isoformat(timespec="seconds"), f"edgeqwen {version('edgeqwen')}"


def store_error(error: OSError, store: Store, size: int) -> StoreError:
    """Say what a failing disk means. `size` is what was to be written, in bytes."""
    where = str(store.root)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f"no space left for {size:,} bytes in {where}", path=where, cause="disk_full")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreError(f"no permission to write to {where}", path=where, cause="no_permission")
    return StoreError(f"cannot write {where}: {error.strerror or error}", path=where, cause="io")


def link(source: Path, part: Path) -> bool:
    """Hard-link, unless the disk, the system or another volume forbids it. Raises OSError when full."""
    try:
        os.link(source.resolve(), part)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT):
            raise
        return False
    return True


def _reflink(source: Path, part: Path) -> bool:
    """Clone the file's blocks on file systems that share them (Btrfs, XFS)."""
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        with source.open("rb") as reader, part.open("wb") as writer:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
    except OSError:
        part.unlink(missing_ok=True)
        return False
    return True
