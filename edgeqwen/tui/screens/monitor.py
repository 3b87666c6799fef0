"""The live monitor over the whole screen, with plots, and what doctor finds."""

from __future__ import annotations

from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Footer, Static

from edgeqwen.doctor import examine
from edgeqwen.machine.health import status_of
from edgeqwen.models.library import Library
from edgeqwen.text import clean
from edgeqwen.tui.language import _
from edgeqwen.tui.widgets.monitor import MonitorView, Record
from edgeqwen.tui.widgets.status import Gauge


class MonitorScreen(Screen[None]):
    """Esc or F3 goes back."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f3,q", "app.pop_screen", "Back")]

    def __init__(self, gauge: Gauge, record: Record, library: Library, *, plots: bool) -> None:
        super().__init__()
        self._gauge, self._record, self._library = gauge, record, library
        self._view = MonitorView(plots=plots)
        self.sub_title = _("monitor")

    def compose(self) -> ComposeResult:
        yield self._view
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        self.draw()
        health = Static(_("looking for what is wrong…"), id="health", markup=False)
        self._view.can_focus = True  # so that keys scroll it
        self._view.focus()
        self._view.mount(health)
        self.show_health()

    @work
    async def show_health(self) -> None:
        """Say what doctor finds, the faults first."""
        checks = await examine(self._library)
        order = {"fail": 0, "warn": 1, "ok": 2}
        lines = [_("health: {status}").format(status=status_of(checks)), ""]
        for check in sorted(checks, key=lambda check: order[check.state]):
            lines.append(f"{check.state.ljust(4)}  {check.name}: {check.says}")
            lines += [f"      → {check.todo}"] if check.todo else []
        self.query_one("#health", Static).update(clean("\n".join(lines)))

    def draw(self) -> None:
        """Show the latest; called once a second, also while the screen comes or goes."""
        self._view.draw(self._gauge, self._record)
