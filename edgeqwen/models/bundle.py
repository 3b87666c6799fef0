"""Reads bundles: plain folders with a signed manifest that carry models across an air gap, part by part.

    manifest.json            what is in it, canonical JSON
    manifest.json.minisig    Ed25519 signature (minisign)
    SHA256SUMS  README.txt   for people without edgeqwen
    sbom.cdx.json            CycloneDX 1.6
    blobs/<sha256>           or blobs/<sha256>.part-0000 ... where files must be small
    licences/<key>.txt       what the models' licences say
    app/                     edgeqwen itself, where it was asked for: install.sh and wheels/

Owns the format, checking and installing; export.py writes them. The only paths it opens are those patterns;
names inside the manifest pass the store's rules.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec

from edgeqwen.errors import InvalidInput, StoreError
from edgeqwen.jsonfile import NOT_JSON
from edgeqwen.models.catalogue import Catalogue
from edgeqwen.models.digest import digest_of, is_sha256
from edgeqwen.models.facts import read_model
from edgeqwen.models.install import (
    check_free_name,
    check_largest,
    check_room,
    find_same,
    make_own,
    publish,
    stamped_now,
    store_error,
)
from edgeqwen.models.locks import locked
from edgeqwen.models.minisign import PublicKey, check, key_id
from edgeqwen.models.ref import is_safe_file_name, is_safe_name
from edgeqwen.models.store import Entry, Manifest, ManifestFile, Progress, Store, part_of
from edgeqwen.text import clean_line

MANIFEST, SIGNATURE, SUMS = "manifest.json", "manifest.json.minisig", "SHA256SUMS"
_MAX_MANIFEST = 4 << 20
_BLOCK = 1 << 20
_PART_NAME = re.compile(r"blobs/([0-9a-f]{64})(\.part-\d{4,6})?")
_EXTRA_NAME = re.compile(
    r"licences/[a-z0-9][a-z0-9.-]{0,63}\.txt|app/install\.sh|app/wheels/[A-Za-z0-9][A-Za-z0-9._+-]{0,200}\.whl"
)
_SOURCE = re.compile(r"hf:[\w.-]+/[\w.-]+@[0-9a-f]{40}", re.ASCII)


@dataclass(frozen=True)
class Part:
    """One file of a bundle."""

    name: str
    """Below the bundle: blobs/<sha256>, or that with .part-0000 and so on; or what an extra is called."""
    size: int
    sha256: str


@dataclass(frozen=True)
class Blob:
    """The bytes of one model file, in one part or several."""

    sha256: str
    size: int
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class BundledModel:
    """One variant as it is to be installed."""

    model: str
    quant: str
    licence: str | None
    catalogue_ref: str | None
    source: str | None
    files: tuple[ManifestFile, ...]


@dataclass(frozen=True)
class BundleManifest:
    """The record of a bundle."""

    format: Literal["edgeqwen-bundle"]
    version: Literal[1]
    bundle_id: str
    created: str
    tool: str
    models: tuple[BundledModel, ...]
    blobs: tuple[Blob, ...]
    extras: tuple[Part, ...] = ()
    """Licences and the app: checked like the rest, installed by nobody but people."""

    def parts(self) -> Iterator[Part]:
        """Yield every file that the manifest vouches for."""
        for blob in self.blobs:
            yield from blob.parts
        yield from self.extras

    @property
    def size(self) -> int:
        """Bytes of all blobs."""
        return sum(blob.size for blob in self.blobs)


@dataclass(frozen=True)
class Opened:
    """A bundle whose manifest was read and checked."""

    folder: Path
    manifest: BundleManifest
    signed_by: PublicKey | None
    """None: unsigned, and taken all the same."""


def open_bundle(folder: Path, trusted: list[PublicKey], *, allow_unsigned: bool = False) -> Opened:
    """Read a bundle's manifest, its signature first. Raises InvalidInput, or StoreError without trust."""
    raw = _read_small(folder / MANIFEST)
    if raw is None:
        raise InvalidInput(f"{folder} is no bundle: it has no {MANIFEST}")
    signature = _read_small(folder / SIGNATURE)
    text = signature.decode("utf-8", "replace") if signature else ""
    is_known = key_id(text) in {key.id for key in trusted}
    # A signature by a trusted key must be right, also where unsigned bundles are taken.
    signed_by = check(raw, text, trusted)[0] if is_known or not allow_unsigned else None
    try:
        manifest = msgspec.json.decode(raw, type=BundleManifest)
    except NOT_JSON as error:
        raise InvalidInput(f"the manifest of {folder} cannot be read: {error}") from error
    _check_manifest(manifest)
    return Opened(folder, manifest, signed_by)


