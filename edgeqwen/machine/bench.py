"""Measures a model on this machine as a front end feels it, and remembers what was measured before.

Each figure is the median of its rounds. Rates are those of edgeqwen.engine.protocol.Stats; times to the first
token run from the request to its first text. Knows no catalogue and prints nothing.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgeqwen.engine.client import WorkerClient
from edgeqwen.engine.protocol import (
    ChatMessage,
    Finished,
    Generate,
    LoadParams,
    SamplerParams,
    SavedParams,
    Stats,
    TextDelta,
)
from edgeqwen.jsonfile import NOT_JSON

LENGTHS = (128, 512, 2048)
"""Prompt lengths in tokens, as far as the context goes."""
_SENTENCE = "The old bridge over the river leads from one half of the city to the other. "
_EXPLAIN = "Explain in detail how {} works, step by step, in at least 500 words."
_THINGS = ("a camera", "a bicycle", "a lighthouse", "a telephone")
_ANSWER = 64
_MAX_RUNS = 1000


@dataclass(frozen=True)
class Figure:
    """One thing that was measured."""

    name: str
    value: float
    unit: str


class Run(msgspec.Struct, frozen=True):
    """All figures of one run, and what they hold for."""

    model: str
    date: str
    """UTC, ISO 8601."""
    versions: str
    machine: str
    n_threads: int
    kv_type: str
    figures: dict[str, float]
    units: dict[str, str]


@dataclass(frozen=True)
class _Answer:
    first_s: float
    text: str
    stats: Stats


class Bench:
    """The measurements of one model; each opens a worker of its own."""

    def __init__(self, params: LoadParams, logs: Path, tell: Callable[[str], None], rounds: int) -> None:
        self._params, self._logs, self._tell, self._rounds = params, logs, tell, rounds
        self.notices: tuple[str, ...] = ()
        """What the worker had to say of its placement, such as fewer GPU layers than there are."""
        self._per_sentence = 20
        """Tokens; measured first."""

    async def run(self) -> list[Figure]:
        """Measure everything. Raises EngineError and WorkerLost."""
        figures = await self._rates()
        figures += await self._waits()
        figures += await self._together()
        return figures

    async def _rates(self) -> list[Figure]:
        """Prefill and decode at several lengths, and the memory they take."""
        figures: list[Figure] = []
        async with self._worker() as client:
            await _ask(client, [("user", "Hello")], 4)  # wakes the weights up
            self._per_sentence = per_sentence = await _sentence_tokens(client)
            rss = 0
            for length in LENGTHS:
                if length + _ANSWER + 64 > self._params.n_ctx:
                    continue
                self._tell(f"prompts of {length:,} tokens")
                answers = []
                for number in range(self._rounds):
                    # No two begin alike, or a part would come from the cache.
                    text = f"{length}-{number}. " + _SENTENCE * max(1, round(length / per_sentence))
                    answers.append(await _ask(client, [("user", text)], _ANSWER))
                prefill = [answer.stats.prefill_tps or 0.0 for answer in answers]
                decode = [answer.stats.decode_tps or 0.0 for answer in answers]
                figures.append(Figure(f"prefill, {length:,} tokens", statistics.median(prefill), "tokens/s"))
                figures.append(Figure(f"decode after {length:,}", statistics.median(decode), "tokens/s"))
                rss = max(rss, *(answer.stats.rss_bytes for answer in answers))
        return [*figures, Figure("memory", float(rss), "bytes")]

    async def _waits(self) -> list[Figure]:
        """First token of a long chat: read anew, in its second turn, and after a restart."""
        cold, warm, disk = [], [], []
        n_sentences = max(1, min(self._params.n_ctx // 2, 2000) // self._per_sentence)
        with tempfile.TemporaryDirectory() as folder:
            for number in range(self._rounds):
                self._tell("first tokens, read anew, warm and from disk")
                # Another beginning each round, or what the round before has saved would be found.
                question = [("user", f"{number}. " + _SENTENCE * n_sentences + "Sum this up.")]
                saved = SavedParams(folder=folder, model="bench")
                async with self._worker(saved=saved) as client:
                    first = await _ask(client, question, 16)
                    chat = [*question, ("assistant", first.text), ("user", "Shorter, please.")]
                    warm.append((await _ask(client, chat, 8)).first_s)
                async with self._worker(saved=saved) as client:
                    disk.append((await _ask(client, chat, 8)).first_s)
                cold.append(first.first_s)
        return [
            Figure("first token, read anew", statistics.median(cold), "s"),
            Figure("first token, turn 2", statistics.median(warm), "s"),
            Figure("first token, from disk", statistics.median(disk), "s"),
        ]

    async def _together(self) -> list[Figure]:
        """Tokens per second of four requests at once."""
        rates = []
        self._tell(f"{len(_THINGS)} requests at once")
        async with self._worker(n_slots=len(_THINGS), n_ctx=min(1024, self._params.n_ctx)) as client:
            for number in range(self._rounds):
                start = time.perf_counter()
                asked = (
                    _ask(client, [("user", f"{number}. {_EXPLAIN.format(thing)}")], _ANSWER)
                    for thing in _THINGS
                )
                answers = await asyncio.gather(*asked)
                n_tokens = sum(answer.stats.completion_tokens for answer in answers)
                rates.append(n_tokens / (time.perf_counter() - start))
        return [Figure(f"{len(_THINGS)} requests at once", statistics.median(rates), "tokens/s")]

    @asynccontextmanager
    async def _worker(self, **changes: object) -> AsyncIterator[WorkerClient]:
        async with WorkerClient(self._logs) as client:
            ready = await client.load(msgspec.structs.replace(self._params, **{"saved": None, **changes}))
            self.notices = ready.notices
            yield client


class History:
    """The runs of this machine, a JSON document per line."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def last(self, run: Run) -> Run | None:
        """Return the newest earlier run with the same model and settings. Raises OSError."""
        key = (run.model, run.machine, run.n_threads, run.kv_type)
        same = (one for one in self._runs() if (one.model, one.machine, one.n_threads, one.kv_type) == key)
        return next((one for one in reversed(list(same))), None)

    def add(self, run: Run) -> None:
        """Remember a run; lines that are not understood stay as they are. Raises OSError."""
        lines = [*self._lines(), msgspec.json.encode(run)][-_MAX_RUNS:]
        self._file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._file.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(b"\n".join(lines) + b"\n")
        temporary.replace(self._file)

    def _runs(self) -> Iterator[Run]:
        for line in self._lines():
            with suppress(*NOT_JSON):
                yield msgspec.json.decode(line, type=Run)

    def _lines(self) -> list[bytes]:
        try:
            return self._file.read_bytes().splitlines()
        except FileNotFoundError:
            return []


async def _ask(client: WorkerClient, messages: list[tuple[str, str]], n_tokens: int) -> _Answer:
    said = tuple(ChatMessage(role=role, content=text) for role, text in messages)  # type: ignore[arg-type]
    sampler = SamplerParams(temperature=0, max_tokens=n_tokens)
    request = Generate(id=client.next_id(), messages=said, sampler=sampler, think=False)
    start, first, text = time.perf_counter(), 0.0, ""
    async with aclosing(client.generate(request)) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                first = first or time.perf_counter() - start
                text += event.text
            elif isinstance(event, Finished):
                return _Answer(first or time.perf_counter() - start, text, event.stats)
    raise AssertionError("an answer without an end")


async def _sentence_tokens(client: WorkerClient) -> int:
    one, two = [(await _ask(client, [("user", _SENTENCE * n)], 1)).stats.prompt_tokens for n in (1, 2)]
    return max(1, two - one)
