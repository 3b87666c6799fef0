"""Lets `python -m edgeqwen` be `edgeqwen`."""

from edgeqwen.cli.main import main

main()
