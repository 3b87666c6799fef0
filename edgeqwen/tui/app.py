"""The full-screen program: opens history and model behind the first picture, and ticks the gauges.

Wires the parts together and owns their lifetimes. Does no work of its own.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from textual import _xterm_parser, work
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.theme import Theme

from edgeqwen.chat.desk import Desk
from edgeqwen.chat.history import History
from edgeqwen.chat.host import ModelHost
from edgeqwen.errors import EdgeQwenError
from edgeqwen.machine.cpu import usable_cores
from edgeqwen.machine.memory import available_bytes
from edgeqwen.machine.monitor import Monitor, advice
from edgeqwen.models.library import Library
from edgeqwen.models.queue import Download, PullQueue
from edgeqwen.models.sources import user_sources
from edgeqwen.text import clean
from edgeqwen.tui import commands
from edgeqwen.tui.chat import ChatScreen
from edgeqwen.tui.flush import base_interval
from edgeqwen.tui.language import _, set_language
from edgeqwen.tui.screens.dialogs import Confirm
from edgeqwen.tui.screens.monitor import MonitorScreen
from edgeqwen.tui.widgets.monitor import Record
from edgeqwen.tui.widgets.status import Gauge

_THEMES = {
    "dark": "textual-dark",
    "light": "textual-light",
    "ansi": "ansi-dark",
    "contrast": "edgeqwen-contrast",
}
_CONTRAST = Theme(
    "edgeqwen-contrast",
    primary="#ffff00",
    secondary="#00ffff",
    accent="#00ffff",
    foreground="#ffffff",
    background="#000000",
    surface="#000000",
    panel="#000000",
    error="#ff6060",
    warning="#ffff00",
    success="#60ff60",
    dark=True,
)


# Below this many bytes the library's parser tears apart what an input method commits: five Chinese words.
if hasattr(_xterm_parser, "_MAX_SEQUENCE_SEARCH_THRESHOLD"):
    _xterm_parser._MAX_SEQUENCE_SEARCH_THRESHOLD = 1024


_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@dataclass(frozen=True)
class Start:
    """What the command line asks for."""

    ref: str | None = None
    chat: int | None = None
    low_bandwidth: bool = False


class EdgeApp(App[None]):
    """The application."""

    CSS_PATH = "edgeqwen.tcss"
    TITLE = "edgeqwen"
    HORIZONTAL_BREAKPOINTS = [  # noqa: RUF012 - the library declares it without ClassVar
        (0, "-narrow"),
        (60, "-normal"),
        (110, "-wide"),
    ]
    VERTICAL_BREAKPOINTS = [(0, "-short"), (18, "-tall")]  # noqa: RUF012 - as above
    COMMAND_PALETTE_BINDING = "ctrl+p"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+q", "ask_to_quit", show=False, priority=True)]

    def __init__(self, library: Library, start: Start) -> None:
        super().__init__()
        self.library, self._start = library, start
        self.low_bandwidth = start.low_bandwidth or library.config.tui.low_bandwidth
        self.gauge, self.record = Gauge(), Record()
        self._monitor: Monitor | None = None
        self._host = ModelHost(library, available_bytes)
        self._history: History | None = None
        self._queue = PullQueue(library, user_sources(library.config.pull.sources))
        self._told: list[Download] = []  # that are here
        n_threads = library.config.run.threads or usable_cores()
        base = base_interval(
            is_remote="SSH_CONNECTION" in os.environ,
            low_bandwidth=self.low_bandwidth,
            all_cores=n_threads >= (os.cpu_count() or 1),
        )
        self.chat = ChatScreen(
            library, self._queue, self.gauge, self.record, flush_s=base, plots=not self.low_bandwidth
        )
        self.register_theme(_CONTRAST)

    def get_default_screen(self) -> Screen[None]:
        return self.chat

    def on_mount(self) -> None:
        self.follow_settings()
        self._leave_well_when_told()
        keys = self.library.config.tui.keys
        self.set_keymap(keys)
        if unknown := [name for name in keys if name not in commands.COMMANDS]:
            text = _("the settings give keys to what is no command: {names}")
            self.notify(text.format(names=", ".join(unknown)), severity="warning")
        if shared := commands.shared_keys(keys):
            text = _("more than one command has the key {keys}; /help shows them")
            self.notify(text.format(keys=", ".join(shared)), severity="warning")
        self.call_after_refresh(self.begin)

    def _leave_well_when_told(self) -> None:
        """End in good order on SIGTERM and SIGHUP: the terminal as it was, the answer kept."""
        loop = asyncio.get_running_loop()

        def end(number: int, _frame: object) -> None:
            signal.signal(number, signal.SIG_DFL)  # told once more it ends at once, whatever it is at
            loop.call_soon_threadsafe(partial(self.exit, return_code=128 + number))

        for number in _ENDING:
            signal.signal(number, end)

    def follow_settings(self) -> None:
        """Look as the settings say."""
        settings = self.library.config.tui
        self.theme = _THEMES["ansi" if self.low_bandwidth else settings.theme]
        set_language(settings.language)

    @work
    async def begin(self) -> None:
        """Open the history and load the model, once the first picture is there."""
        try:
            self._history = await asyncio.to_thread(History, self.library.paths.chats)
        except EdgeQwenError as error:
            self.exit(message=error.message, return_code=4)
            return
        if self._history.notice:
            self.notify(self._history.notice, severity="warning", timeout=30)
        await self.chat.begin(Desk(self._host, self._history, self._tell), self._start.chat)
        self._monitor = await asyncio.to_thread(Monitor)
        self.set_interval(3.0 if self.low_bandwidth else 1.0, self._tick)
        self.set_interval(1.0 if self.low_bandwidth else 0.25, self._draw)
        try:
            ref = self._start.ref or await asyncio.to_thread(self.library.usual_model)
        except EdgeQwenError as error:
            self.notify(error.message, severity="error", timeout=30)
            return
        if ref is not None:
            self.chat.load(ref)
        elif self._start.chat is None:
            await self.chat.welcome()

    def notify(self, message: str, **options: Any) -> None:  # noqa: ANN401 - as the library has it
        """Say something in a corner: as text, whoever wrote it."""
        super().notify(clean(message), **{**options, "markup": False})

    def _tell(self, text: str) -> None:
        self.notify(text, severity="warning", timeout=12)

    async def _tick(self) -> None:
        """Once a second: look at the machine."""
        assert self._monitor is not None
        sample = await asyncio.to_thread(self._monitor.sample, self._host.client.pid)
        if not self.is_running:  # it was closed meanwhile, and its screens are gone
            return
        self.gauge.sample = sample
        found = advice(sample, n_context=self.gauge.n_context, n_ctx=self.gauge.n_ctx)
        self.gauge.advice = tuple(found)
        self.record.tick(self.gauge, is_answering=self.chat.is_answering)
        self._count_downloads()
        self.chat.draw(second=True)
        if isinstance(self.screen, MonitorScreen):
            self.screen.draw()

    def _draw(self) -> None:
        self.chat.draw(second=False)

    def _count_downloads(self) -> None:
        downloads = self._queue.downloads
        running = [one for one in downloads if one.state in ("running", "waiting")]
        done = [one for one in downloads if one.state == "done" and one not in self._told]
        share = sum(one.done for one in running) / max(1, sum(one.plan.size for one in running))
        self.gauge.downloads = f"↓ {len(running)} {100 * share:.0f}%" if running else ""
        for one in done:
            self._tell(_("{ref} is here; Ctrl+O loads it").format(ref=one.ref))
            if self._host.loaded is None and self.gauge.model == "":
                self.chat.load(one.ref)
        self._told += done

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        for name, command in commands.COMMANDS.items():
            if not command.takes or command.takes.startswith("["):
                yield SystemCommand(
                    _(command.title), f"/{name}", lambda name=name: self.chat.action_command(name)
                )

    async def action_ask_to_quit(self) -> None:
        if not isinstance(self.screen, Confirm):
            self.chat.action_command("quit")

    async def on_unmount(self) -> None:
        """Leave nothing running and nothing unsaved."""
        with suppress(EdgeQwenError):
            await self.chat.keep_question()
            if self.chat.is_answering:
                await self.chat.desk.stop()
        await asyncio.to_thread(self._queue.close)
        await self._host.close()
        if self._history:
            await asyncio.to_thread(self._history.close)
        for number in _ENDING:
            signal.signal(number, signal.SIG_DFL)
