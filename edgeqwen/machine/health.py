"""What a check says, and what all of them together mean. Data only: who checks what stands in doctor.py."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "fail"]
Status = Literal["healthy", "degraded", "unhealthy"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: State
    says: str
    """What was found, in a few words."""
    todo: str = ""
    """What to do about it; empty where nothing has to be done."""


def status_of(checks: Iterable[Check]) -> Status:
    """Return healthy when all is ok, unhealthy when something fails, else degraded."""
    states = {check.state for check in checks}
    return "unhealthy" if "fail" in states else "degraded" if "warn" in states else "healthy"
