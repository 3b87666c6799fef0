"""The only place that prints: data on stdout, narration on stderr, colour and progress on terminals alone.

Knows how things look, never what they mean.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_REDRAW_S = 0.1


def prepare() -> None:
    """Make the standard streams survive being closed, and text that their encoding cannot show."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - open to the end
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


class OutputFailed(Exception):
    """Stdout takes no more, mostly because its reader is gone; on an OSError click would exit in silence."""


def write(text: str) -> None:
    """Put a piece of data on stdout, at once and as it is. Raises OutputFailed."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        raise OutputFailed(error.strerror) from error


def line(text: str = "") -> None:
    """Put a line of data on stdout."""
    write(f"{text}\n")


def document(value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Put one JSON document on stdout, on one line; escaped where stdout's encoding has not all letters."""
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    line(json.dumps(value, ensure_ascii=not is_utf8))


def note(text: str) -> None:
    """Say something on stderr."""
    _narrate(f"{text}\n")


def aside(text: str, end: str = "\n") -> None:
    """Say something less important on stderr, dim where there is colour."""
    styled = f"\x1b[2m{text}\x1b[22m" if text and has_colour() else text
    _narrate(f"{styled}{end}")


def _narrate(text: str) -> None:
    """Put text on stderr; one that takes nothing, as on a full disk, must not cost the data on stdout."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - else Python tries once more as it ends


def has_terminal() -> bool:
    """Say whether somebody watches stderr."""
    return sys.stderr.isatty()


def has_colour() -> bool:
    """Say whether stderr may carry colour codes."""
    return has_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Put aligned columns on stdout; a header that starts with `>` aligns its column to the right."""
    titles = [title.removeprefix(">") for title in header]
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    for row in (titles, *rows):
        cells = (
            cell.rjust(width) if title.startswith(">") else cell.ljust(width)
            for title, cell, width in zip(header, row, widths, strict=True)
        )
        line("  ".join(cells).rstrip())


def fields(pairs: Sequence[tuple[str, str]]) -> None:
    """Put names and values on stdout, one pair per line."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        line(f"{name.ljust(width)}  {value}")


def _columns() -> int:
    """Return the width of the terminal behind stderr; stdout may be a file."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


class Status:
    """One line on a watched stderr that is redrawn in place and gone in the end; elsewhere nothing."""

    def __init__(self) -> None:
        self._width = 0
        self._drawn_at = float("-inf")

    def __enter__(self) -> Status:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def show(self, text: str) -> None:
        """Draw `text`, at most ten times per second."""
        now = time.monotonic()
        if not has_terminal() or now - self._drawn_at < _REDRAW_S:
            return
        self._drawn_at = now
        room = _columns() - 1
        if len(text) > room:  # a line that wraps is never taken away; its end holds the figures
            text = f"…{text[1 - room :]}" if room > 1 else ""
        sys.stderr.write(f"\r{text.ljust(min(self._width, room))}")
        sys.stderr.flush()
        self._width = len(text)

    def share(self, what: str, done: int, total: int) -> None:
        """Draw how much of something is done."""
        self.show(f"{what} {100 * done // max(total, 1)} %")

    def clear(self) -> None:
        """Take the line away."""
        if self._width:
            sys.stderr.write(f"\r{' ' * min(self._width, _columns() - 1)}\r")
            sys.stderr.flush()
            self._width = 0
        self._drawn_at = float("-inf")
