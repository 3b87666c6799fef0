"""Runs the program as people do: as a process, with pipes or on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = (sys.executable, "-m", "edgeqwen")


@dataclass(frozen=True)
class Done:
    """What one run came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on stdout; anything else there is a fault."""
        return json.loads(self.out)


def edgeqwen(
    *arguments: str | Path, stdin: str | bytes | None = None, env: dict[str, str] | None = None
) -> Done:
    """Run the program to its end, with stdin empty unless given."""
    done = subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        input=stdin.encode() if isinstance(stdin, str) else stdin or b"",
        capture_output=True,
        env={**os.environ, **(env or {})},
        timeout=60,
        check=False,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def is_one_sentence(err: str) -> bool:
    """Say whether stderr is one error sentence, a hint at most, and nothing of Python's."""
    lines = [line for line in err.splitlines() if line and not line.startswith("note: ")]
    sentence = len(lines) > 0 and lines[0].startswith("error: ") and not lines[0].endswith(".")
    hint = len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: "))
    return sentence and hint and "Traceback" not in err


class Terminal:
    """The program on a pseudo-terminal; leaves no process behind."""

    def __init__(self, *arguments: str | Path, env: dict[str, str] | None = None) -> None:
        self.seen = ""
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            os.execve(sys.executable, [*PROGRAM, *map(str, arguments)], {**os.environ, **(env or {})})

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        try:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass

    def type(self, text: str) -> None:
        """Send keys; "\\x03" is Ctrl-C and "\\x04" Ctrl-D."""
        os.write(self._fd, text.encode())

    def interrupt(self, pattern: str) -> None:
        """Press Ctrl-C until `pattern` comes: CPython's input() sleeps on when one hits it as it begins."""
        for _ in range(5):
            self.type("\x03")
            try:
                self.wait_for(pattern, seconds=4)
                return
            except TimeoutError:
                continue
        self.wait_for(pattern)

    def wait_for(self, pattern: str, seconds: float = 20) -> str:
        """Read until `pattern` shows up after what was waited for before; return the text up to its end."""
        deadline = time.monotonic() + seconds
        while not (match := re.search(pattern, self.seen)):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"{pattern!r} did not come; the terminal shows {self.seen!r}")
            if not self._read(left):
                raise EOFError(f"the program ended before {pattern!r} came: {self.seen!r}")
        text, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return text

    def end(self, seconds: float = 20) -> int:
        """Read to the end of the program and return its exit code."""
        deadline = time.monotonic() + seconds
        while self._read(deadline - time.monotonic()):
            assert time.monotonic() < deadline, f"it goes on: {self.seen!r}"
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def _read(self, seconds: float) -> bool:
        """Read what comes within a time; False at the end."""
        if not select.select([self._fd], [], [], max(seconds, 0))[0]:
            return True
        try:
            data = os.read(self._fd, 1 << 16)
        except OSError:  # Linux says so when the other side is closed
            return False
        self.seen += data.decode("utf-8", "replace")
        return bool(data)
