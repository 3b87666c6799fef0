"""The seam between the scheduler and whatever computes tokens.

Two engines implement it: llama.cpp (llama.py) and a scripted one (scripted.py). Knows no frames.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from edgeqwen.engine.protocol import SamplerParams
from edgeqwen.worker.kernels import Kernels


class Row(NamedTuple):
    """One token to evaluate."""

    token: int
    position: int
    slot: int
    wants_logits: bool


class Decoded(enum.Enum):
    """How a step ended."""

    DONE = "done"
    ABORTED = "aborted"
    """Cut short by `abort`; n_cached says what each slot still holds."""


class TokenSampler(Protocol):
    """Chooses the tokens of one request."""

    def sample(self, row: int, recent: Sequence[int]) -> int:
        """Return the token that follows batch row `row`; `recent` is what the penalties look at."""
        ...

    def close(self) -> None:
        """Free it; safe to do twice."""
        ...


class Engine(Protocol):
    """A loaded model and its context; one thread owns it, only `abort` may come from another."""

    architecture: str
    n_gpu_layers: int
    notices: tuple[str, ...]
    """What of the load is not as it was asked for."""
    n_ctx: int
    """Tokens of one slot."""
    n_slots: int
    n_batch: int
    n_vocab: int
    eog: frozenset[int]
    """Tokens that end an answer."""
    template: str | None
    """The chat template of the model file."""
    goes_back: bool
    """The tail of a slot can be forgotten anywhere; else (recurrent state) only where a checkpoint is."""
    can_shift: bool
    kernels: Kernels
    version: str
    """Of everything that gives saved states their form."""
    control_texts: tuple[str, ...]
    """Spellings of control tokens, which nobody's text may turn into."""

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Return tokens; spellings of control tokens become such only when `special`."""
        ...

    def piece(self, token: int) -> bytes:
        """Return the bytes of a token, none for control tokens."""
        ...

    def decode(self, rows: Sequence[Row]) -> Decoded:
        """Evaluate at most n_batch rows. Raises EngineError."""
        ...

    def trim(self, slot: int, length: int) -> bool:
        """Forget a slot's tokens from position `length` on; False: this model cannot, nothing was done."""
        ...

    def n_cached(self, slot: int) -> int:
        """Return how many tokens of a slot are in the cache."""
        ...

    def copy(self, source: int, target: int) -> None:
        """Make `target`, whatever it held, hold what `source` holds."""
        ...

    def shift(self, slot: int, start: int, stop: int) -> None:
        """Forget tokens from `start` to before `stop`, and move those behind down; only if can_shift."""
        ...

    def checkpoint(self, slot: int) -> bytearray:
        """Return what `restore` needs to come back to the slot's present length; only if not goes_back."""
        ...

    def restore(self, slot: int, length: int, checkpoint: bytearray) -> bool:
        """Go back to `length`, where the checkpoint was made; False: it did not work, the slot is empty."""
        ...

    def state_bytes(self, slot: int) -> int:
        """Return the size of what `save` would return."""
        ...

    def save(self, slot: int) -> bytes | bytearray:
        """Return a slot's whole state."""
        ...

    def load(self, slot: int, data: bytes | bytearray | memoryview) -> bool:
        """Put a saved state into a slot; False: it was refused, the slot is empty."""
        ...

    def open_sampler(self, params: SamplerParams, seed: int) -> TokenSampler:
        """Return the sampler of one request."""
        ...

    def abort(self) -> None:
        """Make the running decode return soon. May be called from any thread."""
        ...

    def resume(self) -> None:
        """Take `abort` back."""
        ...

    def close(self) -> None:
        """Free context and model; safe to do twice."""
        ...
