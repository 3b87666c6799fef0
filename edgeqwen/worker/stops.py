"""Turns token bytes into text that may be shown: UTF-8, control characters, stop strings.

The result is the same however the bytes are cut. Knows nothing of tokens or slots.
"""

from __future__ import annotations

import codecs

from edgeqwen.text import clean


class TextStream:
    """The text side of one request."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = tuple(filter(None, map(clean, stop)))  # as the text that they are looked for in
        self._hold = max(map(len, self._stop), default=1) - 1
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False
        """A stop string was met; nothing more comes out."""

    def feed(self, piece: bytes) -> str:
        """Take the bytes of a token and return the text that is certain by now."""
        return self._release(self._decoder.decode(piece), last=False)

    def inject(self, text: str) -> str:
        """Return what was held back and `text` after it, which no stop string is looked for in."""
        held, self._held = self._held + clean(self._decoder.decode(b"", True)), ""
        self._decoder.reset()
        return held + text

    def finish(self) -> str:
        """Return what was held back, once no more tokens come."""
        return self._release(self._decoder.decode(b"", True), last=True)

    def _release(self, text: str, *, last: bool) -> str:
        if self.stopped:
            return ""
        held = self._held + clean(text)
        at = self._first_stop(held)
        if at is not None:
            self.stopped, self._held = True, ""
            return held[:at]
        keep = 0 if last else self._possible_start(held)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def _first_stop(self, text: str) -> int | None:
        """Return where the stop string begins that is complete first, as it would be byte by byte."""
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        return min(found)[1] if found else None

    def _possible_start(self, text: str) -> int:
        """Return how many characters at the end could still grow into a stop string."""
        for size in range(min(self._hold, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stop):
                return size
        return 0
