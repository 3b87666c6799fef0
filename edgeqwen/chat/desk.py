"""The chat on the desk: one conversation, the model that answers it, and the history that keeps it.

What a front end with chats does, without a screen: ask, ask again, go to another branch, open another chat,
switch the model. Everything said is saved as it comes; a disk that refuses is told and tried again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from edgeqwen.chat.conversation import Conversation, Message
from edgeqwen.chat.history import History
from edgeqwen.chat.host import Loaded, ModelHost, Progress
from edgeqwen.chat.loading import LoadOptions
from edgeqwen.chat.sampling import plan_turns
from edgeqwen.chat.session import Session
from edgeqwen.chat.thinking import Delta
from edgeqwen.engine.protocol import Overflow, Prefill
from edgeqwen.errors import InvalidInput, StoreError

_DRAFT_EVERY_S = 1.0
Piece = Delta | Prefill


@dataclass(frozen=True)
class Usual:
    """What a chat begins with."""

    think: bool | None = None
    sampler: Mapping[str, Any] = field(default_factory=dict)
    overflow: Overflow = "stop"


class Desk:
    """One conversation at a time; lives as long as the front end."""

    def __init__(self, host: ModelHost, history: History, tell: Callable[[str], None]) -> None:
        """`tell` gets what is not as it should be, a sentence each."""
        self.host, self.history, self._tell = host, history, tell
        self.session = Session(host.client)
        self.chat: int | None = None
        """Its id in the history; None until something was said."""
        self.think: bool | None = None
        """As asked for; None follows the model card."""
        self.sampler: dict[str, Any] = {}
        """Fields of SamplerParams that were set by hand, over the model card's."""
        self.usual: Callable[[], Usual] = Usual
        """What a chat begins with, as the settings have it now."""
        self.is_answering = False
        self._draft_at = 0.0
        self._refused = False

    @property
    def conversation(self) -> Conversation:
        """The one on the desk."""
        return self.session.conversation

    @property
    def overflow(self) -> Overflow:
        """What is done when the context is full."""
        return self.session.overflow

    async def load(self, ref: str, options: LoadOptions, progress: Progress) -> Loaded:
        """Load a model; the conversation stays. Raises what ModelHost.find and .open raise."""
        located = await asyncio.to_thread(self.host.find, ref)
        loaded = await self.host.open(located, options, progress)
        self.session.client, self.session.model = self.host.client, loaded.name
        self.apply_settings()
        return loaded

    def apply_settings(self) -> None:
        """Make the session sample as the model card, the mode and `sampler` say. Raises InvalidInput."""
        if self.host.loaded is None:
            return
        plan = plan_turns(self.host.loaded.located.model, self.think, self.sampler)
        self.session.sampler, self.session.think = plan.sampler, plan.think
        if plan.notice:
            self._tell(plan.notice)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the conversation still, from a question to the end of its answer. Raises InvalidInput.

        Within it `put_question` or `back_to_question`, then `answer`; whatever else would change the
        conversation is refused meanwhile.
        """
        self._check_idle()
        self.is_answering = True
        try:
            yield
        finally:
            self.is_answering = False

    def forget_settings(self) -> None:
        """Let go what was set for one chat alone."""
        usual = self.usual()
        self.think, self.sampler = usual.think, dict(usual.sampler)
        self.session.overflow, self.session.thinking_budget = usual.overflow, None
        self.apply_settings()

    async def put_question(self, text: str, *, instead_of: int | None = None) -> Message:
        """Add a question at the end of the branch, or beside an earlier one; `answer` then answers it.

        It is kept even where no answer comes, so that it can be asked again.
        """
        branch = self.conversation.branch()
        if instead_of is not None:
            self.conversation.go_back_to(self.conversation.messages[instead_of].parent)
        elif branch and branch[-1].role == "user":  # unanswered; two questions in a row confuse models
            self.conversation.go_back_to(branch[-1].parent)
        question = self.conversation.add("user", text)
        await self._save()
        return question

    def back_to_question(self, message: int | None = None) -> None:
        """Go back to a question, that which `message` is or answers, or else the last one.

        Old answers stay beside the new one. Raises InvalidInput where there is no question.
        """
        branch = self.conversation.branch()
        if message is not None:
            named = self.conversation.messages[message]
            question = named.id if named.role == "user" else named.parent
        else:
            question = next((message.id for message in reversed(branch) if message.role == "user"), None)
        if question is None:
            raise InvalidInput("there is no question to answer yet")
        self.conversation.go_back_to(question)

    async def answer(self) -> AsyncGenerator[Piece]:
        """Answer the question at the end of the branch and yield the answer as it comes.

        Raises what Session.answer raises.
        """
        try:
            async with aclosing(self.session.answer()) as pieces:
                async for piece in pieces:
                    yield piece
                    await self._save_draft()
        finally:
            reply = self.session.reply
            if reply and reply.finished:
                self.host.count(reply.finished.stats)
            await self._save()

    async def stop(self) -> None:
        """Stop the answer that comes; what it said stays. Raises WorkerLost."""
        await self.session.cancel()

    async def switch_branch(self, message: int, step: int) -> Message:
        """Go to the next or previous alternative of a message and return it."""
        with self.turn():
            siblings = [sibling.id for sibling in self.conversation.siblings(message)]
            target = siblings[(siblings.index(message) + step) % len(siblings)]
            if target != message:  # else what comes behind it would change
                self.conversation.switch_to(target)
                await self._save()
            return self.conversation.messages[target]

    async def delete_from(self, message: int) -> None:
        """Take a message and what follows it out of the branch in use; nothing is destroyed."""
        with self.turn():
            self.conversation.go_back_to(self.conversation.messages[message].parent)
            await self._save()

    def new(self, system: str = "") -> None:
        """Begin another chat."""
        self._check_idle()
        self.session.conversation, self.session.reply, self.chat = Conversation(system), None, None
        self.forget_settings()

    async def open(self, chat: int) -> None:
        """Put a chat of the history on the desk. Raises NotFound, StoreError."""
        with self.turn():
            conversation = await asyncio.to_thread(self.history.load, chat)
            self.session.conversation, self.session.reply, self.chat = conversation, None, chat
        self.forget_settings()

    async def set_system(self, system: str) -> None:
        """Change the system prompt of the chat from here on."""
        self.conversation.system = system
        if self.chat is not None:
            await self._save()

    def _check_idle(self) -> None:
        if self.is_answering:
            raise InvalidInput("an answer is coming; stop it first")

    async def _save(self) -> None:
        """Save the conversation; a failure is told once and made good by the next save that succeeds."""
        conversation, before = self.conversation, self.chat
        try:
            if before is not None:
                chat = await asyncio.to_thread(self.history.save, before, conversation)
            elif conversation.messages:
                first = next(iter(conversation.messages.values())).text
                chat = await asyncio.to_thread(self.history.create, conversation, first)
            else:
                return
            if self.conversation is conversation:
                self.chat = chat
            if before not in (None, chat):
                self._tell("another edgeqwen went on with this chat; here it is a chat of its own now")
        except StoreError as error:
            self._tell_refusal(error)
        else:
            if self._refused:
                self._refused = False
                self._tell("the chat is saved again")

    async def _save_draft(self) -> None:
        now, reply = time.monotonic(), self.session.reply
        if reply is None or self.chat is None or now - self._draft_at < _DRAFT_EVERY_S:
            return
        self._draft_at = now
        try:
            await asyncio.to_thread(
                self.history.save_draft, self.chat, self.conversation, reply.text, reply.thinking
            )
        except StoreError as error:
            self._tell_refusal(error)

    def _tell_refusal(self, error: StoreError) -> None:
        if not self._refused:
            self._refused = True
            self._tell(f"{error.message}; the chat stays here meanwhile")
