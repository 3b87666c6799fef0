"""`edgeqwen kv`: what is kept of conversations so that they need not be read again."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

import click

from edgeqwen.cli import output
from edgeqwen.cli.invocation import Invocation
from edgeqwen.cli.options import json_option
from edgeqwen.errors import StoreError
from edgeqwen.text import size_text


@click.group()
def kv() -> None:
    """See and clear the saved KV caches of conversations."""


@kv.command("list")
@json_option
@click.pass_obj
def list_(invocation: Invocation) -> None:
    """List the saved KV caches, the one used last first."""
    rows = []
    for path in sorted(invocation.paths.kv.glob("*.kv")):
        with suppress(OSError):
            status = path.stat()
            rows.append((status.st_mtime, status.st_size, path.name))
    rows.sort(reverse=True)
    used = [datetime.fromtimestamp(time, UTC).isoformat(timespec="seconds") for time, _, _ in rows]
    if invocation.as_json:
        files = zip(used, rows, strict=True)
        output.document([{"file": name, "size_bytes": n, "used": when} for when, (_, n, name) in files])
        return
    if rows:
        cells = [(name, size_text(n), when) for when, (_, n, name) in zip(used, rows, strict=True)]
        output.table(("FILE", ">SIZE", "USED LAST (UTC)"), cells)
    limit = size_text(invocation.config.kv.max_mib << 20)
    output.note(f"{size_text(sum(n for _, n, _ in rows))} of at most {limit} (`kv.max_mib`)")


@kv.command("clear")
@json_option
@click.pass_obj
def clear(invocation: Invocation) -> None:
    """Remove every saved KV cache; conversations are only read again where they go on."""
    n_files = n_bytes = 0
    for path in (*invocation.paths.kv.glob("*.kv"), *invocation.paths.kv.glob("*.part")):
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:  # a worker was faster
            continue
        except OSError as error:
            message = f"cannot remove {path}: {error.strerror}"
            raise StoreError(message, path=str(path), cause="io") from error
        n_files, n_bytes = n_files + 1, n_bytes + size
    if invocation.as_json:
        output.document({"files": n_files, "freed_bytes": n_bytes})
    else:
        output.note(f"removed {n_files} files, {size_text(n_bytes)} freed")
