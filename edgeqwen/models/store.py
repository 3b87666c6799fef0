"""What is here: installed variants in readable folders, each with a manifest that makes it installed.

    <root>/<model>/<quant>/<original file names>.gguf
    <root>/<model>/<quant>/manifest.json      written last: present means whole
    <root>/partial/                           files on their way in

Owns the layout, reading and removing. Files come in through adopt.py; knows nothing of networks.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgeqwen.errors import NotInstalled, StoreError, UnknownModel
from edgeqwen.jsonfile import NOT_JSON
from edgeqwen.models.catalogue import Catalogue, Model
from edgeqwen.models.digest import digest_of, is_sha256
from edgeqwen.models.facts import ModelFacts
from edgeqwen.models.locks import Busy, give_up, is_busy, locked
from edgeqwen.models.ref import ModelRef, is_safe_file_name, is_safe_name, normal_name
from edgeqwen.text import clean_line

MANIFEST = "manifest.json"
_MAX_MANIFEST = 1 << 20
LONGEST_TEXT = 4096
"""Characters of what a manifest says beside its names: a path may be that long."""

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


def part_of(progress: Progress, base: int, total: int) -> Callable[[int], None]:
    """Return what reports the bytes of one file, which follow `base` others, as bytes of the whole."""
    return lambda done: progress(base + done, total)


@dataclass(frozen=True)
class ManifestFile:
    """One file of an installed variant."""

    name: str
    size: int
    sha256: str
    chunks: tuple[int, ...] = ()
    """Chunk table (digest.py); empty where an older version installed it."""


@dataclass(frozen=True)
class Manifest:
    """The record that makes a variant installed."""

    layout: Literal[1]
    model: str
    quant: str
    files: tuple[ManifestFile, ...]
    facts: ModelFacts
    came_by: Literal["hard link", "reflink", "copy", "move", "download", "bundle"]
    created: str
    """UTC, ISO 8601."""
    tool: str
    """Program and version that installed it."""
    catalogue_ref: str | None = None
    """The catalogue's model, when size and sha256 of every file are its own."""
    source: str | None = None
    """Where the bytes came from."""


@dataclass(frozen=True)
class Entry:
    """One installed variant."""

    folder: Path
    manifest: Manifest
    is_writable: bool

    @property
    def ref(self) -> str:
        """As `model:quant`."""
        return f"{self.manifest.model}:{self.manifest.quant}"

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.manifest.files)

    def paths(self) -> tuple[Path, ...]:
        """Return the model file, or all shards in order."""
        return tuple(self.folder / file.name for file in self.manifest.files)


@dataclass(frozen=True)
class Leftover:
    """A file that no installed model has."""

    path: Path
    kind: Literal["part", "unfinished"]
    """A download or copy that stopped, or a model file without a manifest."""
    size: int
    """Bytes when it was looked at."""


@dataclass(frozen=True)
class FileCheck:
    """What became of one file when it was hashed again."""

    path: Path
    problem: str | None
    """None: size and sha256 are as recorded."""


