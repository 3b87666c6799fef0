"""A conversation being held with an engine right now.

Adds turns, streams the reply, keeps what was said however it ends. Knows no screen and no process.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from edgeqwen.chat.conversation import Conversation, Made
from edgeqwen.chat.thinking import Delta, ThinkingSplitter
from edgeqwen.engine.client import WorkerClient
from edgeqwen.engine.protocol import (
    Dropped,
    Event,
    Finished,
    Generate,
    Overflow,
    Prefill,
    SamplerParams,
    Started,
    TextDelta,
)
from edgeqwen.errors import EdgeQwenError, EngineBusy


@dataclass
class Reply:
    """An answer as it grows; whole once `finished` is set."""

    request: int
    thinking: str = ""
    text: str = ""
    finished: Finished | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Tokens of the prompt that the cache held, in memory or on disk."""
    restored_tokens: int = 0
    """Those of them that came from disk."""
    n_tokens: int = 0
    """Tokens so far, thinking included."""
    n_thinking: int = 0
    dropped: Dropped | None = None
    """What of the conversation the model did not see, because the context was full."""

    def take(self, delta: Delta) -> None:
        """Add a piece."""
        if delta.kind == "thinking":
            self.thinking += delta.text
        else:
            self.text += delta.text


@dataclass
class Session:
    """One conversation and the worker that answers in it."""

    client: WorkerClient
    model: str = ""
    """What to call the model that answers."""
    sampler: SamplerParams = field(default_factory=SamplerParams)
    think: bool | None = None
    thinking_budget: int | None = None
    overflow: Overflow = "stop"
    delta_s: float = 0.05
    """Seconds of text that come together."""
    conversation: Conversation = field(default_factory=Conversation)
    reply: Reply | None = None
    """The reply of the turn that runs or ran last."""
    _is_busy: bool = False

    async def ask(self, text: str) -> AsyncGenerator[Delta | Prefill]:
        """Add a user message and yield the reply as it comes, with progress while the prompt is read.

        A reply that is cancelled or cut off stays in the conversation as far as it came. If nothing was said,
        the turn is taken back. Raises what `answer` raises.
        """
        self._check_idle()
        before = self.conversation.head
        asked = self.conversation.add("user", text)
        try:
            async with aclosing(self.answer()) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            if self.conversation.head == asked.id:
                self.conversation.go_back_to(before)

    async def answer(self) -> AsyncGenerator[Delta | Prefill]:
        """Answer the branch in use, which ends with a question; the reply becomes its new head.

        Raises EngineError, ContextOverflow, WorkerLost, and EngineBusy while another turn runs: a
        conversation has one head.
        """
        self._check_idle()
        self._is_busy = True
        reply = self.reply = Reply(self.client.next_id())
        try:
            async with (
                aclosing(self.client.generate(self._request(reply))) as events,
                aclosing(_pieces(reply, events)) as pieces,
            ):
                async for piece in pieces:
                    yield piece
        finally:
            self._is_busy = False
            self._keep(reply)

    def _check_idle(self) -> None:
        if self._is_busy:
            raise EngineBusy("this conversation is being answered already", queue_length=1)

    def _request(self, reply: Reply) -> Generate:
        return Generate(
            id=reply.request,
            messages=self.conversation.prompt(),
            sampler=self.sampler,
            think=self.think,
            thinking_budget=self.thinking_budget,
            overflow=self.overflow,
            delta_s=self.delta_s,
        )

    async def answer_now(self) -> None:
        """Have the thinking of the reply that runs closed; it goes on with its answer."""
        if self.reply and self.reply.finished is None:
            await self.client.answer_now(self.reply.request)

    async def cancel(self) -> None:
        """Stop the reply that runs; what it said stays."""
        if self.reply and self.reply.finished is None:
            await self.client.cancel(self.reply.request)

    def _keep(self, reply: Reply) -> None:
        end = reply.finished
        is_whole = end is not None and end.stop_reason != "cancelled"
        if reply.text or reply.thinking or is_whole:
            made = Made(self.model, end.stats, end.stop_reason, end.seed) if end else None
            self.conversation.add(
                "assistant", reply.text, thinking=reply.thinking, is_complete=is_whole, made=made
            )


async def _pieces(reply: Reply, events: AsyncGenerator[Event]) -> AsyncGenerator[Delta | Prefill]:
    """Put what the worker says into a reply, and yield what of it is news."""
    splitter = ThinkingSplitter()
    try:
        async for event in events:
            if isinstance(event, Started):
                splitter = ThinkingSplitter(event.in_thinking)
                reply.dropped = event.dropped
                reply.prompt_tokens, reply.cached_tokens = event.prompt_tokens, event.cached_tokens
                reply.restored_tokens = event.restored_tokens
            elif isinstance(event, Prefill):
                yield event
            elif isinstance(event, TextDelta):
                reply.n_tokens, reply.n_thinking = event.n_tokens, event.n_thinking
                for delta in splitter.feed(event.text):
                    reply.take(delta)
                    yield delta
            elif isinstance(event, Finished):
                reply.finished = event
    except EdgeQwenError:
        for delta in splitter.finish():
            reply.take(delta)
            yield delta
        raise
    for delta in splitter.finish():
        reply.take(delta)
        yield delta
