"""Decides what of a conversation stays when it does not fit: the policies, and nothing else.

Counts with the function it is given; knows no slots, no template and no engine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import msgspec

from edgeqwen.engine.protocol import ChatMessage, Dropped, Overflow

_THINKING = re.compile(r"\A\s*<think>.*?</think>\s*", re.DOTALL)

_FRAME = 20  # characters that a template puts around a message, about

Count = Callable[[Sequence[ChatMessage]], int]
"""Returns the tokens of a prompt made of these messages."""


def fit(
    messages: Sequence[ChatMessage], policy: Overflow, room: int, count: Count, block: int = 1
) -> tuple[list[ChatMessage], Dropped | None]:
    """Return what is left of a conversation that shall take at most `room` tokens, and what went.

    `drop-oldest` drops turns from the first, `keep-ends` keeps the first turn and drops from the second,
    `drop-thinking` takes earlier thinking out of answers and then goes on like `drop-oldest`. System messages
    and the last turn always stay, so the result may still be too long. Turns go in blocks of at least so many
    tokens: else each turn of a long chat would drop one more, and the cache would be worth nothing.
    """
    before = count(messages)
    if policy == "stop" or before <= room:
        return list(messages), None
    whole = list(messages)
    thinking_of: tuple[int, ...] = ()
    if policy == "drop-thinking":
        whole = [_without_thinking(message) for message in messages]
        thinking_of = tuple(i for i, (old, new) in enumerate(zip(messages, whole, strict=True)) if old != new)
    gone = _turns_to_drop(whole, 1 if policy == "keep-ends" else 0, room, count, block)
    if not gone and not thinking_of:
        return list(messages), None
    kept = _without(whole, gone)
    stayed = tuple(index for index in thinking_of if index not in gone)
    return kept, Dropped(messages=gone, n_tokens=before - count(kept), thinking_of=stayed)


def _turns_to_drop(
    messages: Sequence[ChatMessage], n_first: int, room: int, count: Count, block: int
) -> tuple[int, ...]:
    """Return the messages of the fewest turns, oldest first, without which the rest fits; else all."""
    total = count(messages)
    if total <= room:
        return ()
    droppable = _turns(messages)[n_first:-1]
    goal = total - -(-(total - room) // block) * block

    def gone(n_turns: int) -> tuple[int, ...]:
        return tuple(index for turn in droppable[:n_turns] for index in turn)

    # Rendering a long chat costs seconds, so the count is guessed from lengths and then made right.
    lengths = [sum(len(str(messages[index].content)) + _FRAME for index in turn) for turn in droppable]
    per_length = total / max(1, sum(len(str(message.content)) + _FRAME for message in messages))
    n_turns = left = 0
    for length in lengths:
        if total - left <= goal:
            break
        left += int(length * per_length)
        n_turns += 1
    while n_turns and count(_without(messages, gone(n_turns - 1))) <= goal:
        n_turns -= 1
    while n_turns < len(droppable) and count(_without(messages, gone(n_turns))) > goal:
        n_turns += 1
    if n_turns == len(droppable) and block > 1:  # a block is too much to ask
        return _turns_to_drop(messages, n_first, room, count, 1)
    return gone(n_turns)


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
