"""Whatever was asked, cancelled, evicted and restored before: greedy answers are those of a fresh context.

The scheduler over the real engine, in this process, against an oracle that forgets everything each time.
The scores must be the same within rounding: batches of other shapes add up in another order.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from edgeqwen.engine.protocol import (
    ChatMessage,
    Event,
    Failed,
    Finished,
    Generate,
    LoadParams,
    SamplerParams,
    Started,
)
from edgeqwen.worker.binding import L
from edgeqwen.worker.engine import Row, TokenSampler
from edgeqwen.worker.kernels import Kernels
from edgeqwen.worker.llama import LlamaEngine, _ErrorLog
from edgeqwen.worker.saved import SavedStates, common_prefix
from edgeqwen.worker.slots import Scheduler, Slot

ROUNDING = 0.02  # of scores that spread over several units
# The tiny hybrid's state moves its scores so little that a wrong checkpoint would hide in that.
FINE_ROUNDING = 0.006
ARCHITECTURES = ("qwen2", "qwen3", "qwen35")
SYSTEM = "You are a helpful little model that likes the numbers one, two and three. " * 3


@contextmanager
def engine(path: Path, **params: int) -> Iterator[LlamaEngine]:
    opened = LlamaEngine(
        LoadParams(paths=(str(path),), **{"n_ctx": 1024, "n_batch": 64, **params}), lambda _: True
    )
    try:
        yield opened
    finally:
        opened.close()


class Oracle:
    """Scores tokens from a context that holds nothing else."""

    def __init__(self, engine: LlamaEngine) -> None:
        self._engine = engine

    def check(self, prompt: list[int], answer: list[int], scores: list[list[float]]) -> None:
        """Assert that each score on the way to `answer` is what a fresh context gives, within rounding.

        Scores say more than tokens: a tiny model may like one token best whatever it has read.
        """
        fresh_scores = self._scores(prompt + answer, len(prompt) - 1)
        for index, (mine, fresh) in enumerate(zip(scores, fresh_scores, strict=False)):
            worst = max(abs(a - b) for a, b in zip(mine, fresh, strict=True))
            # The first one ends a batch, which rounds otherwise than the oracle's single tokens do.
            fine = index > 0 and not self._engine.goes_back
            assert worst < (FINE_ROUNDING if fine else ROUNDING), f"score {index} is off by {worst}"

    def _scores(self, tokens: list[int], first: int) -> list[list[float]]:
        self._engine.trim(0, 0)
        found = []
        for position, token in enumerate(tokens):
            self._engine.decode([Row(token, position, 0, True)])
            if position >= first:
                found.append(scores_of(self._engine, 0))
        return found


def scores_of(engine: LlamaEngine, row: int) -> list[float]:
    return list(L.llama_get_logits_ith(engine._ctx, row)[: engine.n_vocab])


class Recording:
    """A sampler that writes down what it chose from."""

    def __init__(self, engine: LlamaEngine, sampler: TokenSampler) -> None:
        self._engine, self._sampler = engine, sampler
        self.scores: list[list[float]] = []

    def sample(self, row: int, recent: Sequence[int]) -> int:
        self.scores.append(scores_of(self._engine, row))
        return self._sampler.sample(row, recent)

    def close(self) -> None:
        self._sampler.close()


class Asked:
    """A scheduler, and what it was asked and said, in tokens."""

    def __init__(self, engine: LlamaEngine, saved: SavedStates | None = None) -> None:
        open_sampler = type(engine).open_sampler
        engine.open_sampler = lambda params, seed: Recording(  # type: ignore[method-assign, assignment]
            engine, open_sampler(engine, params, seed)
        )
        self.scheduler = Scheduler(engine, time.perf_counter, saved)
        self.scores: dict[int, list[list[float]]] = {}
        self.prompts: dict[int, list[int]] = {}
        self.answers: dict[int, list[int]] = {}
        self.started: dict[int, Started] = {}
        self.finished: dict[int, Finished] = {}
        self._slots: dict[int, Slot] = {}

    def submit(self, request: Generate) -> None:
        assert self.scheduler.submit(request) == []

    def step(self) -> None:
        self._note(self.scheduler.step())

    def cancel(self, number: int) -> None:
        self._note(self.scheduler.cancel(number))

    def run(self) -> None:
        while self.scheduler.has_work:
            self.step()

    def _note(self, events: list[Event]) -> None:
        for slot in self.scheduler._slots:
            if slot.job:
                self._slots[slot.job.request.id] = slot
                self.prompts[slot.job.request.id] = slot.job.prompt
                assert isinstance(slot.job.sampler, Recording)
                self.scores[slot.job.request.id] = slot.job.sampler.scores
        for event in events:
            assert not isinstance(event, Failed), event
            if isinstance(event, Started):
                self.started[event.id] = event
            if isinstance(event, Finished):
                self.finished[event.id] = event
        for number, slot in list(self._slots.items()):
            self.answers[number] = slot.goal[len(self.prompts[number]) :]
            if number in self.finished:
                del self._slots[number]


def conversation(rng: random.Random, said: list[str]) -> tuple[ChatMessage, ...]:
    system = (ChatMessage(role="system", content=SYSTEM),) if rng.random() < 0.6 else ()
    roles = ("user", "assistant")
    turns = [ChatMessage(role=roles[index % 2], content=text) for index, text in enumerate(said)]  # type: ignore[arg-type]
    return (*system, *turns)


def request(number: int, messages: tuple[ChatMessage, ...], n_tokens: int) -> Generate:
    return Generate(id=number, messages=messages, sampler=SamplerParams(temperature=0, max_tokens=n_tokens))


def torment(asked: Asked, chats: list[list[str]], rng: random.Random, first: int, *, alone: bool) -> None:
    """Ask eight times, with earlier turns asked again, edited answers and cancels at any step."""
    for number in range(first, first + 8):
        said = rng.choice(chats)
        if rng.random() < 0.3:
            said = said[: rng.randrange(1, len(said) + 1, 2)]
        asked.submit(request(number, conversation(rng, said), rng.randrange(1, 40)))
        if alone and rng.random() < 0.5:
            asked.run()
        for _ in range(rng.randrange(4)):
            asked.step()
        if rng.random() < 0.25:
            asked.cancel(number)
            continue
        said += ["an answer that was edited " * rng.randrange(1, 4), f"And then {number}?"]
        if sum(map(len, said)) > 600:
            del said[1:]
    asked.run()


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("n_slots", [1, 3])
@pytest.mark.parametrize("seed", [1, 2])
def test_answers_are_those_of_a_fresh_context(
    models: Path, tmp_path: Path, arch: str, n_slots: int, seed: int
) -> None:
    rng = random.Random(seed)
    path = models / f"{arch}.gguf"
    chats: list[list[str]] = [["Hello"], ["Tell me of the sea, " * 8], ["One two three " * 12]]
    with engine(path, n_slots=n_slots) as real, engine(path) as fresh:
        if seed == 2 and real.goes_back:
            real.kernels = Kernels(rows=4, tile=64, per_cell=1.0, untiled=lambda: 100.0)  # wherever it can be
        n_cached = 0
        for round_ in range(3):
            asked = Asked(real, SavedStates(tmp_path / "kv", f"{arch} {real.version}", 1 << 26))
            torment(asked, chats, rng, 100 * round_, alone=n_slots == 1)
            asked.scheduler.close()  # all is on disk now; the next round's memory holds nothing
            for slot in range(n_slots):
                real.trim(slot, 0)
            assert asked.finished.keys() >= asked.started.keys()
            for number, prompt in asked.prompts.items():
                Oracle(fresh).check(prompt, asked.answers[number], asked.scores[number])
            n_cached += sum(event.cached_tokens for event in asked.started.values())
        assert n_cached > 500


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_shared_system_prompt_is_read_once(models: Path, arch: str) -> None:
    with engine(models / f"{arch}.gguf", n_slots=3) as real, engine(models / f"{arch}.gguf") as fresh:
        asked = Asked(real)
        for number, text in enumerate(("Hello", "Goodbye", "Again"), 1):
            messages = (ChatMessage(role="system", content=SYSTEM), ChatMessage(role="user", content=text))
            asked.submit(request(number, messages, 12))
            while number not in asked.started or not asked.answers[number]:
                asked.step()
        asked.run()
        for number in (2, 3):
            assert asked.started[number].cached_tokens > len(SYSTEM) * 0.8, "a token is about a byte here"
        for number, prompt in asked.prompts.items():
            Oracle(fresh).check(prompt, asked.answers[number], asked.scores[number])


@pytest.mark.parametrize("arch", ["qwen2", "qwen3"])
def test_dropping_turns_of_one_leaves_those_who_share_its_cells_alone(models: Path, arch: str) -> None:
    path = models / f"{arch}.gguf"
    said = ["Tell me of the sea, " * 12, "It is deep. " * 12, "And the land? " * 6]
    with engine(path, n_slots=2, n_ctx=768) as real, engine(path) as fresh:
        asked = Asked(real)
        asked.submit(request(1, conversation(random.Random(0), said), 20))
        asked.run()
        for number in (2, 3):  # both slots hold the same beginning now
            asked.submit(request(number, conversation(random.Random(0), said), 20))
        asked.run()
        longer = [*said, "x" * 20, "More, please. " * 20]
        drops = msgspec.structs.replace(request(4, conversation(random.Random(1), longer), 20))
        asked.submit(msgspec.structs.replace(drops, overflow="drop-oldest"))
        asked.run()
        assert asked.started[4].dropped is not None
        asked.submit(request(5, conversation(random.Random(0), [*said, "so", "Go on."]), 20))
        asked.run()
        for number in (1, 2, 3, 5):
            Oracle(fresh).check(asked.prompts[number], asked.answers[number], asked.scores[number])


def test_a_step_cut_short_after_a_shift_spoils_nothing(models: Path) -> None:
    """llama.cpp moves the values within that step, layer by layer; so they are read again."""
    said = [f"{word} " * 20 for word in ("sea", "deep", "land", "wide", "sky")]
    path = models / "qwen3.gguf"
    with engine(path, n_ctx=512) as real, engine(path) as fresh:
        asked = Asked(real)
        for n_said in (1, 3):
            asked.submit(request(n_said, conversation(random.Random(0), said[:n_said]), 20))
            asked.run()
        for number in (5, 6):
            drops = request(number, conversation(random.Random(0), said), 20)
            asked.submit(msgspec.structs.replace(drops, overflow="drop-oldest"))
            if number == 5:
                real.abort()
                asked.step()
                real.resume()
                asked.cancel(5)
        asked.run()
        assert asked.started[5].dropped is not None
        assert asked.started[5].cached_tokens > asked.started[6].cached_tokens
        Oracle(fresh).check(asked.prompts[6], asked.answers[6], asked.scores[6])


@pytest.mark.parametrize("arch", ["qwen2", "qwen3"])
@pytest.mark.parametrize("tile", [1, 64])
def test_a_second_turn_is_read_as_the_kernels_like_it(models: Path, arch: str, tile: int) -> None:
    path = models / f"{arch}.gguf"
    with engine(path, n_gpu_layers=0) as real, engine(path) as fresh:
        assert (real.kernels.rows, real.kernels.tile) == (4, 64)
        real.kernels = Kernels(rows=4, tile=tile, per_cell=1.0, untiled=lambda: 100.0)
        asked = Asked(real)
        said = [("user", "Hello " * 40), ("assistant", "not what it said"), ("user", "And?")]
        for number, n_said in enumerate((1, 3), 1):
            messages = tuple(ChatMessage(role=role, content=text) for role, text in said[:n_said])  # type: ignore[arg-type]
            asked.submit(request(number, messages, 10))
            asked.run()
        known = common_prefix([*asked.prompts[1], *asked.answers[1]], asked.prompts[2])
        n_missing = len(asked.prompts[2]) - known
        assert n_missing % 4, "else this shows nothing"
        n_read = len(asked.prompts[2]) - asked.started[2].cached_tokens
        assert n_read == (64 if tile > 1 else n_missing + 4 - n_missing % 4)
        for number, prompt in asked.prompts.items():
            Oracle(fresh).check(prompt, asked.answers[number], asked.scores[number])


def test_a_hybrid_goes_back_to_where_the_question_began(models: Path) -> None:
    """Its answer comes back without the thinking, so the cache parts from the prompt at the answer's head."""
    with engine(models / "qwen35.gguf") as real, engine(models / "qwen35.gguf") as fresh:
        asked = Asked(real)
        asked.submit(request(1, (ChatMessage(role="user", content="Hello " * 30),), 10))
        asked.run()
        later = [("user", "Hello " * 30), ("assistant", "not what it said"), ("user", "And now?")]
        messages = tuple(ChatMessage(role=role, content=text) for role, text in later)  # type: ignore[arg-type]
        asked.submit(request(2, messages, 10))
        asked.run()
        n_first = len(asked.prompts[1])
        assert n_first - 15 < asked.started[2].cached_tokens < n_first
        for number, prompt in asked.prompts.items():
            Oracle(fresh).check(prompt, asked.answers[number], asked.scores[number])


