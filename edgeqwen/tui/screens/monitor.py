"""The live monitor over the whole screen, with plots."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Footer

from edgeqwen.tui.language import _
from edgeqwen.tui.widgets.monitor import MonitorView, Record
from edgeqwen.tui.widgets.status import Gauge


class MonitorScreen(Screen[None]):
    """Esc or F3 goes back."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f3,q", "app.pop_screen", "Back")]

    def __init__(self, gauge: Gauge, record: Record, *, plots: bool) -> None:
        super().__init__()
        self._gauge, self._record, self._plots = gauge, record, plots
        self.sub_title = _("monitor")

    def compose(self) -> ComposeResult:
        yield MonitorView(plots=self._plots)
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        self.draw()

    def draw(self) -> None:
        """Show the latest; called once a second."""
        self.query_one(MonitorView).draw(self._gauge, self._record)
