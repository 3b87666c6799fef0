"""Where the program starts: `edgeqwen`, and `python -m edgeqwen`.

Ctrl-C while the rest is still being imported ends the process as the system would, without Python's trace.
"""

import signal


def main() -> None:
    """Import the program and run it."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from edgeqwen.cli.main import main as run

    signal.signal(signal.SIGINT, before)
    run()


if __name__ == "__main__":
    main()
