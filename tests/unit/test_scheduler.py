"""The scheduler over a scripted engine and a clock of our own: what the counters count."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeqwen.engine.protocol import (
    Event,
    Failed,
    Finished,
    Generate,
    LoadParams,
    Prefill,
    SamplerParams,
    Started,
    TextDelta,
)
from edgeqwen.errors import EngineError
from edgeqwen.worker.saved import SavedStates
from edgeqwen.worker.scripted import ScriptedEngine
from edgeqwen.worker.slots import MAX_QUEUE, Scheduler
from tests.support.asking import script, user


class Clock:
    """Time moves only when an engine step or a test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class SteppedEngine(ScriptedEngine):
    """A scripted engine each of whose steps takes one second of the clock."""

    clock: Clock

    def decode(self, rows: Any) -> Any:
        self.clock.now += 1.0
        return super().decode(rows)


Make = Callable[..., tuple[Scheduler, Clock]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make_(
        n_ctx: int = 256,
        n_slots: int = 1,
        n_batch: int = 512,
        saved: SavedStates | None = None,
        **content: Any,
    ) -> tuple[Scheduler, Clock]:
        params = LoadParams(
            paths=(str(script(tmp_path, **content)),), n_ctx=n_ctx, n_slots=n_slots, n_batch=n_batch
        )
        engine = SteppedEngine(params, lambda _: True)
        engine.clock = Clock()
        return Scheduler(engine, engine.clock, saved), engine.clock

    return make_


def request(number: int, text: str = "hi", **sampler: Any) -> Generate:
    return Generate(id=number, messages=user(text), sampler=SamplerParams(**sampler))


def run(scheduler: Scheduler) -> list[Event]:
    events: list[Event] = []
    while scheduler.has_work:
        events += scheduler.step()
    return events


def finished(events: list[Event], number: int = 1) -> Finished:
    (event,) = [event for event in events if isinstance(event, Finished) and event.id == number]
    return event


def test_times_are_what_their_definitions_say(make: Make) -> None:
    scheduler, clock = make(pieces=["a", "b", "c"], n_batch=8)
    scheduler.submit(request(1))
    clock.now += 5  # accepted, not started
    stats = finished(run(scheduler)).stats
    n_batches = -(-stats.prompt_tokens // 8)
    assert stats.queued_s == 5
    assert stats.prefill_s == stats.ttft_s == n_batches
    assert stats.completion_tokens == 3
    assert stats.decode_s == 2, "three tokens span two steps; the end token's step does not count"
    assert stats.decode_tps == 1
    assert stats.prefill_tokens == stats.prompt_tokens


def test_an_empty_answer_has_no_rate(make: Make) -> None:
    scheduler, _ = make(pieces=[])
    scheduler.submit(request(1))
    end = finished(run(scheduler))
    assert end.stop_reason == "eos"
    assert (end.stats.completion_tokens, end.stats.decode_s, end.stats.decode_tps) == (0, 0, None)


def test_every_accepted_request_closes_once(make: Make) -> None:
    scheduler, _ = make(pieces=["a"] * 9)
    for number in range(1, 6):
        scheduler.submit(request(number))
    events = scheduler.cancel(3) + scheduler.step() + scheduler.cancel(1) + run(scheduler)
    closed = sorted(event.id for event in events if isinstance(event, Finished))
    assert closed == [1, 2, 3, 4, 5]
    reasons = {event.id: event.stop_reason for event in events if isinstance(event, Finished)}
    assert reasons == {1: "cancelled", 2: "eos", 3: "cancelled", 4: "eos", 5: "eos"}


def test_a_full_queue_refuses_with_its_length(make: Make) -> None:
    scheduler, _ = make()
    for number in range(MAX_QUEUE):
        assert scheduler.submit(request(number)) == []
    (refused,) = scheduler.submit(request(99))
    assert isinstance(refused, Failed)
    assert (refused.code, refused.data["queue_length"]) == ("engine_busy", MAX_QUEUE)


def test_a_prompt_that_just_fits_is_taken(make: Make) -> None:
    template = "{{ messages[0].content }}"
    for length, fits in ((15, True), (16, False)):
        scheduler, _ = make(n_ctx=16, template=template, pieces=["a", "b", "c"])
        refused = scheduler.submit(request(1, "x" * length))
        assert bool(refused) != fits
        if fits:
            end = finished(run(scheduler))
            assert (end.stop_reason, end.stats.completion_tokens) == ("length", 2)


def test_a_long_prompt_does_not_hold_up_who_answers(make: Make) -> None:
    scheduler, _ = make(n_slots=2, n_batch=8, n_ctx=1024, pieces=["a"] * 50)
    scheduler.submit(request(1))
    events: list[Event] = []
    while not any(isinstance(event, TextDelta) for event in events):
        events += scheduler.step()
    scheduler.submit(request(2, "x" * 300))
    events = [event for _ in range(10) for event in scheduler.step()]
    assert any(isinstance(event, Started) and event.id == 2 for event in events)
    assert sum(len(event.text) for event in events if isinstance(event, TextDelta) and event.id == 1) >= 9
    run(scheduler)


def test_a_request_goes_to_the_slot_that_knows_it(make: Make) -> None:
    scheduler, _ = make(n_slots=2, n_ctx=512)
    for number, text in ((1, "about cats and dogs"), (2, "what is the weather")):
        scheduler.submit(request(number, text))
    run(scheduler)
    scheduler.submit(request(3, "what is the weather now"))
    started = next(event for event in scheduler.step() if isinstance(event, Started))
    assert started.cached_tokens > len("<|im_start|>user\nwhat is") - 20
    run(scheduler)


def test_replies_follow_the_question(make: Make) -> None:
    scheduler, _ = make(pieces=["?"], replies=[{"match": "weather", "pieces": ["Ra", "in"]}])
    scheduler.submit(request(1, "the weather"))
    assert "".join(event.text for event in run(scheduler) if isinstance(event, TextDelta)) == "Rain"


def test_a_character_cut_between_tokens_comes_whole(make: Make) -> None:
    euro = list("€".encode())
    scheduler, clock = make(pieces=[euro[:1], euro[1:], "!"])
    scheduler.submit(request(1))
    deltas = [event.text for event in run(scheduler) if isinstance(event, TextDelta)]
    assert "".join(deltas) == "€!"
    assert clock.now > 100


THINKING = "{{ messages[-1].content }}<think>\n"


def said(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def test_a_budget_closes_the_thinking_and_the_answer_follows(make: Make) -> None:
    scheduler, _ = make(pieces=["hm "] * 9, template=THINKING)
    scheduler.submit(
        Generate(id=1, messages=user("hi"), sampler=SamplerParams(max_tokens=6), thinking_budget=4)
    )
    events = run(scheduler)
    assert said(events).startswith("hm hm hm hm \n</think>\n\n")
    assert finished(events).stats.thinking_tokens == 4
    assert finished(events).stats.completion_tokens <= 6


def test_a_budget_of_nothing_thinks_nothing(make: Make) -> None:
    scheduler, _ = make(pieces=["yes"], template=THINKING)
    scheduler.submit(Generate(id=1, messages=user("hi"), thinking_budget=0))
    events = run(scheduler)
    assert said(events).startswith("\n</think>\n\n")
    assert finished(events).stats.thinking_tokens == 0


@pytest.mark.parametrize("n_free", [1, 2, 5])
def test_a_closing_that_has_no_room_ends_the_answer_and_no_other(make: Make, n_free: int) -> None:
    n_ctx = 256
    scheduler, _ = make(n_ctx=n_ctx, n_slots=2, pieces=["yes"], template=THINKING)
    scheduler.submit(Generate(id=2, messages=user("hi")))
    n_head = len(scheduler._queue[0].prompt) - 2
    scheduler.submit(Generate(id=1, messages=user("x" * (n_ctx - n_free - n_head)), thinking_budget=0))
    events = run(scheduler)
    assert finished(events, 1).stop_reason == "length"
    assert finished(events, 2).stop_reason == "eos"


@pytest.mark.parametrize("stop", ["\n", "\n\n", "</think>"])
def test_stop_strings_do_not_look_at_the_closing_that_is_put_in(make: Make, stop: str) -> None:
    scheduler, _ = make(pieces=["hm "] * 4, template=THINKING)
    sampler = SamplerParams(max_tokens=4, stop=(stop,))
    scheduler.submit(Generate(id=1, messages=user("hi"), sampler=sampler, thinking_budget=2))
    events = run(scheduler)
    assert said(events).startswith("hm hm \n</think>\n\n")
    assert finished(events).stop_reason != "stop"


def test_answer_now_closes_the_thinking_that_runs(make: Make) -> None:
    scheduler, _ = make(pieces=["hm "] * 50, template=THINKING)
    scheduler.submit(request(1))
    events = scheduler.step() + scheduler.step()
    scheduler.answer_now(1)
    scheduler.answer_now(99)  # nobody's request
    events += run(scheduler)
    assert "</think>" in said(events)
    assert finished(events).stats.thinking_tokens < 6


def test_a_full_context_drops_what_the_request_allows(make: Make) -> None:
    scheduler, _ = make(pieces=["ok"])
    texts = ("first " * 12, "answer " * 10, "second " * 8, "answer " * 8, "last?")
    refused = scheduler.submit(Generate(id=1, messages=user(*texts)))
    assert isinstance(refused[0], Failed)
    scheduler.submit(Generate(id=2, messages=user(*texts), overflow="drop-oldest"))
    events = run(scheduler)
    [started] = [event for event in events if isinstance(event, Started)]
    assert started.dropped is not None
    assert started.dropped.messages == (0, 1)
    assert started.prompt_tokens + started.dropped.n_tokens > 256
    assert finished(events, 2).stop_reason == "eos"


def test_a_policy_leaves_room_for_an_answer(make: Make) -> None:
    texts = ("first " * 12, "answer " * 10, "second?")
    for n_free in (1, 9, 40):
        scheduler, _ = make(pieces=["ok"])
        scheduler.submit(Generate(id=1, messages=user(*texts)))
        [whole] = [event for event in run(scheduler) if isinstance(event, Started)]
        scheduler, _ = make(pieces=["a"] * 30, n_ctx=whole.prompt_tokens + n_free)
        scheduler.submit(Generate(id=1, messages=user(*texts), overflow="drop-oldest"))
        events = run(scheduler)
        [started] = [event for event in events if isinstance(event, Started)]
        assert (started.dropped is not None) == (n_free < 10)
        assert finished(events).stop_reason == "eos"


def test_a_cache_that_cannot_be_kept_costs_no_answer(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scheduler, _ = make(pieces=["ok"], saved=SavedStates(tmp_path / "kv", "key", 1 << 20))

    def refuse(_slot: int) -> bytes:
        raise MemoryError

    scheduler._engine.state_bytes = lambda slot: 1000  # type: ignore[method-assign]
    scheduler._engine.save = refuse  # type: ignore[method-assign]
    for number in (1, 2):
        scheduler.submit(request(number, f"{number}" * 150))
        assert finished(run(scheduler), number).stop_reason == "eos"
    scheduler.close()
    assert "could not be saved" in capsys.readouterr().err


def test_a_long_state_is_not_read_for_a_short_beginning(make: Make, tmp_path: Path) -> None:
    restored = []
    for text in ("same " * 30 + "x" * 3000, "same " * 30 + "other", "same " * 30 + "x" * 3000 + "?"):
        saved = SavedStates(tmp_path / "kv", "key", 1 << 20)
        scheduler, _ = make(pieces=["ok"], n_ctx=4096, saved=saved)
        scheduler.submit(request(1, text))
        [started] = [event for event in run(scheduler) if isinstance(event, Started)]
        restored.append(started.restored_tokens)
        scheduler.close()
    assert restored[:2] == [0, 0]
    assert restored[2] > 3000


def test_a_state_that_is_refused_is_read_once(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        scheduler, _ = make(pieces=["ok"], saved=SavedStates(tmp_path / "kv", "key", 1 << 20))
        scheduler._engine.load = lambda slot, data: False  # type: ignore[method-assign]
        scheduler.submit(request(1, "x" * 200))
        assert finished(run(scheduler)).stop_reason == "eos"
        scheduler.close()
    assert capsys.readouterr().err.count("does not take") == 1


def test_a_step_that_fails_loses_no_text(make: Make) -> None:
    scheduler, _ = make(pieces=["so ", "fa", "r"])
    scheduler.submit(request(1, stop=("far away",)))
    for _ in range(3):
        scheduler.step()

    def fail(_rows: object) -> None:
        raise EngineError("no")

    scheduler._engine.decode = fail  # type: ignore[method-assign, assignment]
    events = scheduler.step()
    assert isinstance(events[-1], Failed)
    assert "far" in "".join(event.text for event in events if isinstance(event, TextDelta))


@pytest.mark.parametrize("n_slots", [1, 2])
def test_what_moved_up_is_not_read_again(make: Make, n_slots: int) -> None:
    scheduler, _ = make(pieces=["ok"], n_ctx=512, n_slots=n_slots)
    texts = ["first " * 30, "answer " * 12, "second " * 12]
    scheduler.submit(Generate(id=1, messages=user(*texts), overflow="drop-oldest"))
    run(scheduler)
    texts += ["ok", "third " * 20]
    scheduler.submit(Generate(id=2, messages=user(*texts), overflow="drop-oldest"))
    [started] = [event for event in run(scheduler) if isinstance(event, Started)]
    assert started.dropped is not None
    assert started.cached_tokens > len("second " * 12)


def test_another_chat_that_says_the_same_somewhere_is_not_moved_up(make: Make) -> None:
    scheduler, _ = make(pieces=["ok"], n_ctx=512)
    scheduler.submit(Generate(id=1, messages=user("first " * 10, "quoted " * 12, "only here " * 20)))
    run(scheduler)
    texts = ["before " * 40, "answer " * 12, "quoted " * 12, "ok", "third " * 20]
    scheduler.submit(Generate(id=2, messages=user(*texts), overflow="drop-oldest"))
    [started] = [event for event in run(scheduler) if isinstance(event, Started)]
    assert started.dropped is not None
    assert started.cached_tokens < len("quoted " * 12)


def test_readers_do_not_hold_up_those_who_answer(make: Make) -> None:
    scheduler, _ = make(pieces=["a"] * 200, n_slots=2, n_ctx=4096, n_batch=512)
    scheduler.submit(request(1))
    scheduler.step()
    scheduler.submit(request(2, "long " * 500))
    rows = []
    decode = scheduler._engine.decode

    def counted(batch: Any) -> Any:
        rows.append(len(batch))
        return decode(batch)

    scheduler._engine.decode = counted  # type: ignore[method-assign]
    for _ in range(5):
        scheduler.step()
    assert max(rows) <= 129


@pytest.mark.parametrize("shared", ["as system prompts", "a beginning of many tokens " * 8])
def test_a_prompt_that_another_slot_reads_is_copied(make: Make, shared: str) -> None:
    scheduler, _ = make(pieces=["a"] * 20, n_slots=3, n_ctx=1024, n_batch=64)
    for number in (1, 2, 3):
        scheduler.submit(request(number, shared + str(number)))
    events = run(scheduler)
    cached = [event.cached_tokens for event in events if isinstance(event, Started)]
    assert cached[0] == 0
    assert min(cached[1:]) >= len(shared)


def test_who_waits_for_a_beginning_holds_up_nobody_behind(make: Make) -> None:
    scheduler, _ = make(pieces=["a"] * 20, n_slots=3, n_ctx=1024, n_batch=64)
    shared = "a beginning of many tokens " * 8
    for number, text in enumerate((shared + "1", shared + "2", "something else"), 1):
        scheduler.submit(request(number, text))
    started = [event.id for event in scheduler.step() if isinstance(event, Started)]
    assert started == [1, 3]
    started += [event.id for event in run(scheduler) if isinstance(event, Started)]
    assert started == [1, 3, 2]


def test_who_waits_for_a_beginning_keeps_its_slot(make: Make) -> None:
    scheduler, _ = make(pieces=["a"] * 20, n_slots=2, n_ctx=1024, n_batch=64)
    shared = "a beginning of many tokens " * 8
    for number, text in enumerate((shared + "1", shared + "2", "something else"), 1):
        scheduler.submit(request(number, text))
    assert [event.id for event in run(scheduler) if isinstance(event, Started)] == [1, 2, 3]


@pytest.mark.parametrize(("n_more", "ends"), [(1500, [512, 1024]), (1520, [536, 1048])])
def test_chunks_end_where_the_cells_are_padded_if_that_costs_no_chunk(
    make: Make, n_more: int, ends: list[int]
) -> None:
    scheduler, _ = make(n_ctx=4096, template="{{ messages[0].content }}", pieces=[])
    scheduler.submit(request(1, "x" * 24))
    run(scheduler)
    scheduler.submit(request(2, "x" * 24 + "y" * n_more))
    events = run(scheduler)
    assert finished(events, 2).stats.cached_tokens == 24
    assert [event.done for event in events if isinstance(event, Prefill)] == [*ends, 24 + n_more]
