"""A fake engine with given replies, behind the same loop, slots and frames as the real one.

For tests and for work on front ends without a model. Ships with the package. Knows no llama.cpp.

A script is a JSON file:

    {"pieces": ["Hel", "lo"], "delay_s": 0.02}
    {"replies": [{"match": "weather", "pieces": ["Rain", "."]}], "pieces": ["?"]}

`match` is looked for in the prompt; the first reply that matches is given, else the top-level pieces. A piece
may be a list of byte values. `fault` may be "load" (refuses to load) or a number (dies after so many tokens).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from edgeqwen.engine.protocol import LoadParams, SamplerParams
from edgeqwen.errors import LoadFailed
from edgeqwen.worker.engine import Decoded, Row
from edgeqwen.worker.kernels import Kernels

_CONTROLS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
_FIRST_CONTROL = 256
_IM_END = _FIRST_CONTROL + 1
_FIRST_PIECE = _FIRST_CONTROL + len(_CONTROLS)

Piece = str | list[int]


class Reply(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One scripted answer."""

    match: str
    pieces: tuple[Piece, ...]


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a scripted engine does."""

    pieces: tuple[Piece, ...] = ("ok",)
    replies: tuple[Reply, ...] = ()
    delay_s: float = 0.0
    """Seconds each step takes."""
    load_s: float = 0.0
    """Seconds that loading takes."""
    fault: str | int | None = None
    template: str | None = None


class ScriptedEngine:
    """Tokens are bytes, but for the pieces of the script, which are one token each."""

    architecture = "scripted"
    goes_back = can_shift = True
    n_gpu_layers = 0
    notices: tuple[str, ...] = ()
    kernels = Kernels()
    version = "scripted"

    def __init__(self, params: LoadParams, on_progress: Callable[[float], bool]) -> None:
        """Read the script. Raises LoadFailed."""
        path = params.paths[0]
        try:
            self._script = msgspec.json.decode(Path(path).read_bytes(), type=Script)
        except (OSError, msgspec.DecodeError) as error:
            message = f"the script {path} cannot be used: {error}"
            raise LoadFailed(message, path=path, reason="scripted") from error
        if self._script.fault == "load":
            raise LoadFailed("the script refuses to load", path=path, reason="scripted")
        for step in range(1, 5):
            time.sleep(self._script.load_s / 4)
            on_progress(step / 4)
        self.n_ctx, self.n_slots, self.n_batch = params.n_ctx, params.n_slots, params.n_batch
        self.template = self._script.template
        self.control_texts: tuple[str, ...] = _CONTROLS
        self.eog = frozenset({_IM_END, _FIRST_CONTROL + 2})
        replies = [self._script.pieces, *(reply.pieces for reply in self._script.replies)]
        self._pieces = [_bytes(piece) for pieces in replies for piece in pieces]
        self._starts = [sum(map(len, replies[:index])) for index in range(len(replies))]
        self._ends = [start + len(pieces) for start, pieces in zip(self._starts, replies, strict=True)]
        self.n_vocab = _FIRST_PIECE + len(self._pieces)
        self._cache: list[list[int]] = [[] for _ in range(params.n_slots)]
        self._rows: list[Row] = []
        self._aborted = threading.Event()
        self._n_sampled = 0

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        if special:
            for index, control in enumerate(_CONTROLS):
                if control in text:
                    head, _, tail = text.partition(control)
                    left, right = self.tokenize(head, special=True), self.tokenize(tail, special=True)
                    return [*left, _FIRST_CONTROL + index, *right]
        return list(text.encode("utf-8", "replace"))

    def piece(self, token: int) -> bytes:
        if token < _FIRST_CONTROL:
            return bytes([token])
        return self._pieces[token - _FIRST_PIECE] if token >= _FIRST_PIECE else b""

    def decode(self, rows: Sequence[Row]) -> Decoded:
        if self._aborted.wait(self._script.delay_s):
            return Decoded.ABORTED
        self._rows = list(rows)
        for row in rows:
            assert row.position == len(self._cache[row.slot])
            self._cache[row.slot].append(row.token)
        return Decoded.DONE

    def trim(self, slot: int, length: int) -> bool:
        del self._cache[slot][length:]
        return True

    def n_cached(self, slot: int) -> int:
        return len(self._cache[slot])

    def copy(self, source: int, target: int) -> None:
        self._cache[target] = list(self._cache[source])

    def shift(self, slot: int, start: int, stop: int) -> None:
        del self._cache[slot][start:stop]

    def checkpoint(self, slot: int) -> bytearray:
        return bytearray()

    def restore(self, slot: int, length: int, checkpoint: bytearray) -> bool:
        return self.trim(slot, length)

    def state_bytes(self, slot: int) -> int:
        return len(self.save(slot))

    def save(self, slot: int) -> bytes:
        return msgspec.json.encode(self._cache[slot])

    def load(self, slot: int, data: bytes | bytearray | memoryview) -> bool:
        self._cache[slot] = msgspec.json.decode(data, type=list[int])
        return True

    def open_sampler(self, params: SamplerParams, seed: int) -> ScriptedEngine:
        return self

    def sample(self, row: int, recent: Sequence[int]) -> int:
        """Return the next piece of the reply that fits the slot's prompt, in the end <|im_end|>."""
        assert self._rows[row].wants_logits
        if self._script.fault == self._n_sampled:
            os.kill(os.getpid(), signal.SIGKILL)
        self._n_sampled += 1
        cache = self._cache[self._rows[row].slot]
        n_said = 0
        while cache[-1 - n_said] >= _FIRST_PIECE:
            n_said += 1
        reply = self._reply(b"".join(map(self.piece, cache[: len(cache) - n_said])))
        token = self._starts[reply] + n_said
        return _FIRST_PIECE + token if token < self._ends[reply] else _IM_END

    def _reply(self, prompt: bytes) -> int:
        question = prompt.decode("utf-8", "replace")
        matches = (index for index, reply in enumerate(self._script.replies, 1) if reply.match in question)
        return next(matches, 0)

    def abort(self) -> None:
        self._aborted.set()

    def resume(self) -> None:
        self._aborted.clear()

    def close(self) -> None:
        """Nothing is held: the engine itself serves as every request's sampler."""


def _bytes(piece: Piece) -> bytes:
    return piece.encode() if isinstance(piece, str) else bytes(piece)
