"""What stays of a conversation that does not fit, and when thinking is closed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import pytest

from edgeqwen.engine.protocol import ChatMessage, Overflow
from edgeqwen.worker.context import fit
from edgeqwen.worker.thinking import ThinkingWatch


def chat(*texts: str, system: str = "") -> list[ChatMessage]:
    roles = ("user", "assistant")
    head = [ChatMessage(role="system", content=system)] if system else []
    return head + [ChatMessage(role=roles[i % 2], content=text) for i, text in enumerate(texts)]  # type: ignore[arg-type]


def count(messages: Sequence[ChatMessage]) -> int:
    """Ten tokens of template per message, and one per character."""
    return sum(10 + len(str(message.content)) for message in messages)


def texts(messages: Sequence[ChatMessage]) -> list[object]:
    return [message.content for message in messages]


LONG = chat("a" * 50, "b" * 50, "c" * 50, "d" * 50, "e" * 50, system="s" * 20)


@pytest.mark.parametrize("policy", get_args(Overflow))
def test_what_fits_is_left_alone(policy: Overflow) -> None:
    assert fit(LONG, policy, 1000, count) == (LONG, None)


def test_stop_never_drops() -> None:
    assert fit(LONG, "stop", 10, count) == (LONG, None)


def test_the_oldest_turns_go_first_and_no_more_than_must() -> None:
    kept, dropped = fit(LONG, "drop-oldest", count(LONG) - 1, count)
    assert texts(kept) == ["s" * 20, "c" * 50, "d" * 50, "e" * 50]
    assert dropped is not None
    assert (dropped.messages, dropped.n_tokens) == ((1, 2), 120)


def test_keep_ends_keeps_the_first_turn() -> None:
    kept, dropped = fit(LONG, "keep-ends", count(LONG) - 1, count)
    assert texts(kept) == ["s" * 20, "a" * 50, "b" * 50, "e" * 50]
    assert dropped is not None
    assert dropped.messages == (3, 4)


@pytest.mark.parametrize("policy", ["drop-oldest", "keep-ends"])
def test_system_and_the_last_question_always_stay(policy: Overflow) -> None:
    kept, _ = fit(LONG, policy, 1, count)
    assert texts(kept)[0] == "s" * 20
    assert texts(kept)[-1] == "e" * 50


def test_thinking_goes_and_the_answers_stay() -> None:
    said = chat("q", "<think>\nlong\n</think>\n\nanswer", "q2", "no <think> here", "q3")
    kept, dropped = fit(said, "drop-thinking", 90, count)
    assert texts(kept) == ["q", "answer", "q2", "no <think> here", "q3"]
    assert dropped is not None
    assert (dropped.messages, dropped.thinking_of) == ((), (1,))


def test_where_thinking_is_not_enough_the_oldest_turns_go_too() -> None:
    said = chat("q" * 50, "<think>\nlong\n</think>\n\nanswer", "q2", "<think>x</think>two", "q3")
    kept, dropped = fit(said, "drop-thinking", 50, count)
    assert texts(kept) == ["q2", "two", "q3"]
    assert dropped is not None
    assert (dropped.messages, dropped.thinking_of) == ((0, 1), (3,))


def test_turns_go_in_blocks_so_that_the_next_turn_drops_the_same() -> None:
    said = chat(*("x" * 30 for _ in range(41)))
    first = fit(said, "drop-oldest", 1200, count, 400)[1]
    second = fit([*said, *chat("y" * 30, "z" * 30)], "drop-oldest", 1200, count, 400)[1]
    assert first is not None
    assert second is not None
    assert first.messages == second.messages
    assert first.n_tokens >= 400


def test_a_very_long_chat_is_counted_a_few_times_only() -> None:
    said = chat(*("x" * (index % 90) for index in range(2001)))
    n_counts = 0

    def counting(messages: Sequence[ChatMessage]) -> int:
        nonlocal n_counts
        n_counts += 1
        return count(messages)

    kept, _ = fit(said, "drop-oldest", 2000, counting, 500)
    assert 1000 < count(kept) <= 2000
    assert n_counts < 12


@pytest.mark.parametrize(
    ("in_thinking", "pieces", "inside"),
    [
        (True, ["hm"], [True]),
        (True, ["hm</thi", "nk>", "\n\nyes"], [True, False, False]),
        (False, ["<think>", "a", "</think>b"], [True, True, False]),
        (False, ["\n<thi", "nk>", "a"], [False, True, True]),
        (False, ["yes <think>"], [False]),
        (False, ["x" * 100, "</think>"], [False, False]),
    ],
)
def test_thinking_is_followed_through_any_cut(
    in_thinking: bool, pieces: list[str], inside: list[bool]
) -> None:
    watch = ThinkingWatch(in_thinking)
    seen = []
    for piece in pieces:
        watch.feed(piece)
        seen.append(watch.inside)
    assert seen == inside
