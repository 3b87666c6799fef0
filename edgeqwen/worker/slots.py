"""The scheduler: fills each batch from the slots' pending tokens, samples, and tells what happened.

Every active slot has a goal (prompt and answer so far) and a mirror of what the cache holds. What is missing
between the two is pending; when nothing is, the next token is sampled. Reading and generating are the same
thing here, and an aborted step heals by itself. Pure over an Engine and a clock; knows no pipe.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from edgeqwen.engine.protocol import (
    Event,
    Failed,
    Finished,
    Generate,
    Prefill,
    Started,
    Stats,
    StopReason,
    TextDelta,
)
from edgeqwen.errors import ContextOverflow, EdgeQwenError, EngineBusy, InvalidInput
from edgeqwen.worker.engine import Decoded, Engine, Row, TokenSampler
from edgeqwen.worker.memory import resident_bytes
from edgeqwen.worker.stops import TextStream
from edgeqwen.worker.template import Template

MAX_QUEUE = 64
_FLUSH_S = 0.03  # one write per token would wake the front end 30 times as often
_PENALTY_WINDOW = 64


@dataclass
class _Job:
    """One request on its way from queue to closing frame."""

    request: Generate
    prompt: list[int]
    in_thinking: bool
    accepted_at: float
    seed: int
    text: TextStream
    sampler: TokenSampler | None = None
    cached: int = 0
    started_at: float = 0.0
    prefilled_at: float | None = None
    first_at: float | None = None
    last_at: float = 0.0
    n_completion: int = 0
    buffer: list[str] = field(default_factory=list)
    flushed_at: float = float("-inf")
    prefill_told: int = 0


@dataclass
class Slot:
    """One sequence: what the cache holds of it and at most one request."""

    index: int
    tokens: list[int] = field(default_factory=list)
    """Exactly what the cache holds."""
    goal: list[int] = field(default_factory=list)
    """What it is to hold before the next token is sampled."""
    job: _Job | None = None

    @property
    def n_pending(self) -> int:
        return len(self.goal) - len(self.tokens) if self.job else 0


class Scheduler:
    """Runs the requests of one engine."""

    def __init__(self, engine: Engine, clock: Callable[[], float]) -> None:
        self._engine, self._clock = engine, clock
        self._template = Template(engine.template, engine.control_texts)
        self._slots = [Slot(index) for index in range(engine.n_slots)]
        self._queue: deque[_Job] = deque()

    @property
    def has_work(self) -> bool:
        return bool(self._queue) or any(slot.job for slot in self._slots)

    def submit(self, request: Generate) -> list[Event]:
        """Take a request; a bad one is answered at once."""
        try:
            self._queue.append(self._accept(request))
        except EdgeQwenError as error:
            return [Failed.of(error, request.id)]
        return []

    def cancel(self, request: int) -> list[Event]:
        """End a request with what it has said so far; an unknown one is over already."""
        for job in self._queue:
            if job.request.id == request:
                self._queue.remove(job)
                job.started_at = self._clock()
                return [self._finished(job, "cancelled")]
        for slot in self._slots:
            if slot.job and slot.job.request.id == request:
                return self._end(slot, "cancelled")
        return []

    def step(self) -> list[Event]:
        """Evaluate one batch and return what came of it."""
        events = self._admit()
        rows, last_rows = self._fill_batch()
        if not rows:
            return events
        try:
            outcome = self._engine.decode(rows)
        except EdgeQwenError as error:
            return events + self._fail_all(error)
        if outcome is Decoded.ABORTED:
            for slot in self._slots:
                del slot.tokens[self._engine.n_cached(slot.index) :]
            return events
        for slot in self._slots:
            if slot.job is None:
                continue
            if slot.index in last_rows:
                events += self._advance(slot, slot.job, last_rows[slot.index])
            else:
                events += self._tell_prefill(slot, slot.job)
        return events

    def close(self) -> None:
        """Free the samplers of requests that are still running."""
        for slot in self._slots:
            if slot.job and slot.job.sampler:
                slot.job.sampler.close()

    def _accept(self, request: Generate) -> _Job:
        if len(self._queue) >= MAX_QUEUE:
            message = f"{len(self._queue)} requests wait already; try again when some are done"
            raise EngineBusy(message, queue_length=len(self._queue))
        accepted = self._clock()
        segments = self._template.render(request.messages, request.think, request.tools)
        prompt: list[int] = []
        for segment in segments:
            prompt += self._engine.tokenize(segment.text, special=segment.special)
        if len(prompt) >= self._engine.n_ctx:
            needed, available = len(prompt) + 1, self._engine.n_ctx
            message = f"the prompt has {len(prompt):,} tokens and the context holds {available:,}"
            raise ContextOverflow(message, needed=needed, available=available)
        if not prompt:
            raise InvalidInput("the prompt is empty")
        seed = request.sampler.seed
        return _Job(
            request=request,
            prompt=prompt,
            in_thinking=segments[-1].special and segments[-1].text.rstrip().endswith("<think>"),
            accepted_at=accepted,
            seed=random.getrandbits(32) if seed is None else seed % (1 << 32),
            text=TextStream(request.sampler.stop),
        )

    def _admit(self) -> list[Event]:
        """Give waiting requests to idle slots, each to the one that knows most of its prompt."""
        events: list[Event] = []
        while self._queue:
            idle = [slot for slot in self._slots if slot.job is None]
            if not idle:
                break
            job = self._queue.popleft()
            slot = max(idle, key=lambda slot: _common_prefix(slot.tokens, job.prompt))
            events.append(self._start(slot, job))
        return events

    def _start(self, slot: Slot, job: _Job) -> Started:
        job.started_at = self._clock()
        # The last token is always evaluated anew: the cache holds no logits.
        keep = min(_common_prefix(slot.tokens, job.prompt), len(job.prompt) - 1)
        if keep < len(slot.tokens) and not self._engine.trim(slot.index, keep):
            keep = 0  # a recurrent state cannot go back to the middle
            self._engine.trim(slot.index, 0)
        del slot.tokens[keep:]
        job.cached = job.prefill_told = keep
        job.sampler = self._engine.open_sampler(job.request.sampler, job.seed)
        slot.goal, slot.job = list(job.prompt), job
        return Started(
            id=job.request.id,
            prompt_tokens=len(job.prompt),
            cached_tokens=keep,
            in_thinking=job.in_thinking,
        )

    def _fill_batch(self) -> tuple[list[Row], dict[int, int]]:
        """Return the rows of the next step, and by slot the row whose logits are its next token.

        Slots that need a single token come first, so a long prompt never holds up those who answer.
        """
        rows: list[Row] = []
        last_rows: dict[int, int] = {}
        room = self._engine.n_batch
        for slot in sorted(self._slots, key=lambda slot: slot.n_pending > 1):
            pending = slot.goal[len(slot.tokens) : len(slot.tokens) + room] if slot.job and room else ()
            for token in pending:
                position = len(slot.tokens)
                is_last = position == len(slot.goal) - 1
                if is_last:
                    last_rows[slot.index] = len(rows)
                rows.append(Row(token, position, slot.index, is_last))
                slot.tokens.append(token)
            room -= len(pending)
        return rows, last_rows

    def _advance(self, slot: Slot, job: _Job, row: int) -> list[Event]:
        """Sample the next token of a slot whose logits are there."""
        events: list[Event] = []
        if job.prefilled_at is None:
            job.prefilled_at = self._clock()
            events += self._tell_prefill(slot, job)
        assert job.sampler is not None
        token = job.sampler.sample(row, slot.goal[-_PENALTY_WINDOW:])
        now = self._clock()
        if job.first_at is None:
            job.first_at = now
        if token in self._engine.eog:
            return events + self._end(slot, "eos")
        job.last_at = now
        job.n_completion += 1
        slot.goal.append(token)
        text = job.text.feed(self._engine.piece(token))
        if text:
            job.buffer.append(text)
        if job.text.stopped:
            return events + self._end(slot, "stop")
        limit = job.request.sampler.max_tokens
        if len(slot.goal) > self._engine.n_ctx or (limit is not None and job.n_completion >= limit):
            return events + self._end(slot, "length")
        if job.buffer and now - job.flushed_at >= _FLUSH_S:
            job.flushed_at = now
            events.append(_flush(job))
        return events

    def _tell_prefill(self, slot: Slot, job: _Job) -> list[Event]:
        done = min(len(slot.tokens), len(job.prompt))
        if done <= job.prefill_told or job.n_completion:
            return []
        job.prefill_told = done
        return [Prefill(id=job.request.id, done=done, total=len(job.prompt))]

    def _end(self, slot: Slot, reason: StopReason) -> list[Event]:
        job = slot.job
        assert job is not None
        slot.job = None
        rest = job.text.finish()
        if rest:
            job.buffer.append(rest)
        events: list[Event] = [_flush(job)] if job.buffer else []
        return [*events, self._finished(job, reason)]

    def _finished(self, job: _Job, reason: StopReason) -> Finished:
        if job.sampler is not None:
            job.sampler.close()
        done = job.prefilled_at is not None
        stats = Stats(
            queued_s=job.started_at - job.accepted_at,
            ttft_s=None if job.first_at is None else job.first_at - job.started_at,
            prompt_tokens=len(job.prompt),
            cached_tokens=job.cached,
            prefill_tokens=len(job.prompt) - job.cached if done else max(0, job.prefill_told - job.cached),
            prefill_s=(job.prefilled_at or self._clock()) - job.started_at,
            completion_tokens=job.n_completion,
            decode_s=0.0 if job.first_at is None else max(0.0, job.last_at - job.first_at),
            rss_bytes=resident_bytes(),
        )
        return Finished(id=job.request.id, stop_reason=reason, seed=job.seed, stats=stats)

    def _fail_all(self, error: EdgeQwenError) -> list[Event]:
        """The step failed as a whole: every running request ends, and no cache can be trusted."""
        events: list[Event] = []
        for slot in self._slots:
            if slot.job:
                job, slot.job = slot.job, None
                if job.sampler is not None:
                    job.sampler.close()
                events += [_flush(job)] if job.buffer else []
                events.append(Failed.of(error, job.request.id))
            self._engine.trim(slot.index, 0)
            slot.tokens.clear()
        return events


def _flush(job: _Job) -> TextDelta:
    text = "".join(job.buffer)
    job.buffer.clear()
    return TextDelta(id=job.request.id, text=text)


def _common_prefix(left: list[int], right: list[int]) -> int:
    """Return how many first tokens two lists share."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))
