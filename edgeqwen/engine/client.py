"""The front ends' side of the pipe: starts a worker, asks it, and says so when it is gone.

Async throughout. Owns the process and its log file; knows nothing of llama.cpp, conversations or screens.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from signal import Signals

from edgeqwen.engine.frames import FrameReader, decode_event, encode
from edgeqwen.engine.protocol import (
    AnswerNow,
    Cancel,
    Close,
    Command,
    Devices,
    Event,
    Failed,
    Finished,
    Generate,
    ListDevices,
    Load,
    Loading,
    LoadParams,
    Ready,
)
from edgeqwen.errors import EdgeQwenError, EngineError, StoreError, WorkerLost
from edgeqwen.text import clean_line

_KEPT_LOGS = 10
_LOG_TAIL_LINES = 5
_GRACE_S = 35.0  # the worker may have a large KV cache to put on disk


class WorkerClient:
    """One worker process with one loaded model; use as an async context manager."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._log_file: Path | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._inboxes: dict[int | None, asyncio.Queue[Event]] = {}
        self._lost: WorkerLost | None = None
        self._last_id = 0

    async def __aenter__(self) -> WorkerClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def pid(self) -> int | None:
        """The worker's; None while none runs."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start the process without a model, so that it gets ready while the caller checks the file.

        Raises StoreError when the log cannot be written.
        """
        self._log_file = _new_log(self._logs)
        with self._log_file.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # the current folder may hold anybody's files
                "-m",
                "edgeqwen.worker",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the front end, which then cancels
            )
        self._reader = asyncio.create_task(self._read())

    async def load(self, params: LoadParams, on_progress: Callable[[float], None] = lambda _: None) -> Ready:
        """Load a model, starting the process if need be. Raises LoadFailed, WorkerLost."""
        if self._process is None:
            await self.start()
        inbox = self._inboxes[None] = asyncio.Queue()
        await self._send(Load(params=params))
        while True:
            event = await self._next(inbox)
            if isinstance(event, Loading):
                on_progress(event.progress)
            elif isinstance(event, Ready):
                return event
            elif isinstance(event, Failed):
                raise event.error()

    async def devices(self) -> Devices:
        """Return what llama.cpp can compute on here, starting the process if need be. Raises EngineError."""
        if self._process is None:
            await self.start()
        inbox = self._inboxes[None] = asyncio.Queue()
        await self._send(ListDevices())
        event = await self._next(inbox)
        if isinstance(event, Failed):
            raise event.error()
        assert isinstance(event, Devices)
        return event

    def next_id(self) -> int:
        """Return a new request id."""
        self._last_id += 1
        return self._last_id

    async def generate(self, request: Generate) -> AsyncGenerator[Event]:
        """Yield what the worker says to a request, up to and with its Finished frame.

        Raises the request's own error (ContextOverflow, EngineBusy ...) or WorkerLost. Leaving early cancels.
        """
        inbox = self._inboxes[request.id] = asyncio.Queue()
        closed = False
        try:
            await self._send(request)
            while not closed:
                event = await self._next(inbox)
                closed = isinstance(event, Finished | Failed)
                if isinstance(event, Failed):
                    raise event.error()
                yield event
        finally:
            del self._inboxes[request.id]
            if not closed and self._lost is None:
                with contextlib.suppress(WorkerLost):
                    await self.cancel(request.id)

    async def cancel(self, request: int) -> None:
        """Ask for a request to end; its Finished frame still comes. Raises WorkerLost."""
        await self._send(Cancel(id=request))

    async def answer_now(self, request: int) -> None:
        """Close the thinking of a request; it goes on with its answer. Raises WorkerLost."""
        await self._send(AnswerNow(id=request))

    async def close(self) -> None:
        """End the process, in good order if it ends within 35 seconds."""
        if self._process is None:
            return
        with contextlib.suppress(WorkerLost):
            await self._send(Close())
        if self._process.stdin:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), _GRACE_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        if self._reader:
            await self._reader

    async def _send(self, command: Command) -> None:
        if self._lost:
            raise self._lost
        if self._process is None or self._process.stdin is None:
            raise EngineError("no worker is running")
        try:
            self._process.stdin.write(encode(command))
            await self._process.stdin.drain()
        except (ConnectionError, RuntimeError):
            if self._reader:
                await self._reader  # it says with what status the process ended
            raise (self._lost or WorkerLost("the worker process is gone")) from None

    async def _next(self, inbox: asyncio.Queue[Event]) -> Event:
        if self._lost and inbox.empty():
            raise self._lost
        event = await inbox.get()
        if isinstance(event, Failed) and event.code == WorkerLost.code and self._lost:
            raise self._lost
        return event

    async def _read(self) -> None:
        """Hand each frame to whoever waits for it; when the pipe closes, tell all of them."""
        assert self._process is not None
        assert self._process.stdout is not None
        frames = FrameReader()
        is_understood = True
        try:
            while data := await self._process.stdout.read(1 << 16):
                for body in frames.feed(data):
                    event = decode_event(body)
                    inbox = self._inboxes.get(getattr(event, "id", None))
                    if inbox is not None:
                        inbox.put_nowait(event)
        except EdgeQwenError:
            self._process.kill()
            is_understood = False
        status = await self._process.wait()
        self._lost = self._describe(status if is_understood else None)
        for inbox in self._inboxes.values():
            inbox.put_nowait(Failed.of(self._lost))

    def _describe(self, status: int | None) -> WorkerLost:
        tail = _tail(self._log_file) if self._log_file else ()
        if status is None:
            how = "speaks another protocol than this program, as after an update; start edgeqwen again"
        elif status >= 0:
            how = f"ended with status {status}"
        elif -status == 9:
            how = "was killed (signal 9), as the system does when memory runs out"
        else:
            how = f"crashed ({_signal_name(-status)})"
        return WorkerLost(
            f"the engine process {how}", exit_status=status, log_tail=tail, log_file=str(self._log_file)
        )


def _signal_name(number: int) -> str:
    try:
        return Signals(number).name
    except ValueError:
        return f"signal {number}"


def _new_log(folder: Path) -> Path:
    """Make a log file for one worker and drop the oldest of more than ten. Raises StoreError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        old = sorted(folder.glob("worker-*.log"), key=_changed)
        for path in old[: max(0, len(old) - _KEPT_LOGS + 1)]:
            path.unlink(missing_ok=True)
        handle, name = tempfile.mkstemp(prefix="worker-", suffix=".log", dir=folder)
    except OSError as error:
        message = f"cannot write a log in {folder}: {error.strerror}"
        is_refused = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        raise StoreError(message, str(folder), "no_permission" if is_refused else "io") from error
    os.close(handle)
    return Path(name)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0  # another start has just dropped it


def _tail(log: Path) -> tuple[str, ...]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ()
    return tuple(clean_line(line) for line in lines if line.strip())[-_LOG_TAIL_LINES:]