class Store:
    """The user's own root and the read-only ones after it, searched in that order."""

    def __init__(self, root: Path, extra: tuple[Path, ...] = (), shipped: Path | None = None) -> None:
        self.root, self._shipped = root, shipped
        self._roots = (root, *(path for path in extra if path != root))

    @property
    def partial(self) -> Path:
        """Folder for files on their way in, on the same volume as the rest."""
        return self.root / "partial"

    def part(self, sha256: str) -> Path:
        """Return where the bytes of a file gather before it has its name."""
        return self.partial / f"{sha256}.part"

    def entries(self) -> list[Entry]:
        """Return everything installed, sorted by name; of the same ref in two roots the first counts.

        Unfinished folders are not among it.
        """
        found: dict[str, Entry] = {}
        for root in self._roots:
            for entry in _scan(root, is_writable=root == self.root):
                found.setdefault(entry.ref, entry)
        return sorted(found.values(), key=lambda entry: (entry.manifest.model, entry.size))

    def shipped(self) -> list[Entry]:
        """Return what came with edgeqwen: found by its name, and not counted among what is installed."""
        return list(_scan(self._shipped, is_writable=False)) if self._shipped else []

    def broken_manifests(self) -> list[Path]:
        """Return manifests that are there but cannot be read."""
        return [path for root in self._roots for path in _manifests(root) if _read(path) is None]

    def leftovers(self) -> list[Leftover]:
        """Return part files, and model files without a manifest; none while a process installs something."""
        if is_busy(self.partial):
            return []
        parts = (path for path in _glob(self.partial, "*") if path.suffix in (".part", ".mend", ".lock"))
        models = (path for path in _glob(self.root, "*/*/*.gguf") if path.parts[-3] != "partial")
        unfinished = (path for path in models if not (path.parent / MANIFEST).exists())
        return [*_leftovers(parts, "part"), *_leftovers(unfinished, "unfinished")]

    def is_busy(self) -> bool:
        """Say whether a process installs something in the user's own root now."""
        return is_busy(self.partial)

    def prune(self) -> list[Leftover]:
        """Delete the parts that nobody works on and return them. Raises StoreError.

        Model files without a manifest stay: they may be somebody else's.
        """
        return [left for left in self.leftovers() if left.kind == "part" and _remove_part(left)]

    def find(self, ref: ModelRef, catalogue: Catalogue) -> Entry:
        """Return the entry a ref means. Raises NotInstalled, or UnknownModel when no such model exists.

        Without a quant: the only one installed, else the model's default, else the largest.
        """
        if ref.model is None:
            raise NotInstalled(f"{ref} is not installed", ref=str(ref))
        name = ref.model
        entries = [*self.entries(), *self.shipped()]
        installed = {entry.manifest.model for entry in entries}
        spellings = [name, f"{name}-{normal_name(ref.quant)}"] if ref.quant else [name]
        for spelling, quant in zip(spellings, (ref.quant, None), strict=False):
            if spelling in installed:
                return self._pick(ref, spelling, quant, entries, catalogue)
        model = self._find_known(ref, catalogue, installed)
        variant = model.variant(ref.quant or model.default_quant)
        message = f"{model.ref} is not installed"
        raise NotInstalled(message, ref=model.ref, download_bytes=variant.size if variant else None)

    def _pick(
        self, ref: ModelRef, name: str, quant: str | None, entries: list[Entry], catalogue: Catalogue
    ) -> Entry:
        mine = [entry for entry in entries if entry.manifest.model == name]
        if quant is not None:
            for entry in mine:
                if entry.manifest.quant == quant:
                    return entry
            have = ", ".join(dict.fromkeys(entry.manifest.quant for entry in mine))
            raise NotInstalled(f"{ref} is not installed; of {name} there is {have}", ref=str(ref))
        model = catalogue.models.get(name)
        default = model.default_quant if model else None
        return max(mine, key=lambda entry: (entry.manifest.quant == default, entry.size))

    def _find_known(self, ref: ModelRef, catalogue: Catalogue, installed: set[str]) -> Model:
        try:
            return catalogue.find(ref)
        except UnknownModel as error:
            near = difflib.get_close_matches(ref.model or "", sorted(installed), n=2, cutoff=0.5)
            suggestions = tuple(dict.fromkeys((*near, *error.suggestions)))[:3]
            advice = f"; did you mean {' or '.join(suggestions)}?" if suggestions else ""
            raise UnknownModel(
                f"unknown model: {ref}{advice}", ref=str(ref), suggestions=suggestions
            ) from None

    def remove(self, entry: Entry) -> int:
        """Delete an entry, manifest first, and return the bytes freed. Raises StoreError."""
        if not entry.is_writable:
            message = f"{entry.ref} lies in {entry.folder}, which edgeqwen only reads"
            if self._shipped and entry.folder.is_relative_to(self._shipped):
                message = f"{entry.ref} came with edgeqwen and goes with it"
            raise StoreError(message, path=str(entry.folder), cause="no_permission")
        try:
            name = f"{entry.manifest.model}-{entry.manifest.quant}"
            with locked(self.partial, name, [file.sha256 for file in entry.manifest.files], give_up):
                return _remove(entry)
        except Busy as error:
            message = f"another edgeqwen works on {entry.ref}; try again when it is done"
            raise StoreError(message, path=str(entry.folder), cause="in_use") from error
        except OSError as error:
            message = f"cannot remove {entry.ref}: {error.strerror}"
            raise StoreError(message, path=str(entry.folder), cause="io") from error


