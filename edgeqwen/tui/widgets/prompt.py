"""Where a message is typed: Enter sends, Ctrl+J breaks the line, and what was sent before comes back with Up.

Large pastes become attachments, a mark in the text that stands for them. Sends nothing by itself.
"""

from __future__ import annotations

import re

from textual import events
from textual.message import Message as Event
from textual.widgets import TextArea

from edgeqwen.text import clean
from edgeqwen.tui.language import _

LARGE = 20_000  # characters; typing in a longer text gets slow
_MARK = re.compile(r"⟦[^⟦⟧]*?#(\d+)⟧")
_KEPT = 200
_NEWLINE = frozenset({"ctrl+j", "newline", "shift+enter", "ctrl+enter", "shift+\r", "ctrl+\r"})


class Prompt(TextArea):
    """The input box of the chat."""

    class Sent(Event):
        """A message is ready."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self, *, enter_sends: bool, blinks: bool) -> None:
        super().__init__(soft_wrap=True, id="prompt")
        self.cursor_blink = blinks
        self.use_enter(sends=enter_sends)
        self._attachments: list[str] = []
        self._sent: list[str] = []
        self._at: int | None = None
        self._given_up: list[str] = []
        self._aside: str | None = None

    def use_enter(self, *, sends: bool) -> None:
        """Let Enter send, or break the line and Ctrl+J send."""
        self.enter_sends, self.placeholder = sends, _placeholder(sends)

    def _press(self, *, is_enter: bool) -> None:
        """Send, or break the line: by Enter or the other key, as the settings say."""
        row, column = self.cursor_location
        ends_in_backslash = (
            is_enter and self.enter_sends and self.document.get_line(row)[:column].endswith("\\")
        )
        if is_enter == self.enter_sends and not ends_in_backslash:
            self._send()
            return
        if ends_in_backslash:
            self.action_delete_left()
        self.insert("\n")

    def put(self, text: str) -> None:
        """Replace the draft, with the cursor at its end."""
        self.text = clean(text)
        self.move_cursor(self.document.end)

    def lay_aside(self, text: str) -> None:
        """Show another text; the draft comes back when that one is sent or given up."""
        if self._aside is None:
            self._aside = self.text
        self.put(text)

    def take_up(self) -> None:
        """Bring back the draft that was laid aside, if one was, before what is there now."""
        draft, self._aside = self._aside, None
        if draft:
            self.put("\n".join(filter(None, (draft, self.text))))

    def give_up(self) -> None:
        """Clear the prompt, or go back to the draft that was laid aside; Up brings back what was there."""
        if self.text:
            self._given_up.append(self.text)
            self._sent, self._at = [*self._sent, self.text][-_KEPT:], None
        self.put("")
        self.take_up()

    def put_back(self, text: str) -> None:
        """Give a message back that could not be sent."""
        self._at = None
        if self._sent and self._sent[-1] == text:
            self._sent.pop()
        self.put(f"{text}\n{self.text}" if self.text else text)

    def remember(self, texts: list[str]) -> None:
        """Take what was sent in this chat before, oldest first; no earlier message is edited any more."""
        self._sent, self._at = [*texts, *self._given_up][-_KEPT:], None
        self.take_up()

    def with_attachments(self, text: str) -> str:
        """Return a message with its attachments in it."""

        def content(match: re.Match[str]) -> str:
            number = int(match[1])
            return self._attachments[number - 1] if 0 < number <= len(self._attachments) else match[0]

        return _MARK.sub(content, text)

    def _send(self) -> None:
        text = self.text
        if not text.strip():
            return
        self._sent = [*self._sent, text][-_KEPT:]
        self._at = None
        self.text = ""
        self.post_message(self.Sent(text))

    async def _on_paste(self, event: events.Paste) -> None:
        event.prevent_default()
        event.stop()
        text = clean(event.text.replace("\r\n", "\n").replace("\r", "\n"))
        if len(text) > LARGE:
            self._attachments.append(text)
            name = _("pasted text, {n} characters").format(n=f"{len(text):,}")
            text = f"⟦{name} #{len(self._attachments)}⟧"
        self.insert(text)

    async def _on_key(self, event: events.Key) -> None:
        # Here and not as a binding: bindings with priority overtake keys that still wait in the queue.
        if event.key in _NEWLINE or event.key == "enter":
            event.prevent_default()
            event.stop()
            self._press(is_enter=event.key == "enter")
            return
        if event.key in ("up", "down") and self._recall(-1 if event.key == "up" else 1):
            event.prevent_default()
            event.stop()
            return
        await super()._on_key(event)

    def _recall(self, step: int) -> bool:
        """Go through what was sent, from an empty prompt on; return whether the key was for that."""
        if self._at is None:
            if self.text or step > 0 or not self._sent:
                return False
            self._at = len(self._sent)
        elif self.text != self._sent[self._at]:
            return False  # it was edited: the arrows move the cursor again
        at = self._at + step
        if at >= len(self._sent):
            self._at = None
            self.put("")
        else:
            self._at = max(0, at)
            self.put(self._sent[self._at])
        return True


def _placeholder(enter_sends: bool) -> str:
    if enter_sends:
        return _("Message · Enter sends · Ctrl+J newline")
    return _("Message · Ctrl+J sends · Enter newline")
