"""One answer on its way to the screen: pieces are gathered as they come and drawn as often as it is cheap.

Draws nothing after the last piece was drawn, whatever ended the answer. Knows no model and no history.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

from edgeqwen.chat.desk import Piece
from edgeqwen.chat.session import Reply, Session
from edgeqwen.engine.protocol import Prefill
from edgeqwen.tui.flush import next_interval
from edgeqwen.tui.language import _
from edgeqwen.tui.widgets.message import GrowingView

_RATE_WINDOW_S, _LEAST_S = 3.0, 0.5


class Answering:
    """Draws one answer."""

    def __init__(self, view: GrowingView, base_interval: float, budget: int | None) -> None:
        self._view, self._base, self._budget = view, base_interval, budget
        self._answer: list[str] = []
        self._thinking: list[str] = []
        self._marks: deque[tuple[float, int]] = deque()
        self._n_thinking = 0
        self._over = asyncio.Event()

    async def run(self, pieces: AsyncGenerator[Piece], session: Session) -> None:
        """Draw all pieces; returns once the last is on the screen. Raises what the pieces raise."""
        drawer = asyncio.create_task(self._draw_on())
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    self._take(piece)
                    if session.reply:
                        self._note(session.reply)
        finally:
            self._over.set()
            await drawer

    def _note(self, reply: Reply) -> None:
        """Take the counters of the answer so far."""
        now = time.monotonic()
        self._n_thinking = reply.n_thinking
        if reply.n_tokens and (not self._marks or self._marks[-1][1] != reply.n_tokens):
            self._marks.append((now, reply.n_tokens))
        while len(self._marks) > 2 and now - self._marks[0][0] > _RATE_WINDOW_S:
            self._marks.popleft()

    @property
    def rate(self) -> float | None:
        """Tokens per second of the last seconds, as they arrive here."""
        if len(self._marks) < 2:
            return None
        (then, before), (last, done) = self._marks[0], self._marks[-1]
        now = time.monotonic()
        until = last if now - last < _RATE_WINDOW_S else now  # it waits for something, not for its next burst
        return (done - before) / (until - then) if until - then >= _LEAST_S else None

    def _take(self, piece: Piece) -> None:
        if isinstance(piece, Prefill):
            text = _("reading the prompt: {done} of {total} tokens")
            self._view.say(text.format(done=f"{piece.done:,}", total=f"{piece.total:,}"))
        elif piece.kind == "thinking":
            self._thinking.append(piece.text)
        else:
            self._answer.append(piece.text)

    async def _draw_on(self) -> None:
        while not self._over.is_set():
            started = time.perf_counter()
            await self._draw()
            cost = time.perf_counter() - started
            try:
                await asyncio.wait_for(self._over.wait(), next_interval(self._base, cost))
            except TimeoutError:
                continue
        await self._draw()

    async def _draw(self) -> None:
        if _is_behind(self._view):
            return  # the terminal has not taken the last picture yet; another would only queue
        thinking, answer = "".join(self._thinking), "".join(self._answer)
        self._thinking.clear()
        self._answer.clear()
        if thinking or answer:
            self._view.say("")
        if thinking:
            await self._view.think(thinking, self._n_thinking, self._budget)
        if answer:
            await self._view.grow(answer)


def remarks(reply: Reply) -> Iterator[tuple[str, str]]:
    """Yield what is to be said after an answer beside its figures, each with its kind of notice."""
    if reply.restored_tokens:
        text = _("{n} tokens of this chat came back from disk and were not read again")
        yield "notice", text.format(n=f"{reply.restored_tokens:,}")
    if reply.dropped:
        text = _("the context was full: {n} earlier messages ({m} tokens) were not shown to the model")
        n_messages = len(reply.dropped.messages) + len(reply.dropped.thinking_of)
        hint = _("nothing is lost: a larger run.ctx shows it all of them")
        yield "warning", f"{text.format(n=n_messages, m=f'{reply.dropped.n_tokens:,}')}\n{hint}"


def _is_behind(view: GrowingView) -> bool:
    """Say whether output waits for a slow terminal; the driver's queue is private, so it may not be there."""
    thread = getattr(getattr(view.app, "_driver", None), "_writer_thread", None)
    waiting = getattr(thread, "_queue", None)
    return waiting is not None and waiting.qsize() > 0
