"""Splits an answer into thinking and answer proper, the same way however the stream is cut. Pure."""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["thinking", "answer"]
_OPEN, _CLOSE = "<think>", "</think>"


class Delta(NamedTuple):
    """A piece of an answer."""

    kind: Kind
    text: str


class ThinkingSplitter:
    """Reads raw text of one answer; tags and the blank lines around them are dropped.

    A thinking block counts only at the start of the answer: later on, `<think>` is text like any other.
    """

    def __init__(self, in_thinking: bool = False) -> None:
        """Begin inside the block where the prompt has opened it already."""
        self._state: Literal["start", "thinking", "after", "answer"] = "thinking" if in_thinking else "start"
        self._held = ""
        self._trims = in_thinking

    def feed(self, text: str) -> list[Delta]:
        """Take more raw text and return the pieces that are certain."""
        self._held += text
        return self._merge(self._drain(last=False))

    def finish(self) -> list[Delta]:
        """Return what was held back, once the answer is over."""
        return self._merge(self._drain(last=True))

    def _drain(self, *, last: bool) -> list[Delta]:
        pieces: list[Delta] = []
        while True:
            state, held = self._state, self._held
            piece = self._step(last=last)
            if piece and piece.text:
                pieces.append(piece)
            if (state, held) == (self._state, self._held):
                return pieces

    def _step(self, *, last: bool) -> Delta | None:
        if self._state == "start":
            return self._find_open(last=last)
        if self._state == "thinking":
            return self._find_close(last=last)
        if self._state == "after":
            self._held = self._held.lstrip()
            if self._held:
                self._state = "answer"
            return None
        text, self._held = self._held, ""
        return Delta("answer", text)

    def _find_open(self, *, last: bool) -> Delta | None:
        start = self._held.lstrip()
        if start.startswith(_OPEN):
            self._held, self._state, self._trims = start[len(_OPEN) :], "thinking", True
        elif last or (start and not _OPEN.startswith(start)):
            self._state = "answer"
        return None

    def _find_close(self, *, last: bool) -> Delta | None:
        if self._trims:
            self._held = self._held.lstrip()
            self._trims = not self._held
        at = self._held.find(_CLOSE)
        if at >= 0:
            text, self._held = self._held[:at].rstrip(), self._held[at + len(_CLOSE) :]
            self._state = "after"
            return Delta("thinking", text)
        keep = 0 if last else _held_back(self._held)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return Delta("thinking", text.rstrip() if last else text)

    @staticmethod
    def _merge(pieces: list[Delta]) -> list[Delta]:
        merged: list[Delta] = []
        for piece in pieces:
            if merged and merged[-1].kind == piece.kind:
                merged[-1] = Delta(piece.kind, merged[-1].text + piece.text)
            else:
                merged.append(piece)
        return merged


def _held_back(text: str) -> int:
    """Return how many characters at the end may be blanks before a closing tag, or the start of one."""
    for size in range(min(len(_CLOSE) - 1, len(text)), 0, -1):
        if _CLOSE.startswith(text[-size:]):
            return size + _blanks(text[:-size])
    return _blanks(text)


def _blanks(text: str) -> int:
    return len(text) - len(text.rstrip())
