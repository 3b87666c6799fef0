"""Writes docs/commands.md from the program's own --help, and docs/settings.md from config.py.

A test holds both equal to what is committed.

python scripts/write_help.py
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from edgeqwen.cli.main import cli
from edgeqwen.config import Config

_ROOT = Path(__file__).parent.parent
_PAGE, _SETTINGS = _ROOT / "docs" / "commands.md", _ROOT / "docs" / "settings.md"
_WIDTH = 100
_WORDS = {
    "str": "text",
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
    "tuple[str, ...]": "list of texts",
    "dict[str, str]": "table of texts",
}


_ENVIRONMENT = """## Environment

| variable | |
|---|---|
| `EDGEQWEN_HOME` | One folder for settings, models, chats, state and cache. |
| `HF_ENDPOINT` | A hub that is asked before those of `pull.sources`. |
| `HF_TOKEN`, or `token` in `HF_HOME` | Sent to `HF_ENDPOINT`, else to huggingface.co, and to nobody else. |
| `HF_HUB_OFFLINE` | `1`: no hub is asked. |
| `HF_HUB_CACHE`, `HF_HOME`, `OLLAMA_MODELS` | Where other programs keep files; `pull` looks there first. |
| `MODELSCOPE_ENDPOINT` | Takes the place of modelscope.cn. |
| `NO_COLOR` | No colours outside the chat. |
| `VISUAL`, `EDITOR` | What Ctrl+E writes a message in. |
| `EDGEQWEN_PYTHON`, `EDGEQWEN_WHEEL_INDEX`, `CMAKE_ARGS` | For `scripts/run`; see `scripts/bootstrap.sh`. |
"""


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


def settings_text() -> str:
    """Return the page of the settings: each field of config.py's tables with its type and its docstring."""
    parts = [
        "# Settings\n\nWritten by `scripts/write_help.py` from `edgeqwen/config.py`; do not edit.\n\n"
        "`edgeqwen config set KEY VALUE` changes one, `edgeqwen config list` shows all, and the file is"
        " `config.toml` in the\nconfig folder (`edgeqwen config path`).\n"
    ]
    tree = ast.parse((_ROOT / "edgeqwen" / "config.py").read_text(encoding="utf-8"))
    tables = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    for name, kind in _fields(tables["Config"]):
        table = tables[kind.id] if isinstance(kind, ast.Name) else None
        assert table is not None
        takes = {key: _takes(kind) for key, kind in _fields(table)}
        parts += [
            f"## {name}\n\n{ast.get_docstring(table)}\n",
            "| key | takes | default | |\n|---|---|---|---|",
        ]
        for key, value in vars(getattr(Config(), name)).items():
            default = "" if value in (None, (), {}) else f"`{msgspec.json.encode(value).decode()}`"
            parts.append(f"| `{name}.{key}` | {takes[key]} | {default} | {_meaning(table, key)} |")
        parts.append("")
    return "\n".join([*parts, _ENVIRONMENT])


def _takes(kind: ast.expr) -> str:
    """Return in words what a setting takes."""
    text = ast.unparse(kind).removesuffix(" | None")
    if text.startswith("Literal"):
        return ", ".join(str(one) for one in ast.literal_eval(text.removeprefix("Literal")))
    return _WORDS[text]


def _fields(table: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    for node in table.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node.annotation


def _meaning(table: ast.ClassDef, key: str) -> str:
    """Return the docstring behind a field, which may have none."""
    for field, after in zip(table.body, [*table.body[1:], None], strict=True):
        is_it = isinstance(field, ast.AnnAssign) and ast.unparse(field.target) == key
        if is_it and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            return " ".join(str(after.value.value).split())
    return ""


if __name__ == "__main__":
    _PAGE.write_text(text(), encoding="utf-8")
    _SETTINGS.write_text(settings_text(), encoding="utf-8")
