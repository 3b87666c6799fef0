"""Brings the translations up to date: collects the interface's texts, merges them into .po, writes .mo.

    python scripts/translate.py

Texts that have no translation yet are named; fill them in in edgeqwen/tui/locale/*/LC_MESSAGES/edgeqwen.po
and run it again. A test holds that nothing is missing and that the .mo files say what the .po files say.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

ROOT = Path(__file__).resolve().parent.parent
LOCALE = ROOT / "edgeqwen/tui/locale"


def texts() -> Catalog:
    """Return every text of the interface in the code: in `_(...)`, `N_(...)`, and the titles of commands.

    The code is parsed, because Babel's own extractor does not look into f-strings.
    """
    found = Catalog(project="edgeqwen", charset="utf-8")
    for path in sorted((ROOT / "edgeqwen/tui").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and (text := _marked(node)):
                found.add(text, locations=[(path.name, 0)])
    return found


def _marked(call: ast.Call) -> str | None:
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    argument = {"_": 0, "N_": 0, "_command": 1}.get(name)
    marked = call.args[argument] if argument is not None and len(call.args) > argument else None
    return marked.value if isinstance(marked, ast.Constant) and isinstance(marked.value, str) else None


def main() -> int:
    """Update all languages and return 1 when a translation is missing."""
    template, is_complete = texts(), True
    for file in sorted(LOCALE.glob("*/LC_MESSAGES/edgeqwen.po")):
        language = file.parts[-3]
        with file.open("rb") as old:
            catalog = read_po(old, locale=language)
        catalog.update(template, no_fuzzy_matching=True, update_creation_date=False)
        catalog.obsolete.clear()
        with file.open("wb") as new:
            write_po(new, catalog, sort_output=True, include_lineno=False, omit_header=False, width=110)
        with file.with_suffix(".mo").open("wb") as compiled:
            write_mo(compiled, catalog)
        for message in catalog:
            if message.id and not message.string:
                is_complete = False
                print(f"{language}: {message.id!r} has no translation", file=sys.stderr)
    return 0 if is_complete else 1


if __name__ == "__main__":
    sys.exit(main())