@pytest.mark.parametrize("arch", ["qwen3", "qwen35"])
def test_a_cancel_keeps_the_answer_in_the_cache(models: Path, arch: str) -> None:
    with engine(models / f"{arch}.gguf") as real:
        asked = Asked(real)
        asked.submit(request(1, (ChatMessage(role="user", content="Hello " * 30),), 500))
        while not asked.answers.get(1) or len(asked.answers[1]) < 20:
            asked.step()
        if asked.scheduler.may_abort(1):
            real.abort()
            asked.step()
            real.resume()
        asked.cancel(1)
        [slot] = asked.scheduler._slots
        assert len(slot.tokens) >= len(asked.prompts[1]) + 19


def test_a_checkpoint_is_made_once(models: Path) -> None:
    """Also where a slot waits at one while others read."""
    with engine(models / "qwen35.gguf", n_slots=3) as real:
        made: list[tuple[int, int]] = []
        checkpoint = real.checkpoint

        def noted(slot: int) -> bytearray:
            made.append((slot, real.n_cached(slot)))
            return checkpoint(slot)

        real.checkpoint = noted  # type: ignore[method-assign]
        asked = Asked(real)
        system = ChatMessage(role="system", content=SYSTEM)
        asked.submit(request(1, (system, ChatMessage(role="user", content="Hello")), 3))
        asked.run()
        asked.submit(request(2, (ChatMessage(role="user", content="Go on"),), 60))
        asked.step()
        asked.submit(request(3, (ChatMessage(role="user", content="x" * 900),), 3))
        asked.step()
        asked.submit(request(4, (system, ChatMessage(role="user", content="Another")), 3))
        asked.run()
        assert sorted(made) == sorted(set(made))