def verify(bundle: Opened, progress: Progress) -> Iterator[tuple[Part, str | None]]:
    """Hash every part; yield each with what is wrong with it, or None. Blocking."""
    done, total = 0, sum(part.size for part in bundle.manifest.parts())
    for part in bundle.manifest.parts():
        problem = None
        try:
            for block in _read_part(bundle.folder, part):
                done += len(block)
                progress(done, total)
        except StoreError as error:
            problem = error.message
        yield part, problem


def strangers(bundle: Opened) -> Iterator[str]:
    """Yield what is wrong beside the parts: files that nobody has signed for, sums that are not theirs."""
    known = {part.name for part in bundle.manifest.parts()}
    for folder in ("blobs", "licences", "app"):
        for path in sorted((bundle.folder / folder).rglob("*")):
            name = path.relative_to(bundle.folder).as_posix()
            if name not in known and (path.is_symlink() or not path.is_dir()):
                yield f"{clean_line(name)} is not in the signed manifest"
    sums = _read_small(bundle.folder / SUMS)
    if sums is not None and sums != sums_of(bundle.manifest).encode():
        yield f"{SUMS} is not what the signed manifest says"


def sums_of(manifest: BundleManifest) -> str:
    """Return SHA256SUMS as a bundle has it."""
    return "".join(f"{part.sha256}  {part.name}\n" for part in manifest.parts())


def install(
    bundle: Opened, store: Store, catalogue: Catalogue, progress: Progress
) -> list[tuple[Entry, bool]]:
    """Install every model of a bundle; returns each entry and whether it is new. Blocking; resumes.

    Only the catalogue says which model it is, by size and sha256; the bundle's word is not taken for it.

    Raises StoreError, which names the damaged part, or InvalidGGUF; whole parts stay for the next try.
    """
    installed, done = [], 0
    blobs = {blob.sha256: blob for blob in bundle.manifest.blobs}
    for model in bundle.manifest.models:
        size = sum(file.size for file in model.files)
        entry: Entry | None
        try:
            with locked(store.partial, f"{model.model}-{model.quant}", [file.sha256 for file in model.files]):
                entry = find_same(store, model.files)
                is_new = entry is None
                if entry is None:
                    check_free_name(store, model.model, model.quant, model.files)
                    held = sum(_held(store.part(file.sha256)) for file in model.files)
                    check_largest(store, max(file.size for file in model.files))
                    check_room(store, size - held)
                    tell = part_of(progress, done, bundle.manifest.size)
                    entry = _install_one(bundle, model, blobs, store, tell, catalogue)
        except OSError as error:
            raise store_error(error, store, size) from error
        installed.append((entry, is_new))
        done += size
    return installed


def _install_one(
    bundle: Opened,
    model: BundledModel,
    blobs: dict[str, Blob],
    store: Store,
    progress: Callable[[int], None],
    catalogue: Catalogue,
) -> Entry:
    files, done = [], 0
    for file in model.files:
        chunks = _gather(bundle.folder, blobs[file.sha256], store.part(file.sha256), done, progress)
        files.append(ManifestFile(file.name, file.size, file.sha256, chunks))
        done += file.size
    facts = read_model([store.part(file.sha256) for file in files], [file.name for file in files])
    created, tool = stamped_now()
    manifest = Manifest(
        layout=1,
        model=model.model,
        quant=model.quant,
        files=tuple(files),
        facts=facts,
        came_by="bundle",
        created=created,
        tool=tool,
        catalogue_ref=_known_as(model, catalogue),
        source=model.source if _SOURCE.fullmatch(model.source or "") else None,
    )
    return publish(store, manifest)


def _known_as(model: BundledModel, catalogue: Catalogue) -> str | None:
    """Return the catalogue's model of these very bytes."""
    known = catalogue.recognise((file.size, file.sha256) for file in model.files)
    return known[0].ref if known else None


def _held(part: Path) -> int:
    try:
        return part.stat().st_size
    except OSError:
        return 0


def _gather(
    folder: Path, blob: Blob, target: Path, base: int, progress: Callable[[int], None]
) -> tuple[int, ...]:
    """Put a blob's parts together and return its chunk table; goes on at the byte where others stopped."""
    make_own(target)
    with target.open("r+b" if target.exists() else "w+b") as file:
        at = 0
        for part in blob.parts:
            _complete(folder, part, file, at, lambda done: progress(base + done))
            at += part.size
        file.truncate(at)
        file.flush()
        os.fsync(file.fileno())
    digests = digest_of(target)
    if digests.sha256 != blob.sha256:
        target.unlink()
        message = f"the parts of {blob.sha256[:12]}… do not make the file they are said to make"
        raise StoreError(message, path=str(folder), cause="wrong_digest")
    return digests.chunks


