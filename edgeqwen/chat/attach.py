"""Puts files into a message: `@path` stands for the text of that file.

Text files only, up to a megabyte each; knows no screen.
"""

from __future__ import annotations

import re
from pathlib import Path

from edgeqwen.errors import InvalidInput
from edgeqwen.text import clean, clean_line

_MAX_BYTES = 1 << 20
_NAMED = re.compile(r'(?<!\S)@(?:"([^"\n]+)"|(\S+))')


def insert_files(text: str) -> str:
    """Return a message with the text of each `@file` after it; `@word` without such a file stays a word.

    Blocking. Raises InvalidInput for a file that is binary, too large or unreadable.
    """
    parts = [text]
    seen: set[Path] = set()
    for match in _NAMED.finditer(text):
        path = _file_named(match[1] or match[2])
        is_there = path and f"{clean_line(str(path))}:\n```" in text  # an earlier message, edited
        if path and path not in seen and not is_there:
            seen.add(path)
            parts.append(_block(path))
    return "\n\n".join(parts)


def _file_named(name: str) -> Path | None:
    """Return the file of this name, or None for a word that only looks like one."""
    try:
        path = Path(name).expanduser()
        return path if path.is_file() else None
    except (OSError, RuntimeError, ValueError):
        return None


def _block(path: Path) -> str:
    name = clean_line(str(path))
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InvalidInput(f"{name} is larger than {_MAX_BYTES >> 20} MiB; take a part of it")
        data = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read {name}: {error.strerror}") from error
    if b"\0" in data:
        raise InvalidInput(f"{name} is a binary file; only text can be put into a message")
    try:
        content = clean(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{name} is not UTF-8 text; only text can be put into a message") from error
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", content)), default=0))
    return f"{name}:\n{fence}{path.suffix.removeprefix('.')}\n{content.rstrip()}\n{fence}"
