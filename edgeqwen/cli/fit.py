"""`edgeqwen fit` and `edgeqwen recommend`: what models take in memory, what fits here, and which to take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import click

from edgeqwen.cli import output
from edgeqwen.cli.invocation import Invocation
from edgeqwen.cli.options import complete_ref, json_option
from edgeqwen.errors import DownloadError, InvalidGGUF, InvalidInput, NotInstalled
from edgeqwen.machine.bandwidth import memory_bytes_per_s
from edgeqwen.machine.memory import available_bytes
from edgeqwen.models import recommend as choosing
from edgeqwen.models.catalogue import Model, Variant
from edgeqwen.models.facts import ModelFacts
from edgeqwen.models.fit import DEFAULT_CONTEXT, estimate, facts_from_catalogue, verdict
from edgeqwen.models.hub import list_quants
from edgeqwen.models.locate import locate, read_located
from edgeqwen.models.measured import Load
from edgeqwen.models.pull import origins_in_catalogue
from edgeqwen.models.ref import ModelRef, parse_ref
from edgeqwen.models.sources import Origin, user_sources
from edgeqwen.text import size_text

_CONTEXTS = (2048, 8192, 32768)


@dataclass(frozen=True)
class _Form:
    """One variant whose memory is asked for."""

    name: str
    facts: ModelFacts
    is_exact: bool
    """The facts come from the file's own header."""
    sha256: str | None = None
    """Of its first file."""


