"""Chats in and out of the history: Markdown and JSON out; our JSON and ChatGPT's export in.

What comes in is anybody's: sizes are bounded and every text loses its control characters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from edgeqwen.chat.conversation import Conversation, Message, head_in
from edgeqwen.chat.history import History
from edgeqwen.engine.protocol import Role
from edgeqwen.errors import InvalidInput
from edgeqwen.jsonfile import NOT_JSON
from edgeqwen.text import clean

_MAX_BYTES = 512 << 20
_MOST_ID = 1 << 62  # SQLite counts in 64 bits, and the next id must fit
_FORM = "edgeqwen-chat-1"
_NAMES = {"system": "System", "user": "You", "assistant": "Answer", "tool": "Tool"}


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """One chat as JSON."""

    form: str = _FORM
    title: str
    system: str = ""
    head: int | None = 0
    """None: before the first message; one that is not there: the newest."""
    messages: list[Message] = msgspec.field(default_factory=list)


def to_json(title: str, conversation: Conversation) -> bytes:
    """Return a chat with all its branches."""
    messages = [message for _, message in sorted(conversation.messages.items())]
    exported = Exported(title=title, system=conversation.system, head=conversation.head, messages=messages)
    return msgspec.json.format(msgspec.json.encode(exported), indent=2)


def to_markdown(title: str, conversation: Conversation) -> str:
    """Return the branch in use as a document."""
    parts = [f"# {title}"]
    if conversation.system:
        parts.append(f"> {conversation.system}".replace("\n", "\n> "))
    for message in conversation.branch():
        name = message.made.model if message.made else _NAMES[message.role]
        parts.append(f"## {name}")
        if message.thinking:
            parts.append(f"<details><summary>Thinking</summary>\n\n{message.thinking}\n\n</details>")
        parts.append(message.text)
    return "\n\n".join(parts) + "\n"


def import_chats(path: Path, history: History) -> int:
    """Add every chat of a file to the history and return how many. Blocking. Raises InvalidInput."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InvalidInput(f"{path} is larger than {_MAX_BYTES >> 20} MiB")
        document = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from error
    except NOT_JSON as error:
        raise InvalidInput(f"{path} is not JSON") from error
    found = list(_chats(document))
    if not found:
        raise InvalidInput(f"{path} holds no chats that edgeqwen knows: its own JSON, or a ChatGPT export")
    for title, conversation in found:
        history.create(conversation, title)
    return len(found)


def _chats(document: Any) -> Iterable[tuple[str, Conversation]]:  # noqa: ANN401 - JSON of anybody
    for chat in document if isinstance(document, list) else [document]:
        if not isinstance(chat, dict):
            continue
        conversation = _ours(chat) if chat.get("form") == _FORM else _chatgpt(chat)
        if conversation and conversation.messages:
            yield clean(str(chat.get("title") or "")), conversation


def _ours(chat: dict[str, Any]) -> Conversation | None:
    try:
        exported = msgspec.convert(chat, Exported)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"a chat in the file is not whole: {error}") from error
    messages: dict[int, Message] = {}
    for message in sorted(exported.messages, key=lambda message: message.id):
        if not 0 < message.id < _MOST_ID or message.parent not in (None, *messages):
            raise InvalidInput("a chat in the file is not whole: a message answers one that is not there")
        made = message.made and replace(message.made, model=clean(message.made.model))
        text, thinking = clean(message.text), clean(message.thinking)
        messages[message.id] = replace(message, text=text, thinking=thinking, made=made)
    return Conversation(clean(exported.system), messages, head_in(messages, exported.head))


def _chatgpt(chat: dict[str, Any]) -> Conversation | None:
    """Read one conversation of ChatGPT's conversations.json: a `mapping` of nodes with parents."""
    nodes = chat.get("mapping")
    if not isinstance(nodes, dict):
        return None
    conversation = Conversation()
    numbers: dict[str, int | None] = {}
    waiting = [
        key for key, node in nodes.items() if isinstance(node, dict) and str(node.get("parent")) not in nodes
    ]
    while waiting:
        key = waiting.pop(0)
        node = nodes[key]
        parent = numbers.get(str(node.get("parent")))
        numbers[key] = parent
        if found := _chatgpt_message(node.get("message")):
            conversation.head = parent
            numbers[key] = conversation.add(*found).id
        children = node.get("children")
        for child in children if isinstance(children, list) else ():
            if isinstance(child, str) and isinstance(nodes.get(child), dict) and child not in numbers:
                numbers[child] = None
                waiting.append(child)
    current = numbers.get(str(chat.get("current_node")))
    conversation.head = current or max(conversation.messages, default=None)
    return conversation


def _chatgpt_message(message: Any) -> tuple[Role, str] | None:  # noqa: ANN401
    """Return who said what, or None for what is no text of a person or a model."""
    if not isinstance(message, dict):
        return None
    author, content = message.get("author"), message.get("content")
    role = author.get("role") if isinstance(author, dict) else None
    parts = content.get("parts") if isinstance(content, dict) else None
    texts = [part for part in parts if isinstance(part, str)] if isinstance(parts, list) else []
    text = clean("\n".join(texts)).strip()
    if role == "user" and text:
        return "user", text
    return ("assistant", text) if role == "assistant" and text else None
