"""Starts the worker: `python -m edgeqwen.worker`, with frames on stdin and stdout and the log on stderr."""

from __future__ import annotations

import os
import sys
from contextlib import suppress


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
    from edgeqwen.worker.confine import confine

    if not confine():
        with suppress(OSError):  # the disk of the log may be full
            sys.stderr.write("this system cannot shut off sockets; going on without\n")
    from edgeqwen.worker.main import Worker

    with os.fdopen(commands, "rb", buffering=0) as reader, os.fdopen(events, "wb") as writer:
        Worker(reader, writer).run()
        # The reader's thread still waits on the pipe; flush and go without asking it.
        writer.flush()
        with suppress(OSError):
            sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
