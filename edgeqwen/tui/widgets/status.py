"""The line that is always there: model, rate, context, memory. The most important stands first.

Draws a Gauge; measures nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from textual.widgets import Static

from edgeqwen.engine.protocol import Stats
from edgeqwen.machine.monitor import Sample
from edgeqwen.text import clean_line
from edgeqwen.tui.language import _


@dataclass
class Gauge:
    """The latest of everything that is shown live."""

    model: str = ""
    activity: str = ""
    """What is going on, in a few words; empty when nothing is."""
    rate: float | None = None
    """Tokens per second of the answer that comes, else of the last one."""
    n_ctx: int = 0
    n_context: int = 0
    """Tokens of the context in use."""
    kv_bytes: int = 0
    """What the KV cache of the whole context takes."""
    sample: Sample | None = None
    downloads: str = ""
    advice: tuple[str, ...] = ()
    """What is wrong and what to do, the worst first."""

    def count(self, stats: Stats) -> None:
        """Take the counters of a finished answer."""
        self.n_context = stats.prompt_tokens + stats.completion_tokens
        self.rate = stats.decode_tps or self.rate


class Progress:
    """Tells in the gauge what is being done, how much of it is done, and the seconds left."""

    def __init__(self, gauge: Gauge) -> None:
        self._gauge, self._stage, self._began = gauge, "", 0.0

    def __call__(self, what: str, share: float) -> None:
        if what != self._stage:
            self._stage, self._began = what, time.monotonic()
        elapsed = time.monotonic() - self._began
        left = f", {elapsed / share - elapsed:.0f} s" if share > 0.05 and elapsed > 1 else ""
        self._gauge.activity = f"{what} {100 * share:.0f}%{left}"


class StatusBar(Static):
    """One row at the top."""

    def __init__(self) -> None:
        super().__init__("", id="status", markup=False)
        self._shown = ""

    def draw(self, gauge: Gauge) -> None:
        """Show a gauge, cut off at the right where the terminal is narrow."""
        parts = [gauge.model or _("no model"), gauge.activity]
        if gauge.rate:
            parts.append(f"{gauge.rate:.1f} tok/s")
        if gauge.n_ctx:
            parts.append(_("ctx {n}%").format(n=100 * gauge.n_context // gauge.n_ctx))
        if sample := gauge.sample:
            if sample.worker:
                parts.append(f"{megabytes(sample.worker.rss)}")
            parts.append(_("{n} free").format(n=megabytes(sample.available)))
        parts += [gauge.downloads, f"! {gauge.advice[0]}" if gauge.advice else ""]
        text = clean_line(" · ".join(filter(None, parts)), 500)
        if text != self._shown:
            self._shown = text
            self.update(text)


def megabytes(n_bytes: float) -> str:
    """Return bytes as 694 MB or 1.2 GB (1 GB is 10^9 bytes)."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


def bar(share: float, width: int = 20) -> str:
    """Return a bar filled to `share`, 0 to 1."""
    filled = round(min(max(share, 0.0), 1.0) * width)
    return "█" * filled + "░" * (width - filled)
