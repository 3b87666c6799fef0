"""Cleans text that we did not write before anyone shows it, and says sizes in words.

Owns the one rule for control characters; refuses to know about markup, colours or widgets.
"""

from __future__ import annotations

import unicodedata

# Kept on purpose: newline and tab for layout, ZWNJ and ZWJ because scripts and emoji need them.
_KEPT = frozenset("\n\t\u200c\u200d")
# Cc: C0, DEL and C1, where terminal escapes live. Zl, Zp: line breaks that only some programs see, so they
# become newlines. Cs: lone surrogates, which cannot be encoded. Bidi controls can reorder what is read.
_DROPPED_CATEGORIES = frozenset({"Cc", "Cs"})
_LINE_BREAKS = {0x2028: "\n", 0x2029: "\n"}
_BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def _is_kept(char: str) -> bool:
    if char in _KEPT:
        return True
    return char not in _BIDI_CONTROLS and unicodedata.category(char) not in _DROPPED_CATEGORIES


def clean(text: str) -> str:
    """Return `text` without control characters; the result is the same however the input was cut."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(filter(_is_kept, text.translate(_LINE_BREAKS)))


def clean_line(text: str, limit: int = 200) -> str:
    """Return `text` as one clean line of at most `limit` characters, for names and messages."""
    line = " ".join(clean(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def size_text(n_bytes: float) -> str:
    """Return a number of bytes in words: 491 MB, 1.1 GB (1 GB is 10^9 bytes, as on disks and hubs)."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= factor:
            value = n_bytes / factor
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{n_bytes:.0f} B"
