"""What runs on this machine and how fast: a file per front end, with its model and the last counters.

Owns those files: written by the program that holds the model, read by `edgeqwen ps`, removed when the model
goes. They hold counters, never what was said.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from edgeqwen.engine.protocol import Stats
from edgeqwen.jsonfile import NOT_JSON

KEPT_ANSWERS = 100
_MAX_BYTES = 1 << 20
_SAME_START_S = 1.0  # a pid is somebody else's when its process began at another time


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is loaded, and its last answers, the latest last."""

    pid: int
    """The front end."""
    began: float
    """When that process began, in seconds since the system started: the clock may be set meanwhile."""
    host: str
    worker: int
    model: str
    n_ctx: int
    n_threads: int
    n_gpu_layers: int = 0
    answers: tuple[Stats, ...] = ()

    @property
    def up_s(self) -> float:
        """Seconds that the front end has run."""
        return time.time() - psutil.boot_time() - self.began


@dataclass(frozen=True)
class Average:
    """Several answers as one: counts over seconds, so that long ones weigh more. None: nothing to divide."""

    n: int
    decode_tps: float | None
    prefill_tps: float | None
    ttft_s: float | None
    """Mean of queueing and TTFT, the wait that a person feels."""
    response_s: float | None
    """Mean of the whole: queueing, reading and answering."""
    prompt_tokens: int
    completion_tokens: int


def average(answers: Iterable[Stats]) -> Average:
    """Sum up answers by the definitions of Stats."""
    all_ = list(answers)
    waits = [one.queued_s + one.ttft_s for one in all_ if one.ttft_s is not None]
    decode_s = sum(one.decode_s for one in all_)
    return Average(
        n=len(all_),
        decode_tps=_ratio(sum(max(0, one.completion_tokens - 1) for one in all_), decode_s),
        prefill_tps=_ratio(sum(one.prefill_tokens for one in all_), sum(one.prefill_s for one in all_)),
        ttft_s=_ratio(sum(waits), len(waits)),
        response_s=_ratio(sum(waits) + decode_s, len(waits)),
        prompt_tokens=sum(one.prompt_tokens for one in all_),
        completion_tokens=sum(one.completion_tokens for one in all_),
    )


def _ratio(value: float, by: float) -> float | None:
    return value / by if value and by > 0 else None


class RunningFile:
    """This process's file. A disk that refuses costs `ps` a line, and nothing else."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"{os.getpid()}.json"
        self._running: Running | None = None

    def begin(self, worker: int, model: str, n_ctx: int, n_threads: int, n_gpu_layers: int) -> None:
        """A model is loaded."""
        self._running = Running(
            pid=os.getpid(),
            began=_began(os.getpid()),
            host=platform.node(),
            worker=worker,
            model=model,
            n_ctx=n_ctx,
            n_threads=n_threads,
            n_gpu_layers=n_gpu_layers,
        )
        self._write()

    def add(self, stats: Stats) -> None:
        """An answer has ended."""
        if self._running:
            answers = (*self._running.answers, stats)[-KEPT_ANSWERS:]
            self._running = msgspec.structs.replace(self._running, answers=answers)
            self._write()

    def end(self) -> None:
        """No model is loaded any more."""
        self._running = None
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            part = self._path.with_suffix(".part")
            part.write_bytes(msgspec.json.encode(self._running))
            part.replace(self._path)


def read_running(folder: Path) -> Sequence[Running]:
    """Return what runs now, by pid; files of processes that are gone are removed. Blocking.

    Those of other machines that share the folder are left alone.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        running = _read(path)
        if running and running.host != platform.node():
            continue
        if running and _is_alive(running):
            found.append(running)
        else:
            with suppress(OSError):
                path.unlink()
    return found


def _read(path: Path) -> Running | None:
    try:
        if path.stat().st_size > _MAX_BYTES:
            return None
        return msgspec.json.decode(path.read_bytes(), type=Running)
    except (OSError, *NOT_JSON):
        return None


def _is_alive(running: Running) -> bool:
    try:
        return abs(_began(running.pid) - running.began) < _SAME_START_S
    except (psutil.Error, OverflowError, ValueError):
        return False


def _began(pid: int) -> float:
    return psutil.Process(pid).create_time() - psutil.boot_time()
