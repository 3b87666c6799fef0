"""Remembers what loaded models really took on this machine, and corrects estimates by it.

A file of the user's state; losing it costs accuracy and nothing else.
"""

from __future__ import annotations

import os
import statistics
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgeqwen.jsonfile import NOT_JSON
from edgeqwen.models.fit import Estimate

_MAX_BYTES = 1 << 18
_KEPT = 200
# A machine can differ from the formula by so much; more is a fault of the measurement.
_LEAST_RATIO, _LARGEST_RATIO = 0.7, 1.5


@dataclass(frozen=True)
class Load:
    """One way to load one model."""

    model: str
    """sha256 of its first file."""
    n_ctx: int
    kv_type: str


@dataclass(frozen=True)
class _Sample:
    load: Load
    estimated: int
    measured: int
    """The worker's resident bytes once it had answered."""


class Measured:
    """The measurements of one user on one machine."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def put(self, load: Load, estimated: int, measured: int) -> None:
        """Remember a measurement; a disk that refuses is no failure."""
        others = [sample for sample in self._read() if sample.load != load]
        samples = [*others, _Sample(load, estimated, measured)][-_KEPT:]
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._file.with_suffix(f".{os.getpid()}")
            temporary.write_bytes(msgspec.json.encode(samples))
            temporary.replace(self._file)

    def measured(self, load: Load) -> int | None:
        """Return what this very load took the last time."""
        return next((sample.measured for sample in self._read() if sample.load == load), None)

    def correction(self, load: Load | None, parts: Estimate) -> int:
        """Return the bytes to add to an estimate.

        The difference found for this load; else that of the same model at the nearest context; else the
        median ratio of all models that were loaded here, which takes nothing off weights and KV cache.
        """
        samples = self._read()
        mine = [sample for sample in samples if load and sample.load.model == load.model]
        if load and mine:
            near = min(mine, key=lambda s: (s.load != load, abs(s.load.n_ctx - load.n_ctx)))
            return near.measured - near.estimated
        by_model = {sample.load.model: sample.measured / sample.estimated for sample in samples}
        if not by_model:
            return 0
        ratio = statistics.median(by_model.values())
        found = round((min(max(ratio, _LEAST_RATIO), _LARGEST_RATIO) - 1) * parts.total)
        return max(found, -(parts.compute + parts.process))

    def _read(self) -> list[_Sample]:
        try:
            if self._file.stat().st_size > _MAX_BYTES:
                return []
            samples = msgspec.json.decode(self._file.read_bytes(), type=list[_Sample])
        except (OSError, *NOT_JSON):
            return []
        return [sample for sample in samples if sample.estimated > 0 and sample.measured > 0]
