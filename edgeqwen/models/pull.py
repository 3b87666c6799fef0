"""Gets a model of the catalogue into the store: found on this machine or downloaded, checked, published.

Asks nobody and prints nothing; a front end shows the plan, asks, and watches.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgeqwen.errors import InvalidGGUF, InvalidInput, NotInstalled, StoreError
from edgeqwen.models.catalogue import Catalogue, Model, Variant
from edgeqwen.models.digest import Digests, digest_of
from edgeqwen.models.download import Wanted, Watch, fetch
from edgeqwen.models.facts import ModelFacts, read_model
from edgeqwen.models.fit import facts_from_catalogue
from edgeqwen.models.heads import Heads
from edgeqwen.models.hub import choose_quant, list_quants
from edgeqwen.models.install import (
    Way,
    bring,
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
from edgeqwen.models.ref import ModelRef, folder_name, is_safe_name
from edgeqwen.models.sources import Origin, Sources
from edgeqwen.models.store import Entry, Manifest, ManifestFile, Store

_LOOK_EVERY_S = 0.25
_HUB_SOURCE = re.compile(r"hf:([\w.-]+/[\w.-]+)@([0-9a-f]{40})", re.ASCII)


@dataclass(frozen=True)
class Plan:
    """What a pull would do."""

    model: str
    quant: str
    origins: tuple[Origin, ...]
    """One per file, shards in order."""
    model_known: Model | None
    """What the catalogue knows of it; None: the hub's own word is all there is."""
    facts: ModelFacts
    """For estimates: unproven until the files are here."""

    @property
    def ref(self) -> str:
        """What will be installed, as `model:quant`."""
        return f"{self.model}:{self.quant}"

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(origin.size for origin in self.origins)

    def n_held(self, store: Store) -> int:
        """Return the bytes that earlier tries have left."""
        return sum(min(_size(store, origin), origin.size) for origin in self.origins)


@dataclass
class PullWatch:
    """What a pull tells while it runs. Each may raise to stop it; what was got stays."""

    on_bytes: Callable[[int, int], None] = lambda done, total: None
    """Bytes held and bytes in all, of all files."""
    on_trouble: Callable[[str], None] = lambda sentence: None
    on_found: Callable[[str], None] = lambda path: None
    """Gets the path of a file that was on this machine already."""
    on_wait: Callable[[int, int], None] = lambda done, total: None
    """Called while another process pulls the same model, with what that one has."""
    downloaded: int = field(default=0, init=False)
    """Bytes that came over the network, repeats included."""


def plan_pull(ref: ModelRef, catalogue: Catalogue, sources: Sources, heads: Heads) -> Plan:
    """Return what a ref means. Blocking: for `hf:` refs the hub is asked, and the head of the file read.

    Raises UnknownModel, NotInstalled, InvalidInput; for `hf:` refs also DownloadError and InvalidGGUF.
    """
    if ref.hub is not None:
        return _plan_from_hub(ref.hub, ref.quant, catalogue, sources, heads)
    if ref.model is None:
        raise InvalidInput(f"{ref} is a path; `edgeqwen import` takes files")
    model = catalogue.find(ref)
    if not model.repo:
        raise InvalidInput(f"{model.ref} comes with edgeqwen; `edgeqwen run {model.ref}` needs no pull")
    variant = _variant(model, ref)
    origins = origins_in_catalogue(model, variant)
    facts = heads.known(origins) or facts_from_catalogue(model, variant)
    return Plan(model.ref, variant.quant, origins, model, facts)


def _plan_from_hub(
    repo: str, quant: str | None, catalogue: Catalogue, sources: Sources, heads: Heads
) -> Plan:
    quants = list_quants(repo, sources)
    quant = choose_quant(repo, quants, quant)
    origins = quants[quant]
    known = catalogue.recognise((origin.size, origin.sha256) for origin in origins)
    if known:
        facts = facts_from_catalogue(known[0], known[1])
        return Plan(known[0].ref, known[1].quant, origins, known[0], facts)
    facts = heads.read(origins, sources)
    model = folder_name(repo.partition("/")[2])
    if not is_safe_name(model) or not is_safe_name(quant):
        raise InvalidInput(f"{repo} has a name that cannot be used for a folder")
    return Plan(model, quant, origins, None, facts)


def _variant(model: Model, ref: ModelRef) -> Variant:
    wanted = None if ref.quant and model.ref.endswith(f"-{ref.quant}") else ref.quant
    variant = model.variant(wanted or model.default_quant)
    if variant is None:
        have = ", ".join(dict.fromkeys(variant.quant for variant in model.variants))
        raise NotInstalled(f"{model.ref} does not come as {wanted}; there is {have}", ref=str(ref))
    return variant


def pull(plan: Plan, store: Store, sources: Sources, watch: PullWatch) -> Entry:
    """Bring a plan's files into the store and return the entry. Blocking; goes on where others stopped.

    Raises DownloadError, StoreError or InvalidGGUF; the parts that were got stay for the next try.
    """
    wanted = [ManifestFile(origin.name, origin.size, origin.sha256) for origin in plan.origins]

    def on_wait() -> None:
        watch.on_wait(plan.n_held(store), plan.size)

    try:
        digests = [file.sha256 for file in wanted]
        with locked(store.partial, f"{plan.model}-{plan.quant}", digests, on_wait):
            if entry := find_same(store, wanted):
                return entry
            check_free_name(store, plan.model, plan.quant, wanted)
            check_largest(store, max(origin.size for origin in plan.origins))
            if n_missing := _n_missing(plan, store, sources):
                check_room(store, n_missing)
            return _install(plan, store, sources, watch)
    except OSError as error:
        raise store_error(error, store, plan.size) from error


