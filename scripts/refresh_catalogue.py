"""Asks the hub for the revisions, sizes and hashes of models.toml's files and shows what differs.

python scripts/refresh_catalogue.py [REF...]      all models when none is named; changes no file

Asks huggingface.co, or HF_ENDPOINT. Exits 0 when nothing differs, 1 when something does, 5 when a repository
could not be asked.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from edgeqwen.errors import DownloadError
from edgeqwen.models.catalogue import Catalogue, Model, Variant, load_catalogue
from edgeqwen.models.hub import list_files
from edgeqwen.models.sources import Origin, user_sources
from edgeqwen.paths import shipped_catalogue

_HUB = "https://huggingface.co"


def main(refs: list[str]) -> int:
    """Compare, print, and return the exit code."""
    catalogue = load_catalogue(shipped_catalogue(), Path("no user file"))
    unknown = [ref for ref in refs if ref not in catalogue.models]
    if unknown:
        print(f"not in models.toml: {', '.join(unknown)}", file=sys.stderr)
        return 2
    sources = user_sources([_HUB])
    n_differences = n_failures = 0
    for (repo, revision), variants in _by_repository(catalogue, refs).items():
        try:
            found = list_files(repo, sources.hubs[0], sources)
        except DownloadError as error:
            print(f"{repo}: could not be asked: {error.message}", file=sys.stderr)
            n_failures += 1
            continue
        differences = list(_differences(revision, variants, found))
        n_differences += len(differences)
        print(f"{repo}: {'as pinned' if not differences else ''}".rstrip())
        for difference in differences:
            print(f"  {difference}")
    print(f"{n_differences} differences, {n_failures} repositories not asked", file=sys.stderr)
    return 5 if n_failures else min(n_differences, 1)


def _by_repository(
    catalogue: Catalogue, refs: list[str]
) -> dict[tuple[str, str], list[tuple[Model, Variant]]]:
    """Return the variants, projectors among them, of each repository and revision."""
    found: dict[tuple[str, str], list[tuple[Model, Variant]]] = defaultdict(list)
    for ref, model in catalogue.models.items():
        for variant in (*model.variants, *model.projectors) if not refs or ref in refs else ():
            key = (variant.repo or model.repo, variant.revision or model.revision)
            if key[0]:  # the demo is in no repository
                found[key].append((model, variant))
    return found


def _differences(revision: str, variants: list[tuple[Model, Variant]], found: list[Origin]) -> Iterator[str]:
    """Yield a line per difference between the catalogue and what the hub has now."""
    now = {origin.name: origin for origin in found}
    known = {file.name for _, variant in variants for file in variant.files}
    revisions = {origin.revision for origin in found}
    if revisions and revisions != {revision}:
        yield f"revision: pinned {revision}, now {revisions.pop()}"
    for model, variant in variants:
        for file in variant.files:
            origin = now.get(file.name)
            place = f"{model.ref}:{variant.quant} {file.name}"
            if origin is None:
                yield f"{place}: gone"
            elif origin.size != file.size:
                yield f"{place}: size {file.size:,}, now {origin.size:,}; sha256 now {origin.sha256}"
            elif origin.sha256 != file.sha256:
                yield f"{place}: sha256 {file.sha256}, now {origin.sha256}"
    for name in sorted(now.keys() - known):
        if name.lower().endswith(".gguf"):
            yield f"not in models.toml: {name} ({now[name].size:,} bytes, sha256 {now[name].sha256})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
