"""Cleaning, stop strings, UTF-8 and thinking: the same result wherever the stream is cut."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeqwen.chat.thinking import Delta, ThinkingSplitter
from edgeqwen.text import clean, clean_line
from edgeqwen.worker.stops import TextStream


def cuts(data: bytes) -> Iterator[list[bytes]]:
    """Yield the data whole, byte by byte, and cut in two and in three at every place."""
    yield [data]
    yield [data[at : at + 1] for at in range(len(data))]
    for first in range(len(data) + 1):
        for second in range(first, len(data) + 1):
            yield [data[:first], data[first:second], data[second:]]


def streamed(pieces: list[bytes], stop: tuple[str, ...]) -> tuple[str, bool]:
    stream = TextStream(stop)
    text = "".join(stream.feed(piece) for piece in pieces)
    return text + stream.finish(), stream.stopped


@pytest.mark.parametrize(
    ("data", "stop", "text", "stopped"),
    [
        ("héllo 世界 🙂".encode(), (), "héllo 世界 🙂", False),
        (b"one END two", ("END",), "one ", True),
        (b"one EN", ("END",), "one EN", False),
        (b"aab", ("ab",), "a", True),
        (b"aaab", ("aab", "b"), "a", True),
        (b"abcd", ("abcd", "bc"), "a", True),
        ("x終わり y".encode(), ("終わり",), "x", True),
        (b"\xff\xfeok\xe4\xb8", (), "\ufffd\ufffdok\ufffd", False),
        (b"a\x1b[31mred\x07\r\nb", (), "a[31mred\nb", False),
        (b"E\x00ND of it", ("END",), "", True),
        ("a\u202eb\u2028c".encode(), (), "ab\nc", False),
    ],
)
def test_text_is_the_same_at_every_cut(data: bytes, stop: tuple[str, ...], text: str, stopped: bool) -> None:
    for pieces in cuts(data):
        assert streamed(pieces, stop) == (text, stopped), pieces


@given(
    st.binary(max_size=60) | st.text("abc", max_size=30).map(str.encode),
    st.lists(st.integers(0, 60), max_size=6),
    st.lists(st.text(min_size=1, max_size=4) | st.text("abc", min_size=1, max_size=4), max_size=3),
)
def test_any_bytes_are_the_same_at_any_cut(data: bytes, at: list[int], stop: list[str]) -> None:
    edges = [0, *sorted(min(place, len(data)) for place in at), len(data)]
    pieces = [data[low:high] for low, high in pairwise(edges)]
    assert streamed(pieces, tuple(stop)) == streamed([data], tuple(stop))


def test_text_is_not_held_without_need() -> None:
    stream = TextStream(("STOP",))
    assert stream.feed(b"hello S") == "hello "
    assert stream.feed(b"un") == "Sun"
    assert stream.feed(b" STO") == " "
    assert stream.finish() == "STO"


@given(st.text())
def test_clean_text_carries_no_control_characters(text: str) -> None:
    for char in clean(text):
        assert char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cs", "Zl", "Zp")
    assert clean(clean(text)) == clean(text)


def test_emoji_and_joined_scripts_survive() -> None:
    family = "👨\u200d👩\u200d👧 \u0645\u06cc\u200c\u062e\u0648"
    assert clean(family) == family


def test_a_line_is_one_line() -> None:
    assert clean_line("a\n\n b\tc") == "a b c"
    assert clean_line("x" * 300, 10) == "x" * 9 + "…"


def split(pieces: list[str], in_thinking: bool) -> dict[str, str]:
    splitter = ThinkingSplitter(in_thinking)
    said = {"thinking": "", "answer": ""}
    deltas: list[Delta] = [delta for piece in pieces for delta in splitter.feed(piece)]
    for delta in [*deltas, *splitter.finish()]:
        said[delta.kind] += delta.text
    return said


@pytest.mark.parametrize(
    ("text", "in_thinking", "thinking", "answer"),
    [
        ("<think>\nhm\n</think>\n\nyes", False, "hm", "yes"),
        ("hm\n</think>\n\nyes", True, "hm", "yes"),
        ("\nhm a  b\n\n", True, "hm a  b", ""),
        ("<think>\n\n</think>\n\nyes", False, "", "yes"),
        ("plain <think> text </think>", False, "", "plain <think> text </think>"),
        ("\n <think>hm</think>x", False, "hm", "x"),
        ("<thi", False, "", "<thi"),
        ("<think>a </thi b", False, "a </thi b", ""),
        ("<think>a</think>b</think>c", False, "a", "b</think>c"),
        ("  indented", False, "", "  indented"),
    ],
)
def test_thinking_is_the_same_at_every_cut(text: str, in_thinking: bool, thinking: str, answer: str) -> None:
    for first in range(len(text) + 1):
        for second in range(first, len(text) + 1):
            pieces = [text[:first], text[first:second], text[second:]]
            assert split(pieces, in_thinking) == {"thinking": thinking, "answer": answer}, pieces


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<", "/th", "ink>", "a", "\n", " "]), max_size=12),
    st.booleans(),
)
def test_any_stream_splits_as_its_whole(pieces: list[str], in_thinking: bool) -> None:
    assert split(pieces, in_thinking) == split(["".join(pieces)], in_thinking)