def _install(plan: Plan, store: Store, sources: Sources, watch: PullWatch) -> Entry:
    files: list[ManifestFile] = []
    ways: list[Way] = []
    for origin in plan.origins:
        base = sum(file.size for file in files)
        file, way = _get(origin, plan, store, sources, watch, base=base)
        files.append(file)
        ways += [way] if way else []
    parts = [store.part(file.sha256) for file in files]
    try:
        facts = read_model(parts, [file.name for file in files])
    except InvalidGGUF:
        for part in parts:  # the right bytes, and no model: keeping them helps nobody
            part.unlink()
        raise
    created, tool = stamped_now()
    first = plan.origins[0]
    manifest = Manifest(
        layout=1,
        model=plan.model,
        quant=plan.quant,
        files=tuple(files),
        facts=facts,
        came_by=ways[0] if len(ways) == len(files) else "download",
        created=created,
        tool=tool,
        catalogue_ref=plan.model_known.ref if plan.model_known else None,
        source=f"hf:{first.repo}@{first.revision}",
    )
    entry = publish(store, manifest)
    for path in entry.paths():
        with suppress(OSError):
            if path.stat().st_nlink == 1:  # a linked file stays as its owner has it
                path.chmod(0o444)
    return entry


def _get(
    origin: Origin, plan: Plan, store: Store, sources: Sources, watch: PullWatch, *, base: int
) -> tuple[ManifestFile, Way | None]:
    """Complete the part of one file, from this machine (then say in which way) or from the network."""
    part = store.part(origin.sha256)
    file = ManifestFile(origin.name, origin.size, origin.sha256)
    place, total = store.root / plan.model / plan.quant, plan.size
    make_own(part)
    if not part.exists():
        for path in (*_orphan(place, origin), *sources.local_files(origin)):
            digests = _digests_if_readable(path, lambda done: watch.on_bytes(base + done, total))
            if digests and digests.sha256 == origin.sha256:
                way = bring(path, part, file)
                watch.on_found(str(path))
                return replace(file, chunks=digests.chunks), way
    held = [_size(store, origin)]

    def on_bytes(size: int) -> None:
        watch.downloaded += max(0, size - held[0])
        held[0] = size
        watch.on_bytes(base + size, total)

    wanted = Wanted(origin.name, origin.size, origin.sha256)

    def wait(seconds: float) -> None:
        """Wait, and let whoever watches stop it meanwhile."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _LOOK_EVERY_S))
            watch.on_bytes(base + held[0], total)

    digests = fetch(wanted, sources.addresses(origin), part, Watch(on_bytes, watch.on_trouble, wait))
    return replace(file, chunks=digests.chunks), None


def _digests_if_readable(path: Path, progress: Callable[[int], None]) -> Digests | None:
    try:
        return digest_of(path, progress)
    except OSError:  # somebody else's file, or a bad disk: there are other places
        return None


def _orphan(place: Path, origin: Origin) -> list[Path]:
    """Return what a pull left that died between giving a file its name and writing the manifest."""
    path = place / origin.name
    try:
        return [path] if path.stat().st_size == origin.size else []
    except OSError:
        return []


def _n_missing(plan: Plan, store: Store, sources: Sources) -> int:
    """Return the bytes to download, unless files that seem to be here turn out to be others."""
    place = store.root / plan.model / plan.quant
    absent = [one for one in plan.origins if not any((*_orphan(place, one), *sources.local_files(one)))]
    return sum(max(0, origin.size - _size(store, origin)) for origin in absent)


def _size(store: Store, origin: Origin) -> int:
    try:
        return store.part(origin.sha256).stat().st_size
    except OSError:  # whoever writes there will say why it cannot be read
        return 0


def origins_in_catalogue(model: Model, variant: Variant) -> tuple[Origin, ...]:
    """Return where the catalogue says a variant's files are."""
    repo, revision = variant.repo or model.repo, variant.revision or model.revision
    return tuple(Origin(repo, revision, f.name, f.sha256, f.size) for f in variant.files)


def origins_of(entry: Entry, catalogue: Catalogue) -> Sequence[Origin]:
    """Return where an installed entry's files may be had again. Raises StoreError when nobody knows."""
    manifest = entry.manifest
    if match := _HUB_SOURCE.fullmatch(manifest.source or ""):
        return [Origin(match[1], match[2], f.name, f.sha256, f.size) for f in manifest.files]
    model = catalogue.models.get(manifest.catalogue_ref or "")
    variants = model.variants if model else ()
    hashes = [file.sha256 for file in manifest.files]
    for variant in variants:
        if model and [file.sha256 for file in variant.files] == hashes:
            return origins_in_catalogue(model, variant)
    message = f"{entry.ref} came from a file of this machine, so there is nowhere to get its bytes from"
    raise StoreError(message, path=str(entry.folder), cause="missing_file")
