"""What one run of the command line works with. Decides nothing; verbs take from it what they pass on."""

from __future__ import annotations

from edgeqwen.models.library import Library


class Invocation(Library):
    """Made once per process, before the command line is read."""

    as_json = False
    """Set by --json."""
