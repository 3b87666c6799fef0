"""All chats, newest first, found by what was said in them as it is typed.

Reads and changes the history; opening a chat is its caller's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import ClassVar

from textual import work
from textual.binding import Binding, BindingType

from edgeqwen.chat.exchange import import_chats
from edgeqwen.chat.history import Chat, History
from edgeqwen.errors import EdgeQwenError
from edgeqwen.paths import expand
from edgeqwen.tui.language import _
from edgeqwen.tui.screens.chooser import Chooser, Row
from edgeqwen.tui.screens.dialogs import Form

_DELAY_S = 0.15
_SHOWN = 300


class HistoryScreen(Chooser[int | None]):
    """Enter opens a chat."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f2", "rename", "Rename", priority=True),
        Binding("ctrl+d", "delete", "Delete", priority=True),
        Binding("ctrl+z", "undo", "Undo", priority=True),
        Binding("ctrl+t", "pin", "Pin", priority=True),
        Binding("f6", "import_chats", "Import"),
    ]

    def __init__(self, history: History, current: int | None) -> None:
        super().__init__()
        self._history, self._current = history, current
        self._chats: dict[str, Chat] = {}
        self._found = ""
        """The words whose chats are shown."""
        self.placeholder = _("words to look for")

    def heading(self) -> str:
        return _("Chats")

    def hint(self) -> str:
        return _("Enter open · F2 rename · Ctrl+D delete · Ctrl+Z undo · Ctrl+T pin · F6 import · Esc back")

    def on_show(self) -> None:
        self.search(0)

    def on_input_changed(self) -> None:
        self.search(_DELAY_S)

    @work(exclusive=True, group="search")
    async def search(self, delay_s: float) -> None:
        """Show the chats with the words that were typed, once typing pauses."""
        if delay_s:
            await asyncio.sleep(delay_s)
        await self._search()

    async def _search(self) -> None:
        words = self.filter
        with self._telling():
            found = await asyncio.to_thread(self._history.search, words, _SHOWN)
            self._found = words
            self._chats = {str(chat.id): chat for chat in found}
            self._draw(found)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Tell what the history refuses."""
        try:
            yield
        except EdgeQwenError as error:
            self.notify(error.message, severity="error")

    def _draw(self, chats: list[Chat]) -> None:
        rows: list[Row] = []
        day = ""
        for chat in chats:
            when = datetime.fromtimestamp(chat.updated, UTC).astimezone()
            heading = _("pinned") if chat.is_pinned else _day(when.date())
            if heading != day:
                day = heading
                rows.append(Row("", heading))
            mark = "● " if chat.id == self._current else "  "
            note = f"{chat.n_messages} · {when:%H:%M}"
            rows.append(Row(str(chat.id), mark + chat.title, note))
        self.show_rows(rows or [Row("", _("no chats yet") if not self.filter else _("nothing was found"))])

    @work
    async def choose(self, key: str) -> None:
        if self._found != self.filter:  # Enter came before the search for the last letters
            await self._search()
            key = self.key or ""
        if key:
            self.dismiss(int(key))

    def _chat(self) -> Chat | None:
        return self._chats.get(self.key or "")

    @work
    async def action_rename(self) -> None:
        if chat := self._chat():
            field = _("Title")
            answer = await self.app.push_screen_wait(Form(_("Rename the chat"), {field: chat.title}))
            if answer and answer[field].strip():
                with self._telling():
                    await asyncio.to_thread(self._history.rename, chat.id, answer[field])
                await self._search()

    @work
    async def action_delete(self) -> None:
        if chat := self._chat():
            with self._telling():
                await asyncio.to_thread(self._history.delete, chat.id)
                self.notify(_("deleted “{title}”; Ctrl+Z brings it back").format(title=chat.title))
            await self._search()

    @work
    async def action_undo(self) -> None:
        with self._telling():
            await asyncio.to_thread(self._history.restore)
        await self._search()

    @work
    async def action_pin(self) -> None:
        if chat := self._chat():
            with self._telling():
                await asyncio.to_thread(self._history.pin, chat.id, is_pinned=not chat.is_pinned)
            await self._search()

    @work
    async def action_import_chats(self) -> None:
        field = _("File: edgeqwen's JSON, or conversations.json of a ChatGPT export")
        answer = await self.app.push_screen_wait(Form(_("Import chats"), {field: ""}))
        if not answer or not answer[field].strip():
            return
        try:
            path: Path = expand(answer[field].strip())
            n_chats = await asyncio.to_thread(import_chats, path, self._history)
            self.notify(_("{n} chats were imported").format(n=n_chats))
        except EdgeQwenError as error:
            self.notify(error.message, severity="error", timeout=15)
        self.search(0)


def _day(when: date) -> str:
    today = datetime.now().astimezone().date()
    if when == today:
        return _("today")
    return _("yesterday") if when == today - timedelta(days=1) else when.isoformat()
