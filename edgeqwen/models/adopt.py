"""Takes a GGUF file that is already on this machine into the store: scan, hash, recognise, place, publish.

The one door for local files. Knows nothing of networks.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from filelock import FileLock

from edgeqwen.errors import InvalidGGUF, InvalidInput, StoreError
from edgeqwen.models.catalogue import Catalogue, CatalogueFile, Model, Variant
from edgeqwen.models.facts import ModelFacts, facts_of, open_header
from edgeqwen.models.ref import is_safe_file_name, is_safe_name, normal_name
from edgeqwen.models.store import (
    MANIFEST,
    Entry,
    Manifest,
    ManifestFile,
    Progress,
    Store,
    sha256_of,
    sync_folder,
    write_manifest,
)

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_QUANT_IN_NAME = re.compile(r"[-_.](?P<quant>(ud-)?(i?q\d[a-z0-9_]*|bf16|fp?16|fp?32|mxfp4))$", re.IGNORECASE)
_MARGIN = 64 << 20  # bytes left free on the disk
_FICLONE = 0x40049409  # linux/fs.h

CameBy = Literal["hard link", "reflink", "copy", "move"]


@dataclass(frozen=True)
class Adopted:
    """What an import came to."""

    entry: Entry
    is_new: bool
    """False: the same bytes were installed already."""


@dataclass(frozen=True)
class _Found:
    """A model file on disk, or all its shards, scanned and hashed."""

    paths: tuple[Path, ...]
    facts: ModelFacts
    files: tuple[ManifestFile, ...]
    known: tuple[Model, Variant] | None


def adopt(
    path: Path,
    store: Store,
    catalogue: Catalogue,
    *,
    move: bool = False,
    progress: Progress = lambda done, total: None,
) -> Adopted:
    """Import a model file, with its shards, and return its entry. Blocking.

    Files are linked where the disk can, else copied; with `move` the originals are gone afterwards.
    `progress` counts the bytes hashed.

    Raises InvalidInput, InvalidGGUF or StoreError; then nothing is left behind.
    """
    found = _inspect(path, catalogue, progress)
    model, quant = _name(found, path)
    folder = store.root / model / quant
    try:
        with _locked(store, f"{model}-{quant}"):
            for entry in store.entries():
                if [file.sha256 for file in entry.manifest.files] == [file.sha256 for file in found.files]:
                    return Adopted(entry, is_new=False)
            manifest = _install(found, folder, store, path, move=move)
    except OSError as error:
        raise _store_error(error, folder, found) from error
    if move:
        _remove_originals(found)
    return Adopted(Entry(folder, manifest, is_writable=True), is_new=True)


def shards_of(path: Path) -> tuple[Path, ...]:
    """Return all shards of the model that `path` is a part of, or `path` alone. Raises InvalidInput."""
    match = _SHARD.fullmatch(path.name)
    if match is None:
        return (path,)
    count = int(match["count"])
    if not 1 <= int(match["number"]) <= count <= 1000:
        raise InvalidInput(f"{path.name} is no shard: its number does not fit its count")
    tail = path.suffix
    names = [f"{match['stem']}-{number:05}-of-{match['count']}{tail}" for number in range(1, count + 1)]
    missing = [name for name in names if not (path.parent / name).exists()]
    if missing:
        raise InvalidInput(f"{path.name} is one of {count} shards and {missing[0]} is not beside it")
    return tuple(path.parent / name for name in names)


def _inspect(path: Path, catalogue: Catalogue, progress: Progress) -> _Found:
    """Scan and hash everything, before anything is written."""
    if not path.exists():
        raise InvalidInput(f"no such file: {path}")
    paths = shards_of(path)
    headers = [open_header(shard) for shard in paths]
    facts = facts_of(headers[0], paths[0].name)
    if facts.split_count != len(paths):
        raise InvalidInput(
            f"{path.name} is one of {facts.split_count} shards; keep their original names together"
        )
    for number, (shard, header) in enumerate(zip(paths, headers, strict=True)):
        if len(paths) > 1 and header.metadata.get("split.no") != number:
            reason = f"its name says shard {number + 1}, its header does not"
            raise InvalidGGUF(f"{shard.name} cannot be used: {reason}", path=str(shard), reason=reason)
    tensors = sum(len(header.tensors) for header in headers)
    total_tensors = headers[0].metadata.get("split.tensors.count", tensors)
    if len(paths) > 1 and total_tensors != tensors:
        raise InvalidInput(f"the shards of {path.name} hold {tensors} tensors instead of {total_tensors}")
    hashed = _hash(paths, progress)
    hits = [catalogue.recognise(file.size, file.sha256) for file in hashed]
    known = hits[0][:2] if hits[0] and all(hit and hit[1] is hits[0][1] for hit in hits) else None
    if known:
        hashed = _catalogue_names(hashed, known[1].files)
    return _Found(paths, facts, hashed, known)


def _hash(paths: tuple[Path, ...], progress: Progress) -> tuple[ManifestFile, ...]:
    sizes = [path.stat().st_size for path in paths]
    total, done = sum(sizes), 0
    files = []
    for path, size in zip(paths, sizes, strict=True):

        def tell(count: int, base: int = done) -> None:
            progress(base + count, total)

        try:
            digest = sha256_of(path, tell)
        except OSError as error:
            raise InvalidInput(f"cannot read {path}: {error.strerror}") from error
        files.append(ManifestFile(_file_name(path.name), size, digest))
        done += size
    return tuple(files)


def _file_name(name: str) -> str:
    """Return the name a file keeps in the store: its own, but for characters that some disks refuse."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name.removesuffix(Path(name).suffix)).strip("-.") or "model"
    safe = f"{stem[:190]}.gguf"
    return safe if is_safe_file_name(safe) else f"model-{safe}"