def _complete(folder: Path, part: Part, file: BinaryIO, at: int, progress: Callable[[int], None]) -> None:
    """Make the stretch of a file from `at` on the bytes of a part; what is there already is tried first.

    Raises StoreError when the part is damaged; then the file has what it had, which may be good.
    """
    held = max(0, min(file.seek(0, os.SEEK_END) - at, part.size))
    if held:
        digest = hashlib.sha256()
        for block in _blocks(file, at, held):
            digest.update(block)
        if held == part.size and digest.hexdigest() == part.sha256:
            progress(at + held)
            return
        for _ in _read_part(folder, part):  # before a byte is given up: is the part itself right?
            pass
        with (folder / part.name).open("rb") as source:
            same = held < part.size and all(
                block == source.read(len(block)) for block in _blocks(file, at, held)
            )
        held = held if same else 0
    file.seek(at)
    skipped = 0
    for block in _read_part(folder, part):
        fresh = block[max(0, held - skipped) :]
        file.seek(at + skipped + len(block) - len(fresh))
        file.write(fresh)
        skipped += len(block)
        progress(at + skipped)


def _blocks(file: BinaryIO, at: int, size: int) -> Iterator[bytes]:
    file.seek(at)
    while size and (block := file.read(min(size, _BLOCK))):
        size -= len(block)
        yield block


def _read_part(folder: Path, part: Part) -> Iterator[bytes]:
    """Yield the blocks of a part, and fail at its end when they were wrong. Raises StoreError."""
    path = folder / part.name
    digest, left = hashlib.sha256(), part.size
    try:
        # O_NONBLOCK: a named pipe must not hold us up before it is seen to be one.
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        handle = os.open(path, flags | getattr(os, "O_BINARY", 0))
        with os.fdopen(handle, "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or path.parent.is_symlink():
                raise _damaged(part, "is no regular file")
            if status.st_size != part.size:
                raise _damaged(part, f"has {status.st_size:,} bytes instead of {part.size:,}")
            while left and (block := file.read(min(left, _BLOCK))):
                left -= len(block)
                digest.update(block)
                if left or digest.hexdigest() == part.sha256:
                    yield block
    except OSError as error:
        raise _damaged(part, f"cannot be read: {error.strerror}") from error
    if digest.hexdigest() != part.sha256:
        raise _damaged(part, "is damaged; carry it over again")


def _damaged(part: Part, what: str) -> StoreError:
    return StoreError(f"{part.name} {what}", path=part.name, cause="wrong_digest")


def _check_manifest(manifest: BundleManifest) -> None:
    """Refuse a manifest whose names or numbers could do harm, signed or not. Raises InvalidInput."""
    blobs = {blob.sha256: blob for blob in manifest.blobs}
    _check_parts(manifest)
    for blob in manifest.blobs:
        if not is_sha256(blob.sha256) or not blob.parts or blob.size <= 0:
            raise InvalidInput("the bundle's manifest names a part that no bundle has")
        if sum(part.size for part in blob.parts) != blob.size:
            raise InvalidInput("the sizes in the bundle's manifest do not add up")
    for model in manifest.models:
        if not is_safe_name(model.model) or not is_safe_name(model.quant) or not model.files:
            raise InvalidInput("the bundle's manifest has a model with an unsafe name")
        for file in model.files:
            known = blobs.get(file.sha256)
            if not is_safe_file_name(file.name) or known is None or known.size != file.size:
                raise InvalidInput(
                    "the bundle's manifest has a file with an unsafe name or without its bytes"
                )


def _check_parts(manifest: BundleManifest) -> None:
    """Refuse parts whose names do not match the patterns of the format. Raises InvalidInput."""
    matches = [
        (part, match is not None and match[1] == blob.sha256)
        for blob in manifest.blobs
        for part in blob.parts
        for match in [_PART_NAME.fullmatch(part.name)]
    ]
    matches += [(extra, _EXTRA_NAME.fullmatch(extra.name) is not None) for extra in manifest.extras]
    for part, is_named_well in matches:
        if not is_named_well or not is_sha256(part.sha256) or part.size < 0:
            raise InvalidInput("the bundle's manifest names a part that no bundle has")


def _read_small(path: Path) -> bytes | None:
    """Return a small regular file, None when there is none. Raises InvalidInput."""
    try:
        if path.is_symlink() or not path.is_file():
            return None
        if path.stat().st_size > _MAX_MANIFEST:
            raise InvalidInput(f"{path} is too long for what it should be")
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from error
