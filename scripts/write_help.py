"""Writes docs/commands.md from the program's own --help; a test holds the two equal.

python scripts/write_help.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from edgeqwen.cli.main import cli

_PAGE = Path(__file__).parent.parent / "docs" / "commands.md"
_WIDTH = 100


def text() -> str:
    """Return the whole page."""
    parts = ["# Commands\n\nWritten by `scripts/write_help.py` from `edgeqwen --help`; do not edit.\n"]
    for path, shown in _helps(cli, "edgeqwen", None):
        parts.append(f"## {path}\n\n```\n{shown}\n```\n")
    return "\n".join(parts)


def _helps(command: click.Command, path: str, parent: click.Context | None) -> Iterator[tuple[str, str]]:
    context = click.Context(
        command, info_name=path.split()[-1], parent=parent, terminal_width=_WIDTH, max_content_width=_WIDTH
    )
    yield path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from _helps(child, f"{path} {name}", context)


if __name__ == "__main__":
    _PAGE.write_text(text(), encoding="utf-8")
