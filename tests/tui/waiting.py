"""Waits for what a screen shows, and does what a person would."""

from __future__ import annotations

import time
from collections.abc import Callable

from textual.pilot import Pilot
from textual.widgets import Static

from edgeqwen.tui.app import EdgeApp
from edgeqwen.tui.widgets.message import MessageView


async def until(pilot: Pilot[None], happens: Callable[[], object], what: str, seconds: float = 15) -> None:
    """Wait for a condition, letting the program run meanwhile."""
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline, f"it did not come about that {what}: {shown(pilot)[-500:]}"
        await pilot.pause(0.01)


def app_of(pilot: Pilot[None]) -> EdgeApp:
    assert isinstance(pilot.app, EdgeApp)
    return pilot.app


def shown(pilot: Pilot[None]) -> str:
    """Return all text of the chat screen, as plain text."""
    return "\n".join(str(view.visual) for view in app_of(pilot).chat.query(Static))


def toasts(pilot: Pilot[None]) -> list[str]:
    return [notification.message for notification in pilot.app._notifications]


def messages(pilot: Pilot[None]) -> list[str]:
    return [view.message.text for view in app_of(pilot).chat.query(MessageView)]


async def say(pilot: Pilot[None], text: str) -> None:
    """Type a text and send it."""
    app_of(pilot).chat.prompt.put(text)
    await pilot.press("enter")


async def ask(pilot: Pilot[None], text: str) -> None:
    """Send a message and wait for the end of its answer."""
    chat = app_of(pilot).chat
    before = chat.desk.conversation.next_id
    await say(pilot, text)
    await until(pilot, lambda: chat.desk.conversation.next_id >= before + 2, "an answer came")
    await until(pilot, lambda: not chat.is_answering and chat.transcript.growing is None, "it is drawn")