@click.command()
@click.argument("ref", shell_complete=complete_ref, required=False)
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

    With REF, each of its quants at several contexts; without, every known model in its usual quant. Files
    that are here are read. Of a REF that is not, the head is asked from the hub (some megabytes, kept for the
    next time); where no hub answers, and without REF, the catalogue's numbers are used.

    What loaded models really took on this machine corrects the numbers.
    """
    available = available_bytes()
    forms = _forms(invocation, ref) if ref else _usual_forms(invocation)
    rows = [
        _row(invocation, form, context, kv_type, available)
        for form in forms
        for context in _contexts(form.facts, n_ctx, ref)
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


@click.command()
@click.argument("purpose", type=click.Choice(choosing.PURPOSES), default="chat")
@json_option
@click.pass_obj
def recommend(invocation: Invocation, purpose: choosing.Purpose) -> None:
    """Pick the model and quant that suit this machine.

    PURPOSE is chat, code, math or vision. The memory available and its measured speed decide; nobody is
    asked.
    """
    machine = choosing.Machine(available_bytes(), memory_bytes_per_s())
    choice = choosing.recommend(invocation.catalogue, purpose, machine)
    if choice is None:
        raise InvalidInput(f"the catalogue has no model for {purpose}")
    is_here = any(entry.ref == choice.ref for entry in invocation.store.entries())
    reason = _reason(choice, purpose, machine, is_here=is_here)
    if invocation.as_json:
        output.document(
            {
                "ref": choice.ref, "purpose": purpose, "reason": reason, "verdict": choice.verdict,
                "is_installed": is_here, "download_bytes": 0 if is_here else choice.variant.size,
                "n_ctx": choice.n_ctx, "total_bytes": choice.total_bytes,
                "available_bytes": machine.available_bytes, "expected_tps": round(choice.tokens_per_s, 1),
                "memory_bytes_per_s": round(machine.memory_bytes_per_s),
            }
        )  # fmt: skip
        return
    output.line(choice.ref)
    output.note(reason)
    output.note(f"\nhint: `edgeqwen {'run' if is_here else 'pull'} {choice.ref}`")


def _reason(choice: choosing.Choice, purpose: str, machine: choosing.Machine, *, is_here: bool) -> str:
    """Return the two sentences."""
    speed = size_text(machine.memory_bytes_per_s)
    rate = f"about {choice.tokens_per_s:.0f} tokens/s, as its memory was measured at {speed}/s"
    if choice.verdict == "no":
        first = (
            f"Nothing in the catalogue for {purpose} fits comfortably here, and {choice.ref} is the smallest"
        )
    elif choice.is_fluent:
        first = f"It is the strongest model for {purpose} that fits here and keeps pace with a reader: {rate}"
    else:
        first = f"It is the fastest model for {purpose} that fits here, though slower than one reads: {rate}"
    download = "it is installed" if is_here else f"{size_text(choice.variant.size)} are to be downloaded"
    pictures = " Pictures are not read yet: it answers text." if purpose == "vision" else ""
    return (
        f"{first}. With {choice.n_ctx:,} tokens of context it takes {size_text(choice.total_bytes)} of the "
        f"{size_text(machine.available_bytes)} available, and {download}.{pictures}"
    )


def _forms(invocation: Invocation, ref: str) -> Iterator[_Form]:
    """Yield each form of one model. Raises UnknownModel and others."""
    parsed = parse_ref(ref)
    if parsed.hub is not None:
        yield from _hub_forms(invocation, parsed.hub, parsed.quant)
        return
    installed: set[str] = set()
    try:
        located = locate(ref, invocation.store, invocation.catalogue)
        if located.is_script:
            raise InvalidInput(f"{located.name} is a script for the scripted engine, not a model")
        sha256 = located.entry.manifest.files[0].sha256 if located.entry else None
        yield _Form(located.name, read_located(located), True, sha256)
        installed.add(located.name)
        model = located.model
    except NotInstalled:
        if parsed.model is None:
            raise
        model = invocation.catalogue.find(parsed)
    if parsed.path is None and model is not None:
        yield from _catalogue_forms(invocation, model, parsed, installed)


def _catalogue_forms(invocation: Invocation, model: Model, ref: ModelRef, known: set[str]) -> Iterator[_Form]:
    """Yield the forms that are not here; only the head of the one that is meant is asked for."""
    quant = ref.quant if ref.quant and model.variant(ref.quant) else None
    meant = None if known else quant or model.default_quant
    for variant in model.variants:
        name = f"{model.ref}:{variant.quant}"
        if name in known or quant not in (None, variant.quant):
            continue
        known.add(name)
        origins = origins_in_catalogue(model, variant)
        facts = _head(invocation, origins) if variant.quant == meant else invocation.heads.known(origins)
        yield _Form(name, facts or facts_from_catalogue(model, variant), facts is not None, origins[0].sha256)


def _hub_forms(invocation: Invocation, repo: str, wanted: str | None) -> Iterator[_Form]:
    """Yield the forms of a repository; where no quant is named one head tells enough of the others."""
    quants = list_quants(repo, user_sources(invocation.config.pull.sources))
    if wanted is not None and wanted not in quants:
        raise InvalidInput(f"{repo} comes as {', '.join(sorted(quants))}; name one: hf:{repo}:QUANT")
    first = wanted or next((usual for usual in ("q4_k_m", *quants) if usual in quants), "")
    sources = user_sources(invocation.config.pull.sources)
    facts = invocation.heads.read(quants[first], sources)
    for quant, origins in sorted(quants.items(), key=lambda item: sum(file.size for file in item[1])):
        if wanted not in (None, quant):
            continue
        own = facts if quant == first else invocation.heads.known(origins)
        size = sum(file.size for file in origins)
        is_repacked = facts.repacked_bytes and quant.startswith(("q4_0", "q4_k"))
        guess = replace(facts, weights_bytes=size, repacked_bytes=size * 4 // 7 if is_repacked else 0)
        yield _Form(f"hf:{repo}:{quant}", own or guess, own is not None, origins[0].sha256)


def _head(invocation: Invocation, origins: tuple[Origin, ...]) -> ModelFacts | None:
    """Return what the head of a file of the catalogue says, None where no hub lets it be read."""
    try:
        return invocation.heads.read(origins, user_sources(invocation.config.pull.sources))
    except (DownloadError, InvalidGGUF) as error:
        output.note(f"note: {error.message}; the catalogue's numbers are used")
        return None


def _usual_forms(invocation: Invocation) -> Iterator[_Form]:
    for model in invocation.catalogue.models.values():
        variant = model.variant(model.default_quant)
        if variant and "chat" in model.capabilities:
            yield _usual_form(invocation, model, variant)


def _usual_form(invocation: Invocation, model: Model, variant: Variant) -> _Form:
    origins = origins_in_catalogue(model, variant)
    facts = invocation.heads.known(origins)
    name = f"{model.ref}:{variant.quant}"
    return _Form(name, facts or facts_from_catalogue(model, variant), facts is not None, origins[0].sha256)


def _contexts(facts: ModelFacts, n_ctx: int | None, ref: str | None) -> list[int]:
    if n_ctx is not None:
        return [n_ctx]
    if ref is None:
        return [min(DEFAULT_CONTEXT, facts.context)]
    return [context for context in _CONTEXTS if context <= facts.context] or [facts.context]


def _row(invocation: Invocation, form: _Form, n_ctx: int, kv_type: str, available: int) -> dict[str, Any]:
    parts = estimate(form.facts, n_ctx, kv_type)
    load = Load(form.sha256, n_ctx, kv_type) if form.sha256 else None
    correction = invocation.measured.correction(load, parts)
    total = max(0, parts.total + correction)
    return {
        "ref": form.name,
        "is_exact": form.is_exact,
        "n_ctx": n_ctx,
        "total_bytes": total,
        "parts_bytes": {**asdict(parts), "correction": correction},
        "measured_bytes": invocation.measured.measured(load) if load else None,
        "verdict": verdict(total, available),
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
        size_text(max(0, parts["compute"] + parts["process"] + parts["correction"])),
        row["verdict"],
    )