def test_a_state_too_large_to_keep_is_not_even_copied(models: Path, tmp_path: Path) -> None:
    with engine(models / "qwen3.gguf") as real:
        copied: list[int] = []
        real.save = lambda slot: copied.append(slot) or bytearray()  # type: ignore[method-assign, func-returns-value]
        asked = Asked(real, SavedStates(tmp_path / "kv", "a key", 1 << 10))
        asked.submit(request(1, (ChatMessage(role="user", content="Once upon a time " * 20),), 8))
        asked.run()
        asked.scheduler.close()
    assert not copied


def test_a_conversation_survives_the_program(models: Path, tmp_path: Path) -> None:
    messages = (ChatMessage(role="user", content="Once upon a time " * 20),)
    cached = []
    for folder in ("kv", "kv", "copy"):
        with engine(models / "qwen3.gguf") as real:
            asked = Asked(real, SavedStates(tmp_path / folder, "a key", 1 << 24))
            asked.submit(request(1, messages, 8))
            asked.run()
            asked.scheduler.close()
            cached.append((asked.started[1].cached_tokens, asked.answers[1]))
        if folder == "kv":
            [file] = (tmp_path / "kv").iterdir()
            assert file.stat().st_mode & 0o777 == 0o600
            shutil.copytree(tmp_path / "kv", tmp_path / "copy", dirs_exist_ok=True)
            damaged = tmp_path / "copy" / file.name
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 1
            damaged.write_bytes(data)
    (first, answer), (second, again), (third, after_damage) = cached
    assert first == third == 0
    assert second > 300
    assert answer == again == after_damage


def test_weights_that_cannot_be_pinned_are_told() -> None:
    with _ErrorLog() as log:
        log._take(3, b"warning: failed to mlock 4096-byte buffer: Cannot allocate memory\n", None)
    (notice,) = log.notices()
    assert "pinned" in notice
    with _ErrorLog() as log:
        log._take(3, b"warning: something else\n", None)
    assert log.notices() == ()
