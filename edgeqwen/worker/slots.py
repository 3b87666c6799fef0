"""The scheduler: fills each batch from the slots' pending tokens, samples, and tells what happened.

Every active slot has a goal (prompt and answer so far) and a mirror of what the cache holds. What is missing
between the two is pending; when nothing is, the next token is sampled. Reading and generating are the same
thing here, and an aborted step heals by itself. Pure over an Engine and a clock; knows no pipe.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from edgeqwen.engine.protocol import Event, Failed, Finished, Generate, Prefill, Started, StopReason
from edgeqwen.errors import EdgeQwenError, EngineBusy
from edgeqwen.worker.engine import Decoded, Engine, Row
from edgeqwen.worker.jobs import Acceptor, Job
from edgeqwen.worker.prefix import CachedSequence, PrefixCache
from edgeqwen.worker.saved import SavedStates
from edgeqwen.worker.thinking import CLOSING

MAX_QUEUE = 64
_SHARED_CHUNK = 128  # tokens of prompts per step while others answer: they wait for no more than that
_PENALTY_WINDOW = 64


@dataclass(eq=False)
class Slot(CachedSequence):
    """One sequence and at most one request that uses it."""

    goal: list[int] = field(default_factory=list)
    """What it is to hold before the next token is sampled."""
    job: Job | None = None

    @property
    def n_pending(self) -> int:
        """Tokens between what the cache holds and what it is to hold."""
        return len(self.goal) - len(self.tokens) if self.job else 0

    @property
    def is_answering(self) -> bool:
        """Whether its prompt is read."""
        return self.job is not None and self.job.first_at is not None


class Scheduler:
    """Runs the requests of one engine."""

    def __init__(self, engine: Engine, clock: Callable[[], float], saved: SavedStates | None = None) -> None:
        self._engine, self._clock = engine, clock
        self._acceptor = Acceptor(engine, clock)
        self._slots = [Slot(index) for index in range(engine.n_slots)]
        self._prefix = PrefixCache(engine, self._slots, saved)
        self._queue: deque[Job] = deque()
        # Models that cannot go back are remembered before each turn, which this token begins.
        heads = engine.tokenize("<|im_start|>", special=True)
        self._turn_token = heads[0] if len(heads) == 1 else None
        # Ids of the requests in slots, and of those whose step nobody cuts short. Replaced, never changed:
        # another thread may look.
        self._running: frozenset[int] = frozenset()
        self._unabortable: frozenset[int] = frozenset()

    @property
    def has_work(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self._queue) or any(slot.job for slot in self._slots)

    def submit(self, request: Generate) -> list[Event]:
        """Take a request; a bad one is answered at once."""
        try:
            if len(self._queue) >= MAX_QUEUE:
                message = f"{len(self._queue)} requests wait already; try again when some are done"
                raise EngineBusy(message, queue_length=len(self._queue))
            self._queue.append(self._acceptor.accept(request))
        except EdgeQwenError as error:
            return [Failed.of(error, request.id)]
        return []

    def cancel(self, request: int) -> list[Event]:
        """End a request with what it has said so far; an unknown one is over already."""
        for job in self._queue:
            if job.request.id == request:
                self._queue.remove(job)
                job.started_at = self._clock()
                return [job.finished("cancelled", self._clock())]
        for slot in self._slots:
            if slot.job and slot.job.request.id == request:
                return self._end(slot, "cancelled")
        return []

    def may_abort(self, request: int) -> bool:
        """Say whether the running step may be cut short to cancel a request. May be called from any thread.

        Not with neighbours in the batch, who would lose it, too; nor where a model that cannot go back
        answers: a step of one token is soon done, and cut short it would take the answer out of the cache.
        """
        return self._running <= {request} and request not in self._unabortable

    def answer_now(self, request: int) -> None:
        """Close the thinking of a request as soon as it has begun one."""
        for job in (*self._queue, *(slot.job for slot in self._slots)):
            if job and job.request.id == request:
                job.answer_now = True

    def step(self) -> list[Event]:
        """Evaluate one batch and return what came of it."""
        events = self._admit()
        before = [len(slot.tokens) for slot in self._slots]
        rows, last_rows = self._fill_batch()
        if not rows:
            return events
        try:
            outcome = self._engine.decode(rows)
        except EdgeQwenError as error:
            return events + self._fail_all(error)
        if outcome is Decoded.ABORTED:
            for slot, n_before in zip(self._slots, before, strict=True):
                self._prefix.heal(slot, n_before)
            return events
        self._prefix.settle()
        for slot in self._slots:
            if slot.job is None:
                continue
            if len(slot.tokens) in slot.job.checkpoints:
                self._prefix.remember(slot)
            if slot.index in last_rows:
                events += self._advance(slot, slot.job, last_rows[slot.index])
            else:
                events += self._tell_prefill(slot, slot.job)
        return events

    def save(self) -> None:
        """Put on disk what idle slots hold; for moments in which nobody waits."""
        self._prefix.save([slot for slot in self._slots if slot.job is None])

    def close(self) -> None:
        """Free the samplers of requests that are still running, save, and wait for the disk."""
        for slot in self._slots:
            if slot.job and slot.job.sampler:
                slot.job.sampler.close()
        self._prefix.save(self._slots)
        self._prefix.close()

    def _admit(self) -> list[Event]:
        """Give waiting requests to idle slots, first come first served.

        Who waits for what another slot reads keeps an idle slot free; those behind it may take the others.
        """
        events: list[Event] = []
        n_kept = 0
        for job in tuple(self._queue):
            idle = [slot for slot in self._slots if slot.job is None]
            if len(idle) <= n_kept:
                break
            if self._is_being_read(job.prompt):
                n_kept += 1
            else:
                self._queue.remove(job)
                events += self._start(job, idle)
        return events

    def _is_being_read(self, prompt: list[int]) -> bool:
        """Say whether another slot reads much of this prompt right now: it is copied when that is done."""
        return any(
            self._prefix.gains_from(prompt, slot.goal, slot.job.checkpoints | slot.checkpoints.keys())
            for slot in self._slots
            if slot.job and slot.job.first_at is None and slot.n_pure is None
        )

    def _start(self, job: Job, idle: list[Slot]) -> list[Event]:
        job.started_at = self._clock()
        place = self._prefix.place(job.prompt, idle, may_shift=job.dropped is not None)
        slot = place.sequence
        assert isinstance(slot, Slot)
        job.cached = job.prefill_told = place.n_cached
        job.checkpoints = self._checkpoints(job.prompt)
        job.sampler = self._engine.open_sampler(job.request.sampler, job.seed)
        slot.goal, slot.job = list(job.prompt), job
        if job.wants_answer:
            self._close_thinking(slot, job)
        self._note_running()
        started = Started(
            id=job.request.id,
            prompt_tokens=len(job.prompt),
            cached_tokens=place.n_cached,
            restored_tokens=place.n_cached if place.is_restored else 0,
            in_thinking=job.in_thinking,
            dropped=job.dropped,
        )
        has_room = len(slot.goal) <= self._engine.n_ctx  # the closing may have taken the last
        return [started] if has_room else [started, *self._end(slot, "length")]

    def _checkpoints(self, prompt: list[int]) -> frozenset[int]:
        """Return lengths to remember: behind the system prompt, before the last question and its answer."""
        if self._engine.goes_back or self._turn_token is None:
            return frozenset()
        heads = [index for index, token in enumerate(prompt) if token == self._turn_token and index]
        return frozenset([*heads[:1], *heads[-2:]])

    def _fill_batch(self) -> tuple[list[Row], dict[int, int]]:
        """Return the rows of the next step, and by slot the row whose logits are its next token.

        Slots that need a single token come first and long prompts get a bounded share, so that reading never
        holds up those who answer; among the readers the first come is first served.
        """
        rows: list[Row] = []
        last_rows: dict[int, int] = {}
        active = [slot for slot in self._slots if slot.job]
        room = self._engine.n_batch
        shared = _SHARED_CHUNK if any(slot.is_answering for slot in active) else room
        for slot in sorted(active, key=lambda slot: (slot.n_pending > 1, slot.used)):
            start = len(slot.tokens)
            limit = room if slot.n_pending == 1 else min(room, shared)
            n_rows = self._engine.kernels.chunk(start, slot.n_pending, limit)
            end = self._stop_at_checkpoint(slot, start + n_rows)
            for position in range(start, end):
                is_last = position == len(slot.goal) - 1
                if is_last:
                    last_rows[slot.index] = len(rows)
                rows.append(Row(slot.goal[position], position, slot.index, is_last))
            if slot.n_pending > 1:
                shared -= end - start
            room -= end - start
            slot.tokens += slot.goal[start:end]
        return rows, last_rows

    @staticmethod
    def _stop_at_checkpoint(slot: Slot, end: int) -> int:
        """Return `end`, or the checkpoint that comes before it."""
        stops = slot.job.checkpoints if slot.job else ()
        return min((at for at in stops if len(slot.tokens) < at < end), default=end)

    def _advance(self, slot: Slot, job: Job, row: int) -> list[Event]:
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
            self._note_running()
        if token in self._engine.eog:
            return events + self._end(slot, "eos")
        job.last_at = now
        job.n_completion += 1
        slot.goal.append(token)
        job.say(self._engine.piece(token))
        job.n_thinking += job.thinking.inside
        if job.text.stopped:
            return events + self._end(slot, "stop")
        if job.wants_answer:
            self._close_thinking(slot, job)
        limit = job.request.sampler.max_tokens
        if len(slot.goal) > self._engine.n_ctx or (limit is not None and job.n_completion >= limit):
            return events + self._end(slot, "length")
        if job.is_due(now):
            events.append(job.flush(now))
        return events

    def _close_thinking(self, slot: Slot, job: Job) -> None:
        """Put the end of the thinking block where the next token would be; the answer follows it."""
        for token in self._engine.tokenize(CLOSING, special=True):
            slot.goal.append(token)
            job.inject(self._engine.piece(token))
        job.thinking.inside = False

    def _tell_prefill(self, slot: Slot, job: Job) -> list[Event]:
        done = min(len(slot.tokens), len(job.prompt))
        if done <= job.prefill_told or job.n_completion:
            return []
        job.prefill_told = done
        return [Prefill(id=job.request.id, done=done, total=len(job.prompt))]

    def _end(self, slot: Slot, reason: StopReason) -> list[Event]:
        job = self._release(slot)
        closing: Finished = job.finished(reason, self._clock())
        return [*job.last_words(self._clock()), closing]

    def _release(self, slot: Slot) -> Job:
        job = slot.job
        assert job is not None
        slot.job = None
        if job.sampler is not None:
            job.sampler.close()
        self._note_running()
        return job

    def _note_running(self) -> None:
        self._running = frozenset(slot.job.request.id for slot in self._slots if slot.job)
        if not self._engine.goes_back:
            self._unabortable = frozenset(
                slot.job.request.id for slot in self._slots if slot.job and slot.is_answering
            )

    def _fail_all(self, error: EdgeQwenError) -> list[Event]:
        """The step failed as a whole: every running request ends, and no cache can be trusted."""
        events: list[Event] = []
        for slot in self._slots:
            if slot.job:
                job = self._release(slot)
                events += job.last_words(self._clock())
                events.append(Failed.of(error, job.request.id))
            self._prefix.cut(slot, 0)
        return events
