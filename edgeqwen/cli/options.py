"""Command-line options that several verbs share."""

from __future__ import annotations

import click

from edgeqwen.cli.invocation import Invocation


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
