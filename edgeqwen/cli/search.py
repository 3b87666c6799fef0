"""`edgeqwen search`: Qwen models by words, first those of the catalogue, then those of the hub."""

from __future__ import annotations

from typing import Any

import click

from edgeqwen.cli import output
from edgeqwen.cli.invocation import Invocation
from edgeqwen.cli.options import json_option
from edgeqwen.models import hub
from edgeqwen.models.catalogue import Catalogue
from edgeqwen.models.ref import normal_name
from edgeqwen.models.sources import user_sources
from edgeqwen.text import size_text


@click.command()
@click.argument("words", nargs=-1, required=True)
@click.option("--limit", type=click.IntRange(1, 50), default=10, help="Repositories of the hub to show.")
@json_option
@click.pass_obj
def search(invocation: Invocation, words: tuple[str, ...], limit: int) -> None:
    """Find Qwen models, in the catalogue and on the hub.

    Sizes and hashes are the publisher's. The models of the catalogue were reviewed by people; for others the
    hub's word is all there is.
    """
    rows = _from_catalogue(invocation.catalogue, words)
    if not invocation.as_json:
        _print(rows)
    sources = user_sources(invocation.config.pull.sources)
    with output.Status() as status:
        status.show("asking the hub")
        found = hub.search(" ".join(words), sources, limit)
    rows_of_hub = [row for repository in found for row in _from_hub(repository, invocation.catalogue)]
    if invocation.as_json:
        output.document([*rows, *rows_of_hub])
        return
    _print(rows_of_hub)
    if not rows and not rows_of_hub:
        output.note(f"no Qwen model in GGUF form is found for {' '.join(words)}")
    elif rows_of_hub:
        output.note("\nhint: `edgeqwen fit REF` says what it takes, `edgeqwen pull REF` brings it")


def _from_catalogue(catalogue: Catalogue, words: tuple[str, ...]) -> list[dict[str, Any]]:
    wanted = [normal_name(word) for word in " ".join(words).split()]
    return [
        {
            "ref": f"{model.ref}:{variant.quant}",
            "size_bytes": variant.size,
            "sha256": [file.sha256 for file in variant.files],
            "is_in_catalogue": True,
            "downloads": None,
        }
        for model in catalogue.models.values()
        if all(word in f"{model.ref} {model.name.lower()} {' '.join(model.capabilities)}" for word in wanted)
        for variant in model.variants
        if variant is model.variant(variant.quant)
    ]


def _from_hub(found: hub.Found, catalogue: Catalogue) -> list[dict[str, Any]]:
    return [
        {
            "ref": f"hf:{found.repo}:{quant}",
            "size_bytes": sum(file.size for file in files),
            "sha256": [file.sha256 for file in files],
            "is_in_catalogue": catalogue.recognise((f.size, f.sha256) for f in files) is not None,
            "downloads": found.downloads,
        }
        for quant, files in sorted(found.quants.items(), key=lambda item: sum(f.size for f in item[1]))
    ]


def _print(rows: list[dict[str, Any]]) -> None:
    if rows:
        cells = [
            (row["ref"], size_text(row["size_bytes"]), row["sha256"][0][:12], _trust(row)) for row in rows
        ]
        output.table(("REF", ">SIZE", "SHA256", "KNOWN FROM"), cells)


def _trust(row: dict[str, Any]) -> str:
    return "catalogue" if row["is_in_catalogue"] else "the hub alone"
