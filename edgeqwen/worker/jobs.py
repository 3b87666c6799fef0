"""One request on its way from queue to closing frame: its prompt, its clock, its text.

Makes jobs of requests and stats of jobs; knows no slots and no cache.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edgeqwen.engine.protocol import ChatMessage, Dropped, Finished, Generate, Stats, StopReason, TextDelta
from edgeqwen.errors import ContextOverflow, InvalidInput
from edgeqwen.worker.context import fit
from edgeqwen.worker.engine import Engine, TokenSampler
from edgeqwen.worker.memory import resident_bytes
from edgeqwen.worker.stops import TextStream
from edgeqwen.worker.template import Segment, Template
from edgeqwen.worker.thinking import ThinkingWatch

_ANSWER_SHARE = (
    4  # of the context; what a policy keeps free for the answer, so that not each turn drops again
)
_LEAST_SHARE = 16  # of the context; with less than that for the answer, something is dropped
_N_SEEDS = (1 << 32) - 1  # llama.cpp draws one itself where it gets the next number


@dataclass
class Job:
    """A request that was accepted."""

    request: Generate
    prompt: list[int]
    in_thinking: bool
    dropped: Dropped | None
    accepted_at: float
    seed: int
    text: TextStream
    thinking: ThinkingWatch
    sampler: TokenSampler | None = None
    cached: int = 0
    checkpoints: frozenset[int] = frozenset()
    """Lengths of the prompt at which models that cannot go back are to be remembered."""
    started_at: float = 0.0
    prefilled_at: float | None = None
    first_at: float | None = None
    last_at: float = 0.0
    n_completion: int = 0
    n_thinking: int = 0
    answer_now: bool = False
    """Somebody wants the thinking to end here."""
    buffer: list[str] = field(default_factory=list)
    flushed_at: float = float("-inf")
    prefill_told: int = 0

    def say(self, piece: bytes) -> None:
        """Take the bytes of the next token of the answer."""
        text = self.text.feed(piece)
        if text:
            self.buffer.append(text)
            self.thinking.feed(text)

    def inject(self, piece: bytes) -> None:
        """Take text that nobody sampled; no stop string looks at it."""
        self.buffer.append(self.text.inject(piece.decode("utf-8", "replace")))

    @property
    def wants_answer(self) -> bool:
        """The thinking is to be closed now."""
        budget = self.request.thinking_budget
        is_spent = budget is not None and self.n_thinking >= budget
        return self.thinking.inside and (self.answer_now or is_spent)

    def is_due(self, now: float) -> bool:
        """Say whether the text that waits is to be sent."""
        return bool(self.buffer) and now - self.flushed_at >= self.request.delta_s

    def flush(self, now: float) -> TextDelta:
        """Return the text that waits."""
        self.flushed_at = now
        text = "".join(self.buffer)
        self.buffer.clear()
        return TextDelta(
            id=self.request.id, text=text, n_tokens=self.n_completion, n_thinking=self.n_thinking
        )

    def last_words(self, now: float) -> list[TextDelta]:
        """Return the text that waits, and what was held back because more might have come."""
        if rest := self.text.finish():
            self.buffer.append(rest)
        return [self.flush(now)] if self.buffer else []

    def finished(self, reason: StopReason, now: float) -> Finished:
        """Return the closing frame."""
        n_read = self.prefill_told if self.prefilled_at is None else len(self.prompt)
        stats = Stats(
            queued_s=self.started_at - self.accepted_at,
            ttft_s=None if self.first_at is None else self.first_at - self.started_at,
            prompt_tokens=len(self.prompt),
            cached_tokens=self.cached,
            prefill_tokens=max(0, n_read - self.cached),
            prefill_s=(self.prefilled_at or now) - self.started_at,
            completion_tokens=self.n_completion,
            thinking_tokens=self.n_thinking,
            decode_s=0.0 if self.first_at is None else max(0.0, self.last_at - self.first_at),
            rss_bytes=resident_bytes(),
        )
        return Finished(id=self.request.id, stop_reason=reason, seed=self.seed, stats=stats)


class Acceptor:
    """Turns requests into jobs for one engine."""

    def __init__(self, engine: Engine, clock: Callable[[], float]) -> None:
        self._engine, self._clock = engine, clock
        self._template = Template(engine.template, engine.control_texts)

    def accept(self, request: Generate) -> Job:
        """Render, count and, where the request lets us, leave out what does not fit.

        Raises ContextOverflow, InvalidInput or EngineError.
        """
        accepted_at = self._clock()
        n_ctx = self._engine.n_ctx

        def count(messages: Sequence[ChatMessage]) -> int:
            return len(self._tokens(self._render(request, messages)))

        def answer(share: int) -> int:
            return max(1, min(request.sampler.max_tokens or n_ctx, n_ctx // share))

        segments = self._render(request, request.messages)
        prompt = self._tokens(segments)
        dropped = None
        if request.overflow != "stop" and len(prompt) > n_ctx - answer(_LEAST_SHARE):
            room, block = n_ctx - answer(_ANSWER_SHARE), max(1, n_ctx // _ANSWER_SHARE)
            messages, dropped = fit(request.messages, request.overflow, room, count, block)
            segments = self._render(request, messages)
            prompt = self._tokens(segments)
        if len(prompt) >= n_ctx:
            message = f"the prompt has {len(prompt):,} tokens and the context holds {n_ctx:,}"
            raise ContextOverflow(message, needed=len(prompt) + 1, available=n_ctx)
        if not prompt:
            raise InvalidInput("the prompt is empty")
        in_thinking = segments[-1].special and segments[-1].text.rstrip().endswith("<think>")
        seed = request.sampler.seed
        return Job(
            request=request,
            prompt=prompt,
            in_thinking=in_thinking,
            dropped=dropped,
            accepted_at=accepted_at,
            seed=random.randrange(_N_SEEDS) if seed is None else seed % _N_SEEDS,
            text=TextStream(request.sampler.stop),
            thinking=ThinkingWatch(in_thinking),
        )

    def _render(self, request: Generate, messages: Sequence[ChatMessage]) -> list[Segment]:
        return self._template.render(messages, request.think, request.tools)

    def _tokens(self, segments: list[Segment]) -> list[int]:
        tokens: list[int] = []
        for segment in segments:
            tokens += self._engine.tokenize(segment.text, special=segment.special)
        return tokens
