"""Writes bundles: installed models as a folder that travels, hashed on the way and signed at the end.

The format and its reading are bundle.py's.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgeqwen.errors import InvalidInput, StoreError
from edgeqwen.models.bundle import (
    MANIFEST,
    SIGNATURE,
    SUMS,
    Blob,
    BundledModel,
    BundleManifest,
    Part,
    sums_of,
)
from edgeqwen.models.digest import digest_of
from edgeqwen.models.install import stamped_now
from edgeqwen.models.minisign import SecretKey
from edgeqwen.models.store import Entry, ManifestFile, Progress, part_of
from edgeqwen.models.wheelhouse import gather

_BLOCK = 1 << 20
_APP = "Without edgeqwen: sh app/install.sh, which needs no network.\n"


@dataclass(frozen=True)
class Contents:
    """What goes into a bundle."""

    entries: Sequence[Entry]
    licences: dict[str, str]
    """Texts by the licence's key."""
    with_app: bool = False
    """Also edgeqwen itself."""
    platform: str | None = None
    """Of the app; None: this machine's."""


def export(
    contents: Contents, folder: Path, key: SecretKey, part_size: int, progress: Progress
) -> BundleManifest:
    """Write a bundle. Blocking.

    Every byte is hashed on its way; a damaged entry is refused. Raises StoreError, InvalidInput, or
    DownloadError for the app.
    """
    entries = contents.entries
    total = sum(entry.size for entry in entries)
    for name in ("blobs", "licences", "app", "app/wheels"):
        if (folder / name).is_symlink():
            raise InvalidInput(f"{folder / name} is a link; name another folder")
    try:
        (folder / "blobs").mkdir(parents=True, exist_ok=True)
        if (folder / MANIFEST).exists():
            raise InvalidInput(f"{folder} holds a bundle already; name another folder")
        if shutil.disk_usage(folder).free < total:
            message = f"no space left for {total:,} bytes in {folder}"
            raise StoreError(message, path=str(folder), cause="disk_full")
        extras = _write_extras(contents, folder)  # the likeliest to fail, so before gigabytes are copied
        blobs: dict[str, Blob] = {}
        for entry in entries:
            for file, path in zip(entry.manifest.files, entry.paths(), strict=True):
                if file.sha256 not in blobs:
                    done = sum(blob.size for blob in blobs.values())
                    tell = part_of(progress, done, total)
                    blobs[file.sha256] = _write_blob(path, file, folder, part_size, tell)
        created, tool = stamped_now()
        models = tuple(_bundled(entry) for entry in entries)
        manifest = BundleManifest(
            "edgeqwen-bundle", 1, secrets.token_hex(8), created, tool, models, tuple(blobs.values()), extras
        )
        _write_papers(folder, manifest, key)
    except OSError as error:
        message = f"cannot write {folder}: {error.strerror or error}"
        raise StoreError(message, path=str(folder), cause="io") from error
    return manifest


def _write_extras(contents: Contents, folder: Path) -> tuple[Part, ...]:
    paths = []
    for name, text in contents.licences.items():
        paths.append(folder / "licences" / f"{name}.txt")
        paths[-1].parent.mkdir(exist_ok=True)
        _write(paths[-1], text.encode())
    if contents.with_app:
        paths += gather(folder / "app", contents.platform)
    return tuple(
        Part(path.relative_to(folder).as_posix(), path.stat().st_size, digest_of(path).sha256)
        for path in paths
    )


def _write_blob(
    path: Path, file: ManifestFile, folder: Path, part_size: int, progress: Callable[[int], None]
) -> Blob:
    """Copy one file into the bundle in parts, and check it on the way."""
    whole, parts = hashlib.sha256(), []
    n_parts = max(1, -(-file.size // part_size))
    with path.open("rb", buffering=0) as source:
        for number in range(n_parts):
            name = f"blobs/{file.sha256}" + (f".part-{number:04}" if n_parts > 1 else "")
            digest, left = hashlib.sha256(), min(part_size, file.size - number * part_size)
            size = left
            (folder / name).unlink(missing_ok=True)  # never through a link that lies there
            with (folder / name).open("xb") as target:
                while left and (block := source.read(min(left, _BLOCK))):
                    left -= len(block)
                    digest.update(block)
                    whole.update(block)
                    target.write(block)
                    progress(source.tell())
                target.flush()
                os.fsync(target.fileno())
            parts.append(Part(name, size, digest.hexdigest()))
    if whole.hexdigest() != file.sha256:
        for part in parts:
            (folder / part.name).unlink()
        message = f"{path} is damaged, so it is not exported; `edgeqwen verify --all --repair` may mend it"
        raise StoreError(message, path=str(path), cause="wrong_digest")
    return Blob(file.sha256, file.size, tuple(parts))


def _bundled(entry: Entry) -> BundledModel:
    manifest = entry.manifest
    return BundledModel(
        manifest.model,
        manifest.quant,
        manifest.facts.licence,
        manifest.catalogue_ref,
        manifest.source if (manifest.source or "").startswith("hf:") else None,
        manifest.files,
    )


def _write_papers(folder: Path, manifest: BundleManifest, key: SecretKey) -> None:
    """Write everything but the blobs; the signature comes last."""
    raw = msgspec.json.encode(manifest, order="sorted")
    names = "\n".join(f"  {model.model}:{model.quant}" for model in manifest.models)
    readme = (
        f"Models for edgeqwen, exported {manifest.created} by {manifest.tool}:\n\n{names}\n\n"
        f"{_APP if any(part.name.startswith('app/') for part in manifest.extras) else ''}"
        f"With edgeqwen: edgeqwen bundle import .\nBy hand: sha256sum -c SHA256SUMS, and\n"
        f"  minisign -Vm {MANIFEST} -P {key.public()}\n"
        "Parts are plain pieces: cat blobs/SHA256.part-* gives the GGUF file.\n"
    )
    _write(folder / SUMS, sums_of(manifest).encode())
    _write(folder / "README.txt", readme.encode())
    _write(folder / "sbom.cdx.json", msgspec.json.encode(_sbom(manifest)))
    _write(folder / MANIFEST, raw)
    comment = f"bundle {manifest.bundle_id} {manifest.created} {manifest.tool}"
    _write(folder / SIGNATURE, key.sign(raw, comment).encode())


def _write(path: Path, data: bytes) -> None:
    """Write a new file, never through a link that lies there."""
    path.unlink(missing_ok=True)
    with path.open("xb") as file:
        file.write(data)


def _sbom(manifest: BundleManifest) -> dict[str, object]:
    """Return the bill of materials. Source of the form: CycloneDX 1.6, machine-learning-model components."""
    components = [
        {
            "type": "machine-learning-model",
            "name": f"{model.model}:{model.quant}",
            "version": file.sha256[:12],
            "description": file.name,
            "hashes": [{"alg": "SHA-256", "content": file.sha256}],
            "licenses": [{"license": {"name": model.licence}}] if model.licence else [],
        }
        for model in manifest.models
        for file in model.files
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": manifest.created,
            "tools": {"components": [{"type": "application", "name": manifest.tool}]},
        },
        "components": components,
    }
