"""Downloads one after another, on a thread of their own: paused, resumed and cancelled from outside.

What a download has got stays in its part file, so that pausing is stopping and resuming is starting again.
Prints nothing and asks nobody: licences are the front end's matter.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from edgeqwen.models.library import Library
from edgeqwen.models.pull import Plan, PullWatch, pull
from edgeqwen.models.sources import Sources

State = Literal["waiting", "running", "paused", "done", "failed", "cancelled"]
_WINDOW_S = 8.0


class _Stopped(Exception):
    """Raised inside a pull to leave it."""


@dataclass(eq=False)
class Download:
    """One pull and how far it is."""

    plan: Plan
    state: State = "waiting"
    done: int = 0
    """Bytes of all files that are here."""
    message: str = ""
    """The last trouble, or why it failed."""
    marks: deque[tuple[float, int]] = field(default_factory=deque)

    @property
    def ref(self) -> str:
        """What is downloaded, as `model:quant`."""
        return self.plan.ref

    @property
    def rate(self) -> float | None:
        """Bytes per second over the last seconds."""
        if self.state != "running" or len(self.marks) < 2:
            return None
        (then, before), (now, done) = self.marks[0], self.marks[-1]
        return (done - before) / (now - then) if now > then and done > before else None

    @property
    def seconds_left(self) -> float | None:
        """At the rate of the last seconds; None when there is none."""
        rate = self.rate
        return (self.plan.size - self.done) / rate if rate else None


class PullQueue:
    """All downloads of one program; they end with it and go on in the next one."""

    def __init__(self, library: Library, sources: Sources) -> None:
        self._library, self._sources = library, sources
        self._downloads: list[Download] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def downloads(self) -> list[Download]:
        """All of this run, in the order they were asked for."""
        return list(self._downloads)

    @property
    def is_busy(self) -> bool:
        """Whether anything runs or waits."""
        return any(one.state in ("running", "waiting") for one in self._downloads)

    def find(self, ref: str) -> Download | None:
        """Return the newest download of a ref."""
        return next((one for one in reversed(self._downloads) if one.ref == ref), None)

    def add(self, plan: Plan) -> Download:
        """Put a pull at the end of the queue; one that is there already goes on."""
        with self._changed:
            known = self.find(plan.ref)
            if known and known.state in ("waiting", "running", "paused"):
                self.resume(known)
                return known
            download = Download(plan, done=plan.n_held(self._library.store))
            self._downloads.append(download)
            self._wake()
            return download

    def pause(self, download: Download) -> None:
        """Stop a download; what was got stays."""
        self._set(download, "paused")

    def resume(self, download: Download) -> None:
        """Go on with a download that was paused or has failed."""
        with self._changed:
            if download.state in ("paused", "failed"):
                download.state, download.message = "waiting", ""
                self._wake()

    def cancel(self, download: Download) -> None:
        """Take a download out of the queue; its part stays until `prune`."""
        self._set(download, "cancelled")

    def close(self) -> None:
        """Stop everything and wait for the one that runs, which looks up with each block of bytes."""
        for download in self._downloads:
            if download.state in ("waiting", "running"):
                self._set(download, "paused")
        if self._thread:
            self._thread.join(5)

    def _set(self, download: Download, state: State) -> None:
        with self._changed:
            if download.state in ("waiting", "running", "paused", "failed"):
                download.state = state
                self._changed.notify_all()

    def _wake(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, name="pulls", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                download = next((one for one in self._downloads if one.state == "waiting"), None)
                if download is None:
                    self._thread = None
                    return
                download.state = "running"
                download.marks.clear()
            self._pull(download)

    def _pull(self, download: Download) -> None:
        def on_bytes(done: int, _total: int) -> None:
            self._check(download)
            now = time.monotonic()
            download.done = done
            download.marks.append((now, done))
            while now - download.marks[0][0] > _WINDOW_S:
                download.marks.popleft()

        def on_trouble(sentence: str) -> None:
            download.message = sentence
            self._check(download)

        watch = PullWatch(on_bytes=on_bytes, on_trouble=on_trouble, on_wait=on_bytes)
        try:
            entry = pull(download.plan, self._library.store, self._sources, watch)
            self._library.stamps.put(entry)
            download.done, download.state, download.message = download.plan.size, "done", ""
        except _Stopped:
            pass
        except Exception as error:  # noqa: BLE001 - whatever it is: who waits must hear of it
            with self._changed:
                if download.state == "running":
                    download.state, download.message = "failed", str(error) or type(error).__name__

    @staticmethod
    def _check(download: Download) -> None:
        if download.state != "running":
            raise _Stopped
