"""Follows whether a model is thinking, so that its thinking can be counted and closed. Knows no slots."""

from __future__ import annotations

_OPEN, _CLOSE = "<think>", "</think>"
CLOSING = f"\n{_CLOSE}\n\n"
"""What is put into an answer to end its thinking: Qwen's own end of the block."""


class ThinkingWatch:
    """The thinking of one answer, from its text."""

    def __init__(self, in_thinking: bool) -> None:
        self.inside = in_thinking
        """The text so far ends inside the block."""
        self._may_open = not in_thinking
        self._tail = ""

    def feed(self, text: str) -> None:
        """Take more of the answer's text."""
        self._tail = (self._tail + text)[-64 - len(text) :]
        if self._may_open and (start := self._tail.lstrip()):
            self.inside = start.startswith(_OPEN)
            self._may_open = not self.inside and _OPEN.startswith(start)
        if self.inside and _CLOSE in self._tail:
            self.inside = False
