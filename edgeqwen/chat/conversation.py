"""What was said: a tree of messages and the branch in use. Data only; nothing is ever overwritten.

Knows no engine and no storage.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edgeqwen.engine.protocol import ChatMessage, Role, Stats, StopReason


@dataclass(frozen=True)
class Made:
    """How an answer came about."""

    model: str
    """Its name."""
    stats: Stats
    stop_reason: StopReason
    seed: int


@dataclass(frozen=True)
class Message:
    """One message and the one it answers."""

    id: int
    parent: int | None
    role: Role
    text: str
    thinking: str = ""
    """What a model thought before it said `text`."""
    is_complete: bool = True
    """False for an answer that was cancelled or cut off."""
    made: Made | None = None
    """None for what people wrote, and for answers whose end nobody saw."""


@dataclass
class Conversation:
    """All messages, and `head`, the last one of the branch in use."""

    system: str = ""
    messages: dict[int, Message] = field(default_factory=dict)
    head: int | None = None

    @property
    def next_id(self) -> int:
        """The id that the next message gets."""
        return max(self.messages, default=0) + 1

    def add(
        self,
        role: Role,
        text: str,
        *,
        thinking: str = "",
        is_complete: bool = True,
        made: Made | None = None,
    ) -> Message:
        """Append a message to the branch in use and return it."""
        message = Message(self.next_id, self.head, role, text, thinking, is_complete, made)
        self.messages[message.id] = message
        self.head = message.id
        return message

    def branch(self) -> list[Message]:
        """Return the messages from the first to `head`."""
        path: list[Message] = []
        at = self.head
        while at is not None:
            path.append(self.messages[at])
            at = path[-1].parent
        return path[::-1]

    def children(self, parent: int | None) -> list[Message]:
        """Return the messages that follow one directly, oldest first."""
        return [message for _, message in sorted(self.messages.items()) if message.parent == parent]

    def siblings(self, message: int) -> list[Message]:
        """Return a message and what was said instead of it, oldest first."""
        return self.children(self.messages[message].parent)

    def go_back_to(self, message: int | None) -> None:
        """Make `message` the head; what follows it stays as another branch."""
        assert message is None or message in self.messages
        self.head = message

    def switch_to(self, message: int) -> None:
        """Use the branch through `message`, as far as its newest continuation goes."""
        self.head = message
        while following := self.children(self.head):
            self.head = following[-1].id

    def prompt(self) -> tuple[ChatMessage, ...]:
        """Return the branch as the worker wants it, without earlier thinking: no Qwen template keeps it."""
        system = (ChatMessage(role="system", content=self.system),) if self.system else ()
        said = (ChatMessage(role=message.role, content=message.text) for message in self.branch())
        return (*system, *said)


def head_in(messages: dict[int, Message], head: int | None) -> int | None:
    """Return a head that was kept somewhere, or the newest message when that one is not there."""
    return head if head is None or head in messages else max(messages, default=None)
