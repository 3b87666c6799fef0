"""Finds the files a ref means and checks them before any C code reads them.

Knows the store, the catalogue and plain paths; loads nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeqwen.errors import InvalidInput, StoreError
from edgeqwen.models.adopt import shards_of
from edgeqwen.models.catalogue import Catalogue, Model
from edgeqwen.models.facts import ModelFacts, read_model
from edgeqwen.models.ref import parse_ref
from edgeqwen.models.store import Entry, Store


@dataclass(frozen=True)
class Located:
    """A model that can be opened."""

    name: str
    """What to call it: its ref, or the file's name."""
    paths: tuple[Path, ...]
    """The model file, or all shards in order; for a scripted engine, its script."""
    model: Model | None = None
    """What the catalogue knows of it; None for a stranger."""
    entry: Entry | None = None
    """Its record in the store; None for a file named by its path."""

    @property
    def is_script(self) -> bool:
        """Whether it is a script for the scripted engine, and no model."""
        return self.paths[0].name.endswith(".json")


def locate(text: str, store: Store, catalogue: Catalogue) -> Located:
    """Return what a ref means here. Raises InvalidInput, UnknownModel, NotInstalled or StoreError."""
    ref = parse_ref(text)
    if ref.path is not None:
        return _locate_path(ref.path, catalogue)
    entry = store.find(ref, catalogue)
    for path, file in zip(entry.paths(), entry.manifest.files, strict=True):
        _check_size(path, file.size, entry.ref)
    model = catalogue.models.get(entry.manifest.catalogue_ref or "")
    return Located(entry.ref, entry.paths(), model, entry)


def read_located(located: Located) -> ModelFacts:
    """Scan the header of every file. Blocking, 0.1 s per file. Raises InvalidInput or InvalidGGUF."""
    return read_model(located.paths)


def _locate_path(path: Path, catalogue: Catalogue) -> Located:
    try:
        if path.is_dir():
            raise InvalidInput(f"{path} is a folder; name the .gguf file in it")
        if not path.exists():
            raise InvalidInput(f"no such file: {path}")
        paths = shards_of(path)
        return Located(path.name, paths, _same_file(paths[0], catalogue))
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from error


def _same_file(path: Path, catalogue: Catalogue) -> Model | None:
    """Return the model whose file has this name and size: enough for defaults, not for identity."""
    size = path.stat().st_size
    hits = catalogue.files()
    return next((m for m, _, f in hits if f.size == size and f.name.lower() == path.name.lower()), None)


def _check_size(path: Path, size: int, ref: str) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        message = f"{path.name} of {ref} cannot be read: {error.strerror}"
        raise StoreError(message, path=str(path), cause="missing_file") from error
    if found != size:
        message = f"{path.name} of {ref} is damaged: it has {found:,} bytes instead of {size:,}"
        raise StoreError(message, path=str(path), cause="wrong_digest")
