"""What the cache knows already of a prompt, in memory or on disk, and how to get it to where it is wanted.

Owns the mirrors of the cache and every change to them but evaluation itself; knows no requests.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from edgeqwen.errors import EngineError
from edgeqwen.worker.engine import Engine
from edgeqwen.worker.saved import SavedStates, State, common_prefix, in_words, log

_WORTH_COPYING = 16  # tokens; fewer are read as fast as they are found
_WORTH_SAVING = 128  # tokens; fewer are read as fast as a file is
MAX_CHECKPOINTS = 4  # 20 MB and more each; models/fit.py reckons with as many
_WORTH_RESTORING = 8  # tokens of a file for each that it spares
_NEEDLE = 16  # tokens by which a shifted stretch is found again


@dataclass(eq=False)
class CachedSequence:
    """One sequence of the cache, as far as its contents go."""

    index: int
    tokens: list[int] = field(default_factory=list)
    """Exactly what the cache holds."""
    checkpoints: dict[int, bytearray] = field(default_factory=dict)
    """Of models that cannot go back: what `restore` needs, by length."""
    used: int = 0
    """When it was placed last, in places given out."""
    n_saved: int = 0
    """How many of its tokens are on disk as they are."""
    n_pure: int | None = None
    """After a shift: where the values begin that remember what was dropped; None: nowhere."""
    is_shifting: bool = False
    """llama.cpp moves the values in the step after a shift; until that is whole, they are anywhere."""


class Place(NamedTuple):
    """Where a prompt goes."""

    sequence: CachedSequence
    n_cached: int
    """Tokens of the prompt that are there already."""
    is_restored: bool = False
    """They came from disk."""


class _Stretch(NamedTuple):
    """Tokens that a prompt has at `start` and an idle sequence at `stop`, behind what was dropped."""

    sequence: CachedSequence
    start: int
    stop: int
    n_same: int


class PrefixCache:
    """All sequences of one engine."""

    def __init__(
        self, engine: Engine, sequences: Sequence[CachedSequence], saved: SavedStates | None
    ) -> None:
        self._engine, self._all, self._saved = engine, sequences, saved
        self._n_placed = 0

    def place(self, prompt: list[int], idle: Collection[CachedSequence], *, may_shift: bool) -> Place:
        """Choose a sequence for a prompt and bring it as far as the cache can and the kernels like.

        The last token is never taken from the cache, which holds no logits. `may_shift` allows stretches that
        have moved down because something before them was left out.
        """
        sequence, n_cached, is_restored = self._bring(prompt, idle, may_shift=may_shift)
        if self._engine.goes_back:
            n_cached = len(prompt) - self._engine.kernels.to_read(len(prompt) - n_cached, n_cached)
            self.cut(sequence, n_cached)
        return Place(sequence, len(sequence.tokens), is_restored)

    def _bring(self, prompt: list[int], idle: Collection[CachedSequence], *, may_shift: bool) -> Place:
        self._n_placed += 1
        limit = len(prompt) - 1

        def usable(sequence: CachedSequence) -> int:
            return self._usable_of(sequence, prompt, limit, may_shift=may_shift)

        best = max(self._all, key=usable)
        n_best = usable(best)
        if may_shift and (shifted := self._shift(prompt, limit, idle, n_best)):
            shifted.used = self._n_placed
            return Place(shifted, len(shifted.tokens))
        target = self._target(best, n_best, idle)
        target.used = self._n_placed
        if n_saved := self._from_disk(target, prompt, limit, n_best):
            return Place(target, n_saved, is_restored=True)
        if target is not best:
            self._leave(target)
            if n_best >= _WORTH_COPYING:
                self._engine.copy(best.index, target.index)
                target.tokens, target.checkpoints = list(best.tokens), dict(best.checkpoints)
                target.n_pure, target.is_shifting = best.n_pure, best.is_shifting
            target.n_saved = 0
        elif len(target.tokens) - n_best >= _WORTH_SAVING:
            self._leave(target)
        self.cut(target, usable(target))
        return Place(target, len(target.tokens))

    def gains_from(self, prompt: list[int], goal: list[int], checkpoints: Collection[int]) -> bool:
        """Say whether a sequence that is to hold `goal` will give a prompt much more than any does now."""
        limit = len(prompt) - 1
        known = max(self._usable_of(one, prompt, limit) for one in self._all)
        return self._usable(goal, checkpoints, prompt, limit) >= known + _WORTH_COPYING

    def cut(self, sequence: CachedSequence, length: int) -> None:
        """Forget everything from `length` on, or from the last checkpoint before it."""
        if length < len(sequence.tokens):
            if self._engine.goes_back or length == 0:
                if not self._engine.trim(sequence.index, length):
                    length = self._empty(sequence)
            else:
                length = self._go_back(sequence, length)
        del sequence.tokens[length:]
        sequence.checkpoints = {at: data for at, data in sequence.checkpoints.items() if at <= length}
        sequence.n_saved = min(sequence.n_saved, length)
        if sequence.n_pure is not None and length <= sequence.n_pure:
            sequence.n_pure = None

    def heal(self, sequence: CachedSequence, n_before: int) -> None:
        """Bring mirror and cache together again after a step that failed; it began at `n_before`."""
        if self._engine.goes_back:
            del sequence.tokens[self._engine.n_cached(sequence.index) :]
            sequence.n_saved = min(sequence.n_saved, len(sequence.tokens))
            if sequence.is_shifting and sequence.n_pure is not None:
                self.cut(sequence, sequence.n_pure)
        elif len(sequence.tokens) != n_before:
            # The recurrent part is anywhere between, whatever the library says.
            self.cut(sequence, max((at for at in sequence.checkpoints if at <= n_before), default=0))

    def settle(self) -> None:
        """A whole step was done: what was to be shifted is."""
        for sequence in self._all:
            sequence.is_shifting = False

    def remember(self, sequence: CachedSequence) -> None:
        """Make a checkpoint of a sequence as it is, if there is none yet and memory allows one."""
        if len(sequence.tokens) in sequence.checkpoints:
            return
        try:
            sequence.checkpoints[len(sequence.tokens)] = self._engine.checkpoint(sequence.index)
        except (EngineError, MemoryError) as error:
            log(f"no checkpoint could be made: {in_words(error)}")
        if len(sequence.checkpoints) > MAX_CHECKPOINTS:
            _, second, *_ = sorted(sequence.checkpoints)
            del sequence.checkpoints[second]  # the first is the system prompt's

    def save(self, sequences: Collection[CachedSequence]) -> None:
        """Put on disk what is not there yet and worth it."""
        for sequence in sequences:
            self._leave(sequence)

    def close(self) -> None:
        """Wait until everything is on disk."""
        if self._saved:
            self._saved.close()

    def _usable_of(
        self, sequence: CachedSequence, prompt: list[int], limit: int, *, may_shift: bool = False
    ) -> int:
        pure = limit if may_shift or sequence.n_pure is None else min(limit, sequence.n_pure)
        return self._usable(sequence.tokens, sequence.checkpoints, prompt, pure)

    def _usable(
        self, tokens: Sequence[int], checkpoints: Collection[int], prompt: Sequence[int], limit: int
    ) -> int:
        """Return how many tokens of a prompt can be taken from a sequence that holds `tokens`."""
        n_common = min(common_prefix(tokens, prompt), limit)
        if self._engine.goes_back or n_common == len(tokens):
            return n_common
        return max((at for at in checkpoints if at <= n_common), default=0)

    def _target(self, best: CachedSequence, n_best: int, idle: Collection[CachedSequence]) -> CachedSequence:
        """Return the idle sequence to use: the best one, unless much would be lost that others spare."""
        loses_little = 2 * n_best >= len(best.tokens)
        if best in idle and (loses_little or len(idle) == 1):
            return best
        return min(idle, key=lambda sequence: (len(sequence.tokens) > 0, sequence.used))

    def _shift(
        self, prompt: list[int], limit: int, idle: Collection[CachedSequence], n_known: int
    ) -> CachedSequence | None:
        """Take the longest stretch over that stands further up in an idle sequence than in the prompt."""
        if not self._engine.can_shift:
            return None
        stretches = [stretch for one in idle if (stretch := self._find_stretch(one, prompt))]
        longest = max(stretches, key=lambda stretch: stretch.start + stretch.n_same, default=None)
        if longest is None or longest.start + longest.n_same <= n_known:
            return None
        target, start, stop, n_same = longest
        self.cut(target, stop + n_same)
        self._engine.shift(target.index, start, stop)
        del target.tokens[start:stop]
        target.n_saved = min(target.n_saved, start)
        target.n_pure = start if target.n_pure is None else min(start, target.n_pure)
        target.is_shifting = True
        self.cut(target, limit)
        return target

    def _find_stretch(self, sequence: CachedSequence, prompt: list[int]) -> _Stretch | None:
        start = common_prefix(sequence.tokens, prompt)
        stop = _find(sequence.tokens, prompt[start : start + _NEEDLE], start)
        if stop is None or self._shares_beyond(sequence, stop):
            return None
        n_same = common_prefix(sequence.tokens[stop:], prompt[start:])
        if 2 * n_same < len(sequence.tokens) - stop:
            return None  # another chat that says the same somewhere; this one's would go on to its end
        return _Stretch(sequence, start, stop, n_same)

    def _shares_beyond(self, target: CachedSequence, stop: int) -> bool:
        """Say whether another sequence may use the cells behind `stop`: a shift would move its own, too."""
        others = (other for other in self._all if other is not target)
        return any(common_prefix(other.tokens, target.tokens) > stop for other in others)

    def _from_disk(self, target: CachedSequence, prompt: list[int], limit: int, n_known: int) -> int:
        """Restore a saved state that holds more of a prompt than memory does; returns its length, or 0."""
        if self._saved is None or limit < _WORTH_SAVING:
            return 0

        def gain(tokens: Sequence[int], checkpoints: Collection[int]) -> int:
            n_more = self._usable(tokens, checkpoints, prompt, limit) - n_known
            return n_more if n_more >= max(_WORTH_SAVING, len(tokens) // _WORTH_RESTORING) else 0

        path = self._saved.find(gain)
        state = self._saved.read(path) if path else None
        if path is None or state is None:
            return 0
        self._leave(target)
        target.tokens, target.checkpoints, target.n_saved, target.n_pure = [], {}, 0, None
        is_taken = self._engine.load(target.index, state.data)
        if not is_taken or self._engine.n_cached(target.index) != len(state.tokens):
            self._empty(target)
            self._saved.forget(path, f"llama.cpp does not take {path.name}")
            return 0
        target.tokens, target.checkpoints = state.tokens, state.checkpoints
        target.n_saved = len(state.tokens)
        self.cut(target, self._usable(target.tokens, target.checkpoints, prompt, limit))
        return len(target.tokens)

    def _go_back(self, sequence: CachedSequence, length: int) -> int:
        at = max((at for at in sequence.checkpoints if at <= length), default=0)
        if at and self._engine.restore(sequence.index, at, sequence.checkpoints[at]):
            return at
        return self._empty(sequence)

    def _empty(self, sequence: CachedSequence) -> int:
        self._engine.trim(sequence.index, 0)
        return 0

    def _leave(self, sequence: CachedSequence) -> None:
        """Save a sequence before it is given up, unless it is on disk or too short to matter."""
        n_tokens = len(sequence.tokens)
        if self._saved is None or n_tokens < _WORTH_SAVING or n_tokens == sequence.n_saved:
            return
        if sequence.n_pure is not None:
            return  # another conversation with these tokens would get other values
        checkpoints = sum(map(len, sequence.checkpoints.values()))
        if not self._saved.takes(4 * n_tokens + self._engine.state_bytes(sequence.index) + checkpoints):
            return  # looked at before it is copied: a small machine has no room for a second one

        def on_failure() -> None:
            sequence.n_saved = 0  # on the writer's thread: the next save tries again

        try:
            data = self._engine.save(sequence.index)
        except (EngineError, MemoryError) as error:
            log(f"the KV cache could not be saved: {in_words(error)}")
            return
        sequence.n_saved = n_tokens
        self._saved.write(State(list(sequence.tokens), data, dict(sequence.checkpoints)), on_failure)


def _find(tokens: list[int], needle: list[int], start: int) -> int | None:
    """Return where `needle` stands behind `start`."""
    if len(needle) < _NEEDLE:
        return None
    haystack, wanted = array("i", tokens).tobytes(), array("i", needle).tobytes()
    at = haystack.find(wanted, 4 * (start + 1))
    while at >= 0 and at % 4:
        at = haystack.find(wanted, at + 1)
    return at // 4 if at >= 0 else None
