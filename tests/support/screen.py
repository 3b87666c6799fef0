"""The full-screen program on a pseudo-terminal, and what a terminal would show of it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from pathlib import Path

import pyte

PROGRAM = [sys.executable, "-m", "edgeqwen"]


class ScreenTerminal:
    """A terminal emulator around the program; leaves no process behind."""

    def __init__(
        self, *arguments: str | Path, size: tuple[int, int] = (100, 30), env: dict[str, str] | None = None
    ) -> None:
        self.raw = bytearray()
        self._screen = pyte.Screen(*size)
        self._stream = pyte.ByteStream(self._screen)
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execve(sys.executable, [*PROGRAM, *map(str, arguments)], {**os.environ, **(env or {})})
        self.resize(*size)

    def __enter__(self) -> ScreenTerminal:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(self._fd)

    def resize(self, columns: int, rows: int) -> None:
        """Make the window another size, as dragging its corner does."""
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._screen.resize(rows, columns)

    def type(self, text: str) -> None:
        """Send keys; "\\r" is Enter and "\\x11" Ctrl-Q."""
        os.write(self._fd, text.encode())

    @property
    def text(self) -> str:
        """What the screen shows."""
        return "\n".join(line.rstrip() for line in self._screen.display)

    def wait_for(self, pattern: str, seconds: float = 30) -> float:
        """Read until the screen shows `pattern`; return the seconds it took."""
        started = time.perf_counter()
        while not re.search(pattern, self.text):
            left = seconds - (time.perf_counter() - started)
            assert left > 0, f"{pattern!r} did not come; the screen shows:\n{self.text}"
            assert self.read(min(left, 1.0)), f"the program ended before {pattern!r} came:\n{self.text}"
        return time.perf_counter() - started

    def read(self, seconds: float) -> bool:
        """Take what the program draws within a time; False at its end."""
        if not select.select([self._fd], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self._fd, 1 << 16)
        except OSError:  # Linux says so when the other side is closed
            return False
        self.raw += data
        self._stream.feed(re.sub(rb"\x1b\[[<>=?][\d;]*[a-zA-Z]", b"", data))  # modes that pyte does not know
        return bool(data)

    def end(self, seconds: float = 30) -> int:
        """Read to the end of the program and return its exit code."""
        deadline = time.monotonic() + seconds
        while self.read(max(0.0, deadline - time.monotonic())):
            assert time.monotonic() < deadline, f"it goes on:\n{self.text}"
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
