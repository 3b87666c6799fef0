"""A list to choose from, with a line that narrows it down: models, chats, presets, settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen, ScreenResultType
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from edgeqwen.text import clean, clean_line
from edgeqwen.tui.screens.dialogs import Line


class Row(NamedTuple):
    """One line of a list."""

    key: str
    """What tells it from the others; a heading has none."""
    text: str
    note: str = ""
    """Shown dim behind the text."""


class Chooser(ModalScreen[ScreenResultType]):
    """Type to narrow down, arrows to move, Enter to choose, Esc to leave."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Close"),
        Binding("down", "move(1)", show=False),
        Binding("up", "move(-1)", show=False),
        Binding("pagedown", "move(10)", show=False),
        Binding("pageup", "move(-10)", show=False),
    ]
    placeholder = ""

    def compose(self) -> ComposeResult:
        with Vertical(classes="chooser"):
            yield Static(self.heading(), classes="title", markup=False)
            yield Line(placeholder=self.placeholder)
            yield OptionList(markup=False, compact=True)
            yield Static("", id="detail", markup=False)
            yield Static(self.hint(), classes="hint", markup=False)

    def heading(self) -> str:
        """Return the title."""
        return ""

    def hint(self) -> str:
        """Return the keys."""
        return ""

    def detail(self, key: str) -> str:
        """Return more about a row, for the line under the list; `key` is empty for none."""
        return ""

    def choose(self, key: str) -> object:
        """Enter was pressed on a row."""

    def show_rows(self, rows: Sequence[Row]) -> None:
        """Put rows into the list; the one that was highlighted stays so, or the one now in its place."""
        view, before = self.query_one(OptionList), self.key
        place = (view.highlighted or 0) if before else 0
        width = max(20, view.size.width - 2 or 60)
        options = [Option(_prompt(row, width), id=row.key or None, disabled=not row.key) for row in rows]
        view.set_options(options)
        keys = [row.key for row in rows]
        selectable = [index for index, key in enumerate(keys) if key]
        near = next((index for index in selectable if index >= place), selectable[-1] if selectable else None)
        view.highlighted = keys.index(before) if before and before in keys else near

    @property
    def key(self) -> str | None:
        """The key of the highlighted row."""
        view = self.query_one(OptionList)
        if view.highlighted is None:
            return None
        return view.get_option_at_index(view.highlighted).id

    @property
    def filter(self) -> str:
        """What was typed."""
        return self.query_one(Input).value

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if self.key:
            self.choose(self.key)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        if event.option.id:
            self.choose(event.option.id)

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        self.query_one("#detail", Static).update(clean(self.detail(event.option.id or "")))

    def on_mount(self, _event: events.Mount) -> None:
        self.query_one(Input).focus()

    def action_leave(self) -> None:
        self.dismiss()

    def action_move(self, step: int) -> None:
        view = self.query_one(OptionList)
        move = view.action_cursor_down if step > 0 else view.action_cursor_up
        for _index in range(abs(step)):
            move()


def _prompt(row: Row, width: int) -> Content:
    row = row._replace(text=clean(row.text), note=clean_line(row.note))
    if not row.key:
        return Content(row.text).stylize("bold")
    text, note = Content(row.text), Content(row.note)
    if not row.note:
        return text.truncate(width, ellipsis=True)
    # A long text leaves a third to the note; a long note takes what the text leaves.
    room = max(width - text.cell_length - 2, min(note.cell_length, width // 3))
    note = note.truncate(room, ellipsis=True)
    text = text.truncate(width - note.cell_length - 2, ellipsis=True)
    return text + Content(" " * (width - text.cell_length - note.cell_length)) + note.stylize("dim")
