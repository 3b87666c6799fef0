"""`edgeqwen fit`: what models take in memory, and what of it fits here. Asks nobody and downloads nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click

from edgeqwen.cli import output
from edgeqwen.cli.invocation import Invocation
from edgeqwen.cli.options import json_option
from edgeqwen.cli.output import size_text
from edgeqwen.errors import InvalidInput, NotInstalled
from edgeqwen.machine.memory import available_bytes
from edgeqwen.models.facts import ModelFacts
from edgeqwen.models.fit import DEFAULT_CONTEXT, estimate, facts_from_catalogue, verdict
from edgeqwen.models.locate import locate, read_located
from edgeqwen.models.ref import parse_ref

_CONTEXTS = (2048, 8192, 32768)


@click.command()
@click.argument("ref", required=False)
@click.option(
    "--ctx", "n_ctx", type=click.IntRange(16, 1 << 24), help="Context in tokens; else some usual ones."
)
@click.option(
    "--kv", "kv_type", type=click.Choice(["f16", "q8_0", "q4_0"]), default="f16", help="Type of the KV cache."
)
@json_option
@click.pass_obj
def fit(invocation: Invocation, ref: str | None, n_ctx: int | None, kv_type: str) -> None:
    """Say what fits into this machine's memory.

    With REF, each of its quants at several contexts; without, every known model in its usual quant. Installed
    files and paths are read; for others the catalogue's numbers are used. The engine's own memory is meant.
    """
    available = available_bytes()
    rows = [
        _row(name, is_exact, facts, context, kv_type, available)
        for name, is_exact, facts in (_of(invocation, ref) if ref else _of_all(invocation))
        for context in _contexts(facts, n_ctx, ref)
    ]
    if invocation.as_json:
        output.document({"available_bytes": available, "kv_type": kv_type, "rows": rows})
        return
    output.table(
        ("MODEL", ">CONTEXT", ">MEMORY", ">WEIGHTS", ">REPACKED", ">KV CACHE", ">OTHER", "VERDICT"),
        [_cells(row) for row in rows],
    )
    output.note(
        f"{size_text(available)} of memory are available; ~ means: from the catalogue, not from the file"
    )


def _of(invocation: Invocation, ref: str) -> Iterator[tuple[str, bool, ModelFacts]]:
    """Yield name, exactness and facts of each form of one model. Raises UnknownModel and others."""
    parsed = parse_ref(ref)
    installed: set[str] = set()
    try:
        located = locate(ref, invocation.store, invocation.catalogue)
        if located.is_script:
            raise InvalidInput(f"{located.name} is a script for the scripted engine, not a model")
        yield located.name, True, read_located(located)
        installed.add(located.name)
        model = located.model
    except NotInstalled:
        if parsed.model is None:
            raise
        model = invocation.catalogue.find(parsed)
    if parsed.path is not None or model is None:
        return
    for variant in model.variants:
        name = f"{model.ref}:{variant.quant}"
        if name not in installed and (parsed.quant in (None, variant.quant)):
            installed.add(name)
            yield name, False, facts_from_catalogue(model, variant)


def _of_all(invocation: Invocation) -> Iterator[tuple[str, bool, ModelFacts]]:
    for model in invocation.catalogue.models.values():
        variant = model.variant(model.default_quant)
        if variant and "chat" in model.capabilities:
            yield f"{model.ref}:{variant.quant}", False, facts_from_catalogue(model, variant)


def _contexts(facts: ModelFacts, n_ctx: int | None, ref: str | None) -> list[int]:
    if n_ctx is not None:
        return [n_ctx]
    if ref is None:
        return [min(DEFAULT_CONTEXT, facts.context)]
    return [context for context in _CONTEXTS if context <= facts.context] or [facts.context]


def _row(
    name: str, is_exact: bool, facts: ModelFacts, n_ctx: int, kv_type: str, available: int
) -> dict[str, Any]:
    parts = estimate(facts, n_ctx, kv_type)
    return {
        "ref": name,
        "is_exact": is_exact,
        "n_ctx": n_ctx,
        "total_bytes": parts.total,
        "parts_bytes": asdict(parts),
        "verdict": verdict(parts.total, available),
    }


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    parts = row["parts_bytes"]
    about = "" if row["is_exact"] else "~"
    return (
        row["ref"],
        f"{row['n_ctx']:,}",
        about + size_text(row["total_bytes"]),
        size_text(parts["weights"]),
        size_text(parts["repacked"]),
        size_text(parts["kv_cache"]),
        size_text(parts["compute"] + parts["process"]),
        row["verdict"],
    )
