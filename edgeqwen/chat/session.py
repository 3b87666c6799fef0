"""A conversation being held with an engine right now.

Adds turns, streams the reply, keeps what was said however it ends. Knows no screen and no process.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from edgeqwen.chat.conversation import Conversation
from edgeqwen.chat.thinking import Delta, ThinkingSplitter
from edgeqwen.engine.client import WorkerClient
from edgeqwen.engine.protocol import (
    Dropped,
    Finished,
    Generate,
    Overflow,
    Prefill,
    SamplerParams,
    Started,
    TextDelta,
)
from edgeqwen.errors import EdgeQwenError


@dataclass
class Reply:
    """An answer as it grows; whole once `finished` is set."""

    request: int
    thinking: str = ""
    text: str = ""
    finished: Finished | None = None
    dropped: Dropped | None = None
    """What of the conversation the model did not see, because the context was full."""

    def take(self, delta: Delta) -> None:
        if delta.kind == "thinking":
            self.thinking += delta.text
        else:
            self.text += delta.text


@dataclass
class Session:
    """One conversation and the worker that answers in it."""

    client: WorkerClient
    sampler: SamplerParams = field(default_factory=SamplerParams)
    think: bool | None = None
    thinking_budget: int | None = None
    overflow: Overflow = "stop"
    conversation: Conversation = field(default_factory=Conversation)
    reply: Reply | None = None
    """The reply of the turn that runs or ran last."""

    async def ask(self, text: str) -> AsyncGenerator[Delta | Prefill]:
        """Add a user message and yield the reply as it comes, with progress while the prompt is read.

        A reply that is cancelled or cut off stays in the conversation as far as it came. If nothing was said,
        the turn is taken back. Raises EngineError, ContextOverflow, WorkerLost.
        """
        before = self.conversation.head
        self.conversation.add("user", text)
        reply = self.reply = Reply(self.client.next_id())
        splitter = ThinkingSplitter()
        request = Generate(
            id=reply.request,
            messages=self.conversation.prompt(),
            sampler=self.sampler,
            think=self.think,
            thinking_budget=self.thinking_budget,
            overflow=self.overflow,
        )
        try:
            async with aclosing(self.client.generate(request)) as events:
                async for event in events:
                    if isinstance(event, Started):
                        splitter = ThinkingSplitter(event.in_thinking)
                        reply.dropped = event.dropped
                    elif isinstance(event, Prefill):
                        yield event
                    elif isinstance(event, TextDelta):
                        for delta in splitter.feed(event.text):
                            reply.take(delta)
                            yield delta
                    elif isinstance(event, Finished):
                        reply.finished = event
            for delta in splitter.finish():
                reply.take(delta)
                yield delta
        except EdgeQwenError:
            for delta in splitter.finish():
                reply.take(delta)
                yield delta
            raise
        finally:
            self._keep(reply, before)

    async def answer_now(self) -> None:
        """Have the thinking of the reply that runs closed; it goes on with its answer."""
        if self.reply and self.reply.finished is None:
            await self.client.answer_now(self.reply.request)

    async def cancel(self) -> None:
        """Stop the reply that runs; what it said stays."""
        if self.reply and self.reply.finished is None:
            await self.client.cancel(self.reply.request)

    def _keep(self, reply: Reply, before: int | None) -> None:
        if reply.text or reply.thinking or reply.finished:
            whole = reply.finished is not None and reply.finished.stop_reason != "cancelled"
            self.conversation.add("assistant", reply.text, thinking=reply.thinking, is_complete=whole)
        else:
            self.conversation.go_back_to(before)
