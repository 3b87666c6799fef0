"""Command-line options that several verbs share."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from edgeqwen.cli.invocation import Invocation
from edgeqwen.errors import EdgeQwenError


def _ask_for_json(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    ctx.ensure_object(Invocation).as_json = asked


json_option = click.option(
    "--json",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_ask_for_json,
    help="Print JSON on stdout and nothing else there.",
)
yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")


def complete_ref(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
    """Offer the models that are here, then those of the catalogue, and files where a path is typed."""
    if typed.startswith((".", "/", "~")):
        return [CompletionItem(typed, type="file")]
    library = Invocation()
    try:
        here = [entry.ref for entry in (*library.store.entries(), *library.store.shipped())]
        refs = dict.fromkeys([*here, *library.catalogue.models])
    except EdgeQwenError:
        return []
    return [CompletionItem(ref) for ref in refs if ref.startswith(typed.lower())]
