"""Small questions over the screen: yes or no, one line, several lines. Each gives its answer and goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static

from edgeqwen.text import clean_line
from edgeqwen.tui.language import _


class Line(Input):
    """One line to type into; what is pasted loses its control characters."""

    def __init__(self, value: str = "", *, name: str | None = None, placeholder: str = "") -> None:
        super().__init__(clean_line(value, 10_000), name=name, placeholder=placeholder, compact=True)
        self.cursor_blink = False

    def _on_paste(self, event: events.Paste) -> None:
        event.prevent_default()
        event.stop()
        self.insert_text_at_cursor(clean_line(event.text, 10_000))


class Confirm(ModalScreen[bool]):
    """A question with yes and no; Esc is no."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,n", "answer(False)", show=False),
        Binding("y", "answer(True)", show=False),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(self._question, markup=False)
            with Horizontal(classes="buttons"):
                yield Button(_("Yes (y)"), id="yes", variant="primary")
                yield Button(_("No (n)"), id="no")

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")

    def action_answer(self, answer: bool) -> None:
        self.dismiss(answer)


class Form(ModalScreen[dict[str, str] | None]):
    """Lines to fill in; Enter on the last one takes them, Esc takes nothing."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", show=False)]

    def __init__(self, title: str, fields: Mapping[str, str]) -> None:
        """Ask for each of `fields`, which holds what stands there in the beginning."""
        super().__init__()
        self._title, self._fields = title, dict(fields)

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(self._title, classes="title", markup=False)
            for name, value in self._fields.items():
                yield Static(name, classes="label", markup=False)
                yield Line(value, name=name)
            yield Static(_("Enter takes it · Esc leaves"), classes="hint", markup=False)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        fields = list(self.query(Input))
        if event.input is fields[-1]:
            self.dismiss({str(field.name): field.value for field in fields})
        else:
            self.focus_next()

    def action_leave(self) -> None:
        self.dismiss(None)
