"""Checks models.toml beyond its types: hashes, shards, names, links. Exits 1 and lists what is wrong.

python scripts/check_catalogue.py [FILE]
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from edgeqwen.errors import InvalidConfig
from edgeqwen.models.catalogue import Catalogue, Model, Variant, load_catalogue
from edgeqwen.models.facts import ARCHITECTURES
from edgeqwen.models.ref import is_safe_file_name, is_safe_name, normal_name

_HEX = re.compile(r"[0-9a-f]{64}")
_REVISION = re.compile(r"[0-9a-f]{40}")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_CAPABILITIES = {
    "chat",
    "code",
    "math",
    "vision",
    "tools",
    "multilingual",
    "fill-in-the-middle",
    "long-context",
    "embedding",
    "demo",
}


def main() -> int:
    """Check the file and return the exit code."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "models.toml"
    try:
        catalogue = load_catalogue(path, path.with_name("no user file"))
    except InvalidConfig as error:
        print(error)
        return 1
    problems = list(problems_of(catalogue))
    for problem in problems:
        print(problem)
    print(f"{path.name}: {len(catalogue.models)} models, {len(problems)} problems")
    return 1 if problems else 0


def problems_of(catalogue: Catalogue) -> Iterator[str]:
    """Yield a sentence for each thing that is wrong."""
    hashes = Counter(file.sha256 for _, _, file in catalogue.files())
    yield from (f"sha256 {digest} is given {n} times" for digest, n in hashes.items() if n > 1)
    yield from (f"template {key} is no sha256" for key in catalogue.templates if not _HEX.fullmatch(key))
    for ref, model in catalogue.models.items():
        for problem in _model(ref, model):
            yield f"{ref}: {problem}"


def _model(ref: str, model: Model) -> Iterator[str]:
    if ref != normal_name(ref) or not is_safe_name(ref):
        yield "the ref is not in its normal spelling or no safe folder name"
    if model.architecture not in ARCHITECTURES:
        yield f"unknown architecture {model.architecture}"
    if model.repo and not _REVISION.fullmatch(model.revision):
        yield f"the revision {model.revision} is not pinned to a commit"
    if unknown := set(model.capabilities) - _CAPABILITIES:
        yield f"unknown capabilities {', '.join(sorted(unknown))}"
    if model.context_yarn is not None and model.context_yarn <= model.context:
        yield "context_yarn is not larger than context"
    if model.thinking != "none" and "thinking" not in model.sampling:
        yield "it can think, but has no sampling for it"
    if model.sampling and model.thinking != "always" and "chat" not in model.sampling:
        yield "it has no sampling for chat"
    for variant in (*model.variants, *model.projectors):
        for problem in _variant(variant):
            yield f"{variant.quant}: {problem}"


def _variant(variant: Variant) -> Iterator[str]:
    if variant.quant != variant.quant.lower():
        yield "the quant is not lower case"
    if (variant.repo is None) != (variant.revision is None):
        yield "repo and revision go together"
    if not variant.files:
        yield "no files"
    for file in variant.files:
        if not _HEX.fullmatch(file.sha256):
            yield f"{file.name}: sha256 is not 64 lower-case hex digits"
        if file.size <= 0:
            yield f"{file.name}: the size is {file.size}"
        if not is_safe_file_name(file.name):
            yield f"{file.name}: not a safe file name"
    yield from _shards([file.name for file in variant.files])


def _shards(names: list[str]) -> Iterator[str]:
    matches = [_SHARD.fullmatch(name) for name in names]
    if not any(matches):
        if len(names) > 1:
            yield "several files that are not named as shards"
        return
    for number, match in enumerate(matches, 1):
        if match is None or (int(match[2]), int(match[3])) != (number, len(names)):
            yield f"shards are not complete and in order: {', '.join(names)}"
            return


if __name__ == "__main__":
    sys.exit(main())
