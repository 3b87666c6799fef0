"""What was said: a tree of messages and the branch in use. Data only; nothing is ever overwritten.

Knows no engine and no storage.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edgeqwen.engine.protocol import ChatMessage, Role


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


@dataclass
class Conversation:
    """All messages, and `head`, the last one of the branch in use."""

    system: str = ""
    messages: dict[int, Message] = field(default_factory=dict)
    head: int | None = None

    def add(self, role: Role, text: str, *, thinking: str = "", is_complete: bool = True) -> Message:
        """Append a message to the branch in use and return it."""
        number = len(self.messages) + 1
        message = Message(number, self.head, role, text, thinking, is_complete)
        self.messages[number] = message
        self.head = number
        return message

    def branch(self) -> list[Message]:
        """Return the messages from the first to `head`."""
        path: list[Message] = []
        at = self.head
        while at is not None:
            path.append(self.messages[at])
            at = path[-1].parent
        return path[::-1]

    def go_back_to(self, message: int | None) -> None:
        """Make `message` the head; what follows it stays as another branch."""
        assert message is None or message in self.messages
        self.head = message

    def prompt(self) -> tuple[ChatMessage, ...]:
        """Return the branch as the worker wants it, without earlier thinking: no Qwen template keeps it."""
        system = (ChatMessage(role="system", content=self.system),) if self.system else ()
        said = (ChatMessage(role=message.role, content=message.text) for message in self.branch())
        return (*system, *said)
