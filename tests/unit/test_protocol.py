"""Frames survive the pipe however it cuts them, and errors arrive as they were raised."""

from __future__ import annotations

import dataclasses
import struct
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeqwen import errors
from edgeqwen.cli import failures
from edgeqwen.engine import frames
from edgeqwen.engine import protocol as p
from edgeqwen.errors import EdgeQwenError, EngineError, InvalidInput, from_wire

COMMANDS: list[p.Command] = [
    p.Load(params=p.LoadParams(paths=("a.gguf", "b.gguf"), n_slots=2)),
    p.Generate(
        id=1,
        messages=(p.ChatMessage(role="user", content="héllo\n"), p.ChatMessage(role="tool", content=None)),
        sampler=p.SamplerParams(seed=3, stop=("x",)),
        think=False,
        tools=({"type": "function"},),
    ),
    p.Cancel(id=2),
    p.Close(),
]
STATS = p.Stats(
    queued_s=0.1,
    ttft_s=None,
    prompt_tokens=3,
    cached_tokens=1,
    prefill_tokens=2,
    prefill_s=0.5,
    thinking_tokens=0,
    completion_tokens=4,
    decode_s=0.3,
    rss_bytes=5,
)
EVENTS: list[p.Event] = [
    p.Loading(progress=0.5),
    p.Ready(load_s=0.1, n_ctx=8, n_slots=1, n_vocab=9, architecture="qwen3", has_template=True, rss_bytes=1),
    p.Started(id=1, prompt_tokens=3, cached_tokens=1, in_thinking=True),
    p.Prefill(id=1, done=2, total=3),
    p.TextDelta(id=1, text="世\n"),
    p.Finished(id=1, stop_reason="eos", seed=7, stats=STATS),
    p.Failed(id=None, code="load_failed", message="no", data={"path": "x"}),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda frame: type(frame).__name__)
def test_commands_survive_the_pipe(command: p.Command) -> None:
    (body,) = frames.FrameReader().feed(frames.encode(command))
    assert frames.decode_command(body) == command


@pytest.mark.parametrize("event", EVENTS, ids=lambda frame: type(frame).__name__)
def test_events_survive_the_pipe(event: p.Event) -> None:
    (body,) = frames.FrameReader().feed(frames.encode(event))
    assert frames.decode_event(body) == event


@given(st.lists(st.integers(0, 2000), max_size=8))
def test_frames_arrive_however_the_stream_is_cut(at: list[int]) -> None:
    stream = b"".join(map(frames.encode, EVENTS))
    edges = [0, *sorted(min(place, len(stream)) for place in at), len(stream)]
    reader = frames.FrameReader()
    bodies = [body for low, high in pairwise(edges) for body in reader.feed(stream[low:high])]
    assert [frames.decode_event(body) for body in bodies] == EVENTS


def test_a_false_length_is_refused_before_it_is_read() -> None:
    with pytest.raises(EngineError, match="announced a frame of 4,294,967,295 bytes"):
        list(frames.FrameReader().feed(struct.pack(">I", 0xFFFFFFFF)))


def test_a_frame_that_is_too_long_is_not_sent() -> None:
    with pytest.raises(EngineError, match="too long for the pipe"):
        frames.encode(p.TextDelta(id=1, text="x" * (frames.MAX_FRAME + 1)))


@pytest.mark.parametrize("body", [b"", b"{", b"\xff"], ids=range(3))
def test_what_is_no_frame_is_refused(body: bytes) -> None:
    with pytest.raises(EngineError, match="no frame"):
        frames.decode_command(body)


@pytest.mark.parametrize(
    "body", [b"{}", b"[]", b'{"type":"gone"}', b'{"type":"cancel"}', b'{"type":"cancel","id":"x"}']
)
def test_what_cannot_be_asked_is_bad_input(body: bytes) -> None:
    with pytest.raises(InvalidInput, match="cannot be asked"):
        frames.decode_command(body)
    assert frames.request_of(body) is None


def test_a_wrong_request_still_says_whose_it_is() -> None:
    assert frames.request_of(b'{"type":"generate","id":7,"sampler":{"temperature":99}}') == 7


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_ctx": 0},
        {"n_ctx": 1 << 31},
        {"n_ctx": 1 << 40},
        {"n_ctx": 1 << 30, "n_slots": 4},
        {"n_slots": 0},
        {"n_batch": -5},
        {"n_threads": 0},
        {"n_threads": 999},
        {"kv_type": "q5"},
        {"kv_type_v": "f64"},
        {"n_gpu_layers": -2},
    ],
)
def test_loads_without_a_meaning_are_refused_before_a_process_starts(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        p.LoadParams(paths=("m.gguf",), **wrong)


def test_text_that_cannot_be_encoded_is_bad_input() -> None:
    with pytest.raises(InvalidInput, match="UTF-8"):
        frames.encode(p.TextDelta(id=1, text="\udcff"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 2.0},
        {"max_tokens": 0},
        {"repeat_penalty": float("inf")},
    ],
)
def test_sampler_values_without_meaning_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        p.SamplerParams(**wrong)


def _example(cls: type[EdgeQwenError]) -> EdgeQwenError:
    values: dict[str, Any] = {"message": "a sentence"}
    for field in dataclasses.fields(cls):
        if field.name != "message":
            values[field.name] = {
                "str": "x",
                "int": 3,
                "bool": True,
                "int | None": -9,
                "str | None": "y",
                "tuple[str, ...]": ("a", "b"),
            }[str(field.type)]
    return cls(**values)


@pytest.mark.parametrize("cls", list(errors.walk()), ids=lambda cls: cls.__name__)
def test_errors_survive_the_pipe_and_have_an_exit_code(cls: type[EdgeQwenError]) -> None:
    error = _example(cls)
    (body,) = frames.FrameReader().feed(frames.encode(p.Failed.of(error, 4)))
    event = frames.decode_event(body)
    assert isinstance(event, p.Failed)
    back = event.error()
    assert type(back) is cls
    assert (back.message, back.data()) == (error.message, error.data())
    assert failures.exit_code(error) in (1, 2, 3, 4, 5, 6)
    assert not error.message.endswith(".")


def test_codes_are_unique_and_unknown_ones_are_engine_errors() -> None:
    codes = [cls.code for cls in errors.walk()]
    assert len(codes) == len(set(codes))
    assert type(from_wire("from_the_future", "hm", {"x": 1})) is EngineError


@pytest.mark.parametrize(
    ("cls", "code"),
    [
        (errors.InvalidInput, 2),
        (errors.ContextOverflow, 2),
        (errors.InvalidConfig, 2),
        (errors.UnknownModel, 3),
        (errors.NotInstalled, 3),
        (errors.StoreError, 4),
        (errors.DownloadError, 5),
        (errors.WorkerLost, 6),
        (errors.EngineBusy, 6),
    ],
)
def test_exit_codes_are_the_promised_ones(cls: type[EdgeQwenError], code: int) -> None:
    assert failures.exit_code(_example(cls)) == code
