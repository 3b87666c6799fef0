"""The worker's loop: takes commands from the pipe, steps the scheduler, sends what happened.

Two threads: this one owns the engine; the reader only queues commands and raises the abort flag. Ends with
its parent: when the command pipe closes, the process does too.
"""

from __future__ import annotations

import os
import queue
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from edgeqwen.engine.frames import FrameReader, decode_command, encode, request_of
from edgeqwen.engine.protocol import (
    AnswerNow,
    Cancel,
    Close,
    Command,
    Devices,
    Event,
    Failed,
    Generate,
    ListDevices,
    Load,
    Loading,
    LoadParams,
    Ready,
)
from edgeqwen.errors import EdgeQwenError, EngineError, InvalidInput
from edgeqwen.worker.engine import Engine
from edgeqwen.worker.memory import resident_bytes
from edgeqwen.worker.saved import SavedStates
from edgeqwen.worker.slots import Scheduler

_PATIENCE_S = 30.0  # after the parent is gone, for the disk to take what was not saved
_IDLE_S = 2.0  # after which what the slots hold goes to disk


class Worker:
    """One engine between two pipes."""

    def __init__(self, commands: BinaryIO, events: BinaryIO) -> None:
        self._commands, self._events = commands, events
        self._inbox: queue.SimpleQueue[Command | Failed] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._engine: Engine | None = None
        self._scheduler: Scheduler | None = None

    def run(self) -> None:
        """Serve until told to close or the parent is gone."""
        threading.Thread(target=self._read, daemon=True).start()
        try:
            while self._serve_one_round():
                pass
        except BrokenPipeError:
            pass  # nobody listens any more
        finally:
            try:
                if self._scheduler:
                    self._scheduler.close()
            finally:
                self._close_engine()

    def _serve_one_round(self) -> bool:
        """Handle waiting commands and take one step; return False when it is time to go."""
        busy = self._scheduler is not None and self._scheduler.has_work
        while not busy or not self._inbox.empty():
            command = self._next_command()
            if isinstance(command, Close):
                return False
            if command is not None:
                self._send(self._handle(command))
            busy = self._scheduler is not None and self._scheduler.has_work
        if self._closing.is_set():
            return False
        assert self._scheduler is not None
        self._send(self._scheduler.step())
        return True

    def _next_command(self) -> Command | Failed | None:
        """Wait for a command; when none comes for a while, save what the slots hold and wait on."""
        if not self._inbox.empty() or self._scheduler is None:
            return self._inbox.get()
        try:
            return self._inbox.get(timeout=_IDLE_S)
        except queue.Empty:
            self._scheduler.save()
            return self._inbox.get()

    def _handle(self, command: Command | Failed) -> list[Event]:
        if isinstance(command, Failed):
            return [command]
        if isinstance(command, Load):
            return self._load(command.params)
        if isinstance(command, ListDevices):
            return [_list_devices()]
        return self._handle_request(command)

    def _handle_request(self, command: Command) -> list[Event]:
        if self._scheduler is None or self._engine is None:
            if isinstance(command, Generate):
                return [Failed.of(EngineError("no model is loaded"), command.id)]
            return []
        if isinstance(command, Generate):
            return self._scheduler.submit(command)
        if isinstance(command, Cancel):
            self._engine.resume()
            return self._scheduler.cancel(command.id)
        if isinstance(command, AnswerNow):
            self._scheduler.answer_now(command.id)
        return []

    def _load(self, params: LoadParams) -> list[Event]:
        started = time.perf_counter()
        if self._engine is not None:
            return [Failed.of(EngineError("this worker holds a model already"))]
        try:
            self._engine = _open_engine(params, self._tell_loading)
            self._scheduler = Scheduler(self._engine, time.perf_counter, _open_saved(params, self._engine))
        except EdgeQwenError as error:
            self._close_engine()  # its template may be what is wrong
            return [Failed.of(error)]
        ready = Ready(
            load_s=time.perf_counter() - started,
            n_ctx=self._engine.n_ctx,
            n_slots=self._engine.n_slots,
            n_vocab=self._engine.n_vocab,
            architecture=self._engine.architecture,
            has_template=self._engine.template is not None,
            rss_bytes=resident_bytes(),
            n_gpu_layers=self._engine.n_gpu_layers,
            notices=self._engine.notices,
        )
        return [ready]

    _told = 0.0

    def _tell_loading(self, progress: float) -> bool:
        """Send progress at most fifty times per load; return False to give the load up."""
        if progress < self._told:
            self._told = 0.0  # it loads anew, with fewer layers on the GPU
        if progress >= 1 or progress - self._told >= 0.02:
            self._told = progress
            self._send([Loading(progress=progress)])
        return not self._closing.is_set()

    def _close_engine(self) -> None:
        if self._engine:
            self._engine.close()
            self._engine = None

    def _send(self, events: list[Event]) -> None:
        if events:
            self._events.write(b"".join(map(encode, events)))
            self._events.flush()

    def _read(self) -> None:
        """Queue commands as they come; on the reader's thread."""
        frames = FrameReader()
        try:
            while data := os.read(self._commands.fileno(), 1 << 16):
                for body in frames.feed(data):
                    self._take(body)
        except (OSError, EngineError):
            traceback.print_exc()
        finally:
            self._closing.set()
            self._deliver(Close())
            threading.Event().wait(_PATIENCE_S)
            os._exit(1)  # the engine did not come back; nobody is left who could be told

    def _take(self, body: bytes) -> None:
        """Queue one command; one that makes no sense is answered, and the pipe goes on."""
        try:
            self._deliver(decode_command(body))
        except InvalidInput as error:
            self._inbox.put(Failed.of(error, request_of(body)))

    def _deliver(self, command: Command) -> None:
        # The flag before the command: whoever handles the command lowers the flag, so it never stays up.
        if self._engine is not None and self._scheduler is not None:
            may_abort = isinstance(command, Cancel) and self._scheduler.may_abort(command.id)
            if may_abort or isinstance(command, Close):
                self._engine.abort()
        self._inbox.put(command)


def _list_devices() -> Event:
    try:
        from edgeqwen.worker.devices import list_devices, list_features  # loads llama.cpp

        return Devices(devices=list_devices(), features=list_features())
    except EdgeQwenError as error:
        return Failed.of(error)


def _open_saved(params: LoadParams, engine: Engine) -> SavedStates | None:
    """Return the saved states that fit this engine: same model, version, KV types and context."""
    if params.saved is None or params.saved.max_bytes <= 0:
        return None
    kv_types = f"{params.kv_type}/{params.kv_type_v or params.kv_type}"
    key = f"{params.saved.model} {engine.version} {kv_types} {params.n_ctx}"
    return SavedStates(Path(params.saved.folder), key, params.saved.max_bytes, engine.n_slots)


def _open_engine(params: LoadParams, on_progress: Callable[[float], bool]) -> Engine:
    """Open the engine that was asked for; only that one is imported."""
    if params.engine == "scripted":
        from edgeqwen.worker.scripted import ScriptedEngine

        return ScriptedEngine(params, on_progress)
    from edgeqwen.worker.llama import LlamaEngine

    return LlamaEngine(params, on_progress)
