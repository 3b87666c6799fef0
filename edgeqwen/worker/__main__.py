"""Starts the worker: `python -m edgeqwen.worker`, with frames on stdin and stdout and the log on stderr."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer


class _Log(io.FileIO):
    """The log's file; what does not fit on a full disk is lost, and nothing else with it."""

    def write(self, data: Buffer, /) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return memoryview(data).nbytes


def _claim_pipes() -> tuple[int, int]:
    """Take the frame pipes away from the standard streams, which llama.cpp writes to and redirects."""
    commands, events = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return commands, events


def main() -> None:
    """Run one worker until its parent closes the pipe."""
    commands, events = _claim_pipes()
    log = io.BufferedWriter(_Log(2, "wb", closefd=False))
    sys.stderr = io.TextIOWrapper(log, "utf-8", "backslashreplace", line_buffering=True)
    from edgeqwen.worker.confine import confine

    if not confine():
        print("this system cannot shut off sockets; going on without", file=sys.stderr)  # noqa: T201 - the log
    from edgeqwen.worker.main import Worker

    with os.fdopen(commands, "rb", buffering=0) as reader, os.fdopen(events, "wb") as writer:
        Worker(reader, writer).run()
        # The reader's thread still waits on the pipe; flush and go without asking it.
        writer.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
