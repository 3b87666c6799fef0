"""Takes a GGUF file that is already on this machine into the store: scan, hash, recognise, place, publish.

The one door for local files. Knows nothing of networks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from edgeqwen.errors import InvalidInput, StoreError
from edgeqwen.models.catalogue import Catalogue, CatalogueFile, Model, Variant
from edgeqwen.models.digest import digest_of
from edgeqwen.models.facts import ModelFacts, read_model
from edgeqwen.models.install import (
    bring,
    check_free_name,
    check_room,
    find_same,
    publish,
    stamped_now,
    store_error,
)
from edgeqwen.models.locks import locked
from edgeqwen.models.ref import (
    QUANT_IN_NAME,
    SHARD_IN_NAME,
    folder_name,
    is_safe_file_name,
    is_safe_name,
)
from edgeqwen.models.store import LONGEST_TEXT, Entry, Manifest, ManifestFile, Progress, Store, part_of
from edgeqwen.text import clean_line

_LONGEST_STEM = 190  # of a file name in the store


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
    try:
        with locked(store.partial, f"{model}-{quant}", [file.sha256 for file in found.files]):
            if entry := find_same(store, found.files):
                return Adopted(entry, is_new=False)
            check_free_name(store, model, quant, found.files)
            entry = _install(found, store, (model, quant), path, move=move)
    except OSError as error:
        raise store_error(error, store, sum(file.size for file in found.files)) from error
    if move:
        _remove_originals(found, entry)
    return Adopted(entry, is_new=True)


def shards_of(path: Path) -> tuple[Path, ...]:
    """Return all shards of the model that `path` is a part of, or `path` alone. Raises InvalidInput."""
    match = SHARD_IN_NAME.fullmatch(path.name)
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
    try:
        if not path.exists():
            raise InvalidInput(f"no such file: {path}")
        paths = shards_of(path)
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from error
    if len(paths) > 1 and len(path.stem) > _LONGEST_STEM:
        raise InvalidInput(f"{path.name} has too long a name for a shard; at most {_LONGEST_STEM} characters")
    facts = read_model(paths)
    hashed = _hash(paths, progress)
    known = catalogue.recognise((file.size, file.sha256) for file in hashed)
    if known:
        hashed = _catalogue_names(hashed, known[1].files)
    return _Found(paths, facts, hashed, known)


def _hash(paths: tuple[Path, ...], progress: Progress) -> tuple[ManifestFile, ...]:
    sizes = [path.stat().st_size for path in paths]
    total, done = sum(sizes), 0
    files = []
    for path, size in zip(paths, sizes, strict=True):
        try:
            before = path.stat().st_mtime_ns
            digests = digest_of(path, part_of(progress, done, total))
            if path.stat().st_mtime_ns != before:
                raise InvalidInput(f"{path} changed while it was read; try again when it is whole")
        except OSError as error:
            raise InvalidInput(f"cannot read {path}: {error.strerror}") from error
        files.append(ManifestFile(_file_name(path.name), size, digests.sha256, digests.chunks))
        done += size
    return tuple(files)


def _file_name(name: str) -> str:
    """Return the name a file keeps in the store: its own, but for characters that some disks refuse."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name.removesuffix(Path(name).suffix)).strip("-.") or "model"
    safe = f"{stem[:_LONGEST_STEM]}.gguf"
    return safe if is_safe_file_name(safe) else f"model-{safe}"


def _catalogue_names(
    files: tuple[ManifestFile, ...], known: tuple[CatalogueFile, ...]
) -> tuple[ManifestFile, ...]:
    names = {file.sha256: file.name for file in known}
    return tuple(replace(file, name=names[file.sha256]) for file in files)


def _name(found: _Found, path: Path) -> tuple[str, str]:
    """Return model and quant: the catalogue's, or what the file calls itself."""
    if found.known:
        return found.known[0].ref, found.known[1].quant
    shard = SHARD_IN_NAME.fullmatch(path.name)
    stem = shard["stem"] if shard else path.name.removesuffix(path.suffix)
    in_name = QUANT_IN_NAME.search(stem)
    quant = (in_name["quant"].lower() if in_name else found.facts.quant) or "unknown"
    if not is_safe_name(quant):
        quant = found.facts.quant or "unknown"
    model = folder_name(stem[: in_name.start()] if in_name else stem) or "model"
    return (model if is_safe_name(model) else folder_name(f"own-{model}")), quant


def _install(found: _Found, store: Store, name: tuple[str, str], path: Path, *, move: bool) -> Entry:
    """Make parts of the files and publish them, or leave nothing. Raises OSError or StoreError."""
    parts = [store.part(file.sha256) for file in found.files]
    created, tool = stamped_now()
    try:
        _check_room(found, store)
        ways = [bring(*three) for three in zip(found.paths, parts, found.files, strict=True)]
        manifest = Manifest(
            layout=1,
            model=name[0],
            quant=name[1],
            files=found.files,
            facts=found.facts,
            came_by="move" if move else ways[0],
            created=created,
            tool=tool,
            catalogue_ref=found.known[0].ref if found.known else None,
            source=clean_line(str(path.absolute()), LONGEST_TEXT),
        )
        return publish(store, manifest)
    except BaseException:  # Ctrl-C as well
        for part in parts:
            part.unlink(missing_ok=True)
        raise


def _check_room(found: _Found, store: Store) -> None:
    """Raise OSError when the files lie on another disk than the store and that one has no room for them."""
    here = store.partial.stat().st_dev
    check_room(store, sum(path.stat().st_size for path in found.paths if path.stat().st_dev != here))


def _remove_originals(found: _Found, entry: Entry) -> None:
    installed = {path.resolve() for path in entry.paths()}
    for source in found.paths:
        try:
            if source.resolve() not in installed:  # it may have lain in its place without a manifest
                source.unlink(missing_ok=True)
        except OSError as error:
            message = f"the model is installed, but {source} cannot be removed: {error.strerror}"
            raise StoreError(message, path=str(source), cause="io") from error