def _catalogue_names(
    files: tuple[ManifestFile, ...], known: tuple[CatalogueFile, ...]
) -> tuple[ManifestFile, ...]:
    names = {file.sha256: file.name for file in known}
    return tuple(ManifestFile(names[file.sha256], file.size, file.sha256) for file in files)


def _name(found: _Found, path: Path) -> tuple[str, str]:
    """Return model and quant: the catalogue's, or what the file calls itself."""
    if found.known:
        return found.known[0].ref, found.known[1].quant
    shard = _SHARD.fullmatch(path.name)
    stem = shard["stem"] if shard else path.name.removesuffix(path.suffix)
    in_name = _QUANT_IN_NAME.search(stem)
    quant = (in_name["quant"].lower() if in_name else found.facts.quant) or "unknown"
    model = normal_name(stem[: in_name.start()] if in_name else stem)
    model = re.sub(r"[^a-z0-9._-]+", "-", model).strip("-._")[:64] or "model"
    return (model if is_safe_name(model) else f"own-{model}"[:64]), quant


@contextmanager
def _locked(store: Store, name: str) -> Iterator[None]:
    """Let one process at a time install a variant. Raises OSError."""
    store.partial.mkdir(parents=True, exist_ok=True)
    lock = store.partial / f"{name}.lock"
    with FileLock(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _install(found: _Found, folder: Path, store: Store, path: Path, *, move: bool) -> Manifest:
    """Place the files and write the manifest, or leave nothing. Raises OSError or StoreError."""
    model, quant = folder.parts[-2:]
    if (folder / MANIFEST).exists():
        message = f"another {model}:{quant} is installed already; remove it first, or rename {path.name}"
        raise StoreError(message, path=str(folder), cause="name_taken")
    try:
        came_by = _place(found, folder, store)
        manifest = Manifest(
            layout=1,
            model=model,
            quant=quant,
            files=found.files,
            facts=found.facts,
            came_by="move" if move else came_by,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            tool=f"edgeqwen {version('edgeqwen')}",
            catalogue_ref=found.known[0].ref if found.known else None,
            source=str(path.absolute()),
        )
        write_manifest(folder, manifest)
    except BaseException:  # Ctrl-C as well
        _clear(folder, found)
        raise
    return manifest


def _remove_originals(found: _Found) -> None:
    for source in found.paths:
        try:
            source.unlink(missing_ok=True)
        except OSError as error:
            message = f"the model is installed, but {source} cannot be removed: {error.strerror}"
            raise StoreError(message, path=str(source), cause="io") from error


def _place(found: _Found, folder: Path, store: Store) -> CameBy:
    """Bring every file under its final name, by the cheapest way the disk offers."""
    folder.mkdir(parents=True, exist_ok=True)
    came_by: CameBy = "hard link"
    for source, file in zip(found.paths, found.files, strict=True):
        part = store.partial / f"{file.sha256}.part"
        part.unlink(missing_ok=True)
        try:
            came_by = _bring(source, part, file)
            part.replace(folder / file.name)
        finally:
            part.unlink(missing_ok=True)
    sync_folder(folder)
    return came_by


def _bring(source: Path, part: Path, file: ManifestFile) -> CameBy:
    for way, name in ((_link, "hard link"), (_reflink, "reflink")):
        if way(source, part):
            if part.stat().st_size != file.size:
                raise StoreError(
                    f"{source.name} changed while it was read", path=str(source), cause="wrong_digest"
                )
            return name  # type: ignore[return-value]
    free = shutil.disk_usage(part.parent).free
    if free < file.size + _MARGIN:
        raise OSError(errno.ENOSPC, f"{file.size:,} bytes needed, {free:,} free")
    with source.open("rb") as reader, part.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
        writer.flush()
        os.fsync(writer.fileno())
    if sha256_of(part) != file.sha256:
        raise StoreError(f"{source.name} changed while it was copied", path=str(source), cause="wrong_digest")
    part.chmod(0o444)  # a linked file stays as its owner has it
    return "copy"


def _link(source: Path, part: Path) -> bool:
    """Hard-link, unless the disk, the system or another volume forbids it."""
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


def _clear(folder: Path, found: _Found) -> None:
    """Take back what a failed import has placed; an installed entry is never touched here."""
    try:
        for file in found.files:
            (folder / file.name).unlink(missing_ok=True)
        for empty in (folder, folder.parent):
            if empty.is_dir() and not any(empty.iterdir()):
                empty.rmdir()
    except OSError:
        return  # without a manifest it is not installed; a rerun takes it over


def _store_error(error: OSError, folder: Path, found: _Found) -> StoreError:
    size = sum(file.size for file in found.files)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        message = f"no space left for {size:,} bytes in {folder.parent.parent}"
        return StoreError(message, path=str(folder), cause="disk_full")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        message = f"no permission to write to {folder.parent.parent}"
        return StoreError(message, path=str(folder), cause="no_permission")
    return StoreError(f"cannot write {folder}: {error.strerror or error}", path=str(folder), cause="io")
