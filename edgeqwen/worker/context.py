"""Decides what of a conversation stays when it does not fit: the policies, and nothing else.

Counts with the function it is given; knows no slots, no template and no engine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from edgeqwen.engine.protocol import ChatMessage, Dropped, Overflow

T = TypeVar("T")

_THINKING = re.compile(r"\A\s*<think>.*?</think>\s*", re.DOTALL)

Count = Callable[[Sequence[ChatMessage]], int]
"""Returns the tokens of a prompt made of these messages."""


def fit(
    messages: Sequence[ChatMessage], policy: Overflow, room: int, count: Count
) -> tuple[list[ChatMessage], Dropped | None]:
    """Return what is left of a conversation that shall take at most `room` tokens, and what went.

    `drop-oldest` drops turns from the first, `keep-ends` keeps the first turn and drops from the second,
    `drop-thinking` takes earlier thinking out of answers. System messages and the last turn always stay, so
    the result may still be too long.
    """
    before = count(messages)
    if policy == "stop" or before <= room:
        return list(messages), None
    if policy == "drop-thinking":
        kept = [_without_thinking(message) for message in messages]
        gone = tuple(i for i, (old, new) in enumerate(zip(messages, kept, strict=True)) if old != new)
    else:
        gone = _turns_to_drop(messages, 1 if policy == "keep-ends" else 0, room, count)
        kept = _without(messages, gone)
    if not gone:
        return list(messages), None
    return kept, Dropped(messages=gone, n_tokens=before - count(kept))


def _turns_to_drop(messages: Sequence[ChatMessage], n_first: int, room: int, count: Count) -> tuple[int, ...]:
    """Return the messages of the fewest turns, oldest first, without which the rest fits; else all."""
    droppable = _turns(messages)[n_first:-1]
    low, high = 0, len(droppable)
    while low < high:
        middle = (low + high) // 2
        gone = tuple(index for turn in droppable[:middle] for index in turn)
        if count(_without(messages, gone)) <= room:
            high = middle
        else:
            low = middle + 1
    return tuple(index for turn in droppable[:low] for index in turn)


def _turns(messages: Sequence[ChatMessage]) -> list[list[int]]:
    """Return the indices of each turn: a user's message and what follows it; system messages are in none."""
    turns: list[list[int]] = []
    for index, message in enumerate(messages):
        if message.role == "system":
            continue
        if message.role == "user" or not turns:
            turns.append([])
        turns[-1].append(index)
    return turns


def _without(messages: Sequence[ChatMessage], gone: Sequence[int]) -> list[ChatMessage]:
    left_out = frozenset(gone)
    return [message for index, message in enumerate(messages) if index not in left_out]


def _without_thinking(message: ChatMessage) -> ChatMessage:
    if message.role != "assistant" or not isinstance(message.content, str):
        return message
    text = _THINKING.sub("", message.content)
    return message if text == message.content else msgspec.structs.replace(message, content=text)