def _remove(entry: Entry) -> int:
    if _read(entry.folder / MANIFEST) != entry.manifest:
        return 0  # removed meanwhile, or another one
    freed = 0
    for path in (entry.folder / MANIFEST, *entry.paths()):
        with suppress(FileNotFoundError):
            status = path.stat()
            path.unlink()
            freed += status.st_size if status.st_nlink == 1 and path.name != MANIFEST else 0
    for folder in (entry.folder, entry.folder.parent):
        if not any(folder.iterdir()):
            folder.rmdir()
    return freed


def verify(entry: Entry, progress: Progress = lambda done, total: None) -> Iterator[FileCheck]:
    """Hash every file of an entry again. Blocking; yields one result per file."""
    done = 0
    for file, path in zip(entry.manifest.files, entry.paths(), strict=True):
        yield FileCheck(path, _problem(file, path, part_of(progress, done, entry.size)))
        done += file.size


def _problem(file: ManifestFile, path: Path, progress: Callable[[int], None]) -> str | None:
    try:
        size = path.stat().st_size
        if size != file.size:
            return f"has {size:,} bytes instead of {file.size:,}"
        digest = digest_of(path, progress).sha256
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return (
        None
        if digest == file.sha256
        else f"is damaged: its sha256 is {digest[:12]}…, not {file.sha256[:12]}…"
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Put a manifest in place in one step, after everything it lists. Raises OSError."""
    temporary = folder / f".{MANIFEST}.{os.getpid()}"
    try:
        with temporary.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / MANIFEST)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _glob(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def _leftovers(paths: Iterable[Path], kind: Literal["part", "unfinished"]) -> Iterator[Leftover]:
    for path in paths:
        with suppress(OSError):  # it has gone meanwhile
            yield Leftover(path, kind, path.stat().st_size)


def _remove_part(leftover: Leftover) -> bool:
    """Delete a part, unless a process has it: parts are locked by their sha256. Raises StoreError."""
    path = leftover.path
    try:
        with locked(path.parent, path.stem, on_wait=give_up):
            path.unlink(missing_ok=True)
    except Busy:
        return False
    except OSError as error:
        raise StoreError(f"cannot remove {path}: {error.strerror}", path=str(path), cause="io") from error
    return True


def _manifests(root: Path) -> list[Path]:
    try:
        return sorted(
            path for path in root.glob(f"*/*/{MANIFEST}") if path.parts[-3] not in ("partial", "trash")
        )
    except OSError:
        return []


def _scan(root: Path, *, is_writable: bool) -> Iterator[Entry]:
    for path in _manifests(root):
        manifest = _read(path)
        if manifest is not None:
            yield Entry(path.parent, manifest, is_writable)


def _read(path: Path) -> Manifest | None:
    """Return a manifest that is whole and stays inside its folder, else None: roots may be anybody's."""
    try:
        if path.stat().st_size > _MAX_MANIFEST:
            return None
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (OSError, *NOT_JSON):
        return None
    names = [file.name for file in manifest.files]
    in_place = (manifest.model, manifest.quant) == path.parts[-3:-1]
    safe = (
        is_safe_name(manifest.model) and is_safe_name(manifest.quant) and all(map(is_safe_file_name, names))
    )
    # Digests name files, too: of parts and in bundles.
    safe = safe and all(is_sha256(file.sha256) and file.size > 0 for file in manifest.files)
    return _shown(manifest) if names and in_place and safe else None


def _shown(manifest: Manifest) -> Manifest:
    """Return a manifest whose texts may be shown; its names are checked."""

    def cleaned(of: object, *names: str) -> dict[str, Any]:
        texts = {name: getattr(of, name) for name in names}
        return {name: clean_line(text, LONGEST_TEXT) for name, text in texts.items() if text is not None}

    facts = replace(manifest.facts, **cleaned(manifest.facts, "architecture", "name", "licence", "quant"))
    return replace(manifest, facts=facts, **cleaned(manifest, "source", "tool", "created"))
