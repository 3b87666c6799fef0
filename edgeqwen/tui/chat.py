"""The chat: what was said, the answer that comes, and the line to type in.

Puts the desk's conversation on the screen and the keys to work. What can be done stands in tui/commands.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from contextlib import suppress
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Paste
from textual.screen import Screen
from textual.widgets import Footer, Static
from textual.worker import WorkerCancelled, WorkerFailed

from edgeqwen.chat.attach import insert_files
from edgeqwen.chat.conversation import Message
from edgeqwen.chat.desk import Desk, Usual
from edgeqwen.chat.loading import LoadOptions
from edgeqwen.chat.session import Reply
from edgeqwen.errors import EdgeQwenError, NotFound, WorkerLost
from edgeqwen.machine.cpu import usable_cores
from edgeqwen.models.library import Library
from edgeqwen.models.queue import PullQueue
from edgeqwen.text import clean
from edgeqwen.tui import commands
from edgeqwen.tui.answering import Answering, remarks
from edgeqwen.tui.language import _
from edgeqwen.tui.screens.dialogs import Confirm
from edgeqwen.tui.welcome import Welcome
from edgeqwen.tui.widgets.message import MessageView
from edgeqwen.tui.widgets.monitor import MonitorView, Record
from edgeqwen.tui.widgets.prompt import Prompt
from edgeqwen.tui.widgets.status import Gauge, Progress, StatusBar
from edgeqwen.tui.widgets.transcript import Transcript

_AGAIN_S = 10.0  # a worker that dies twice within so long is not started a third time


class ChatScreen(Screen[None]):
    """The screen that is always there."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *commands.bindings(),
        Binding("escape", "back", show=False),
        Binding("ctrl+c", "copy_or_stop", show=False, priority=True),
        Binding("pageup", "page(-1)", show=False, priority=True),
        Binding("pagedown", "page(1)", show=False, priority=True),
        Binding("ctrl+home", "scroll_to(0)", show=False, priority=True),
        Binding("ctrl+end", "scroll_to(1)", show=False, priority=True),
        Binding("ctrl+up", "message(-1)", show=False, priority=True),
        Binding("ctrl+down", "message(1)", show=False, priority=True),
    ]

    def __init__(
        self, library: Library, queue: PullQueue, gauge: Gauge, record: Record, *, flush_s: float, plots: bool
    ) -> None:
        super().__init__()
        self.library, self.queue, self.gauge, self.record = library, queue, gauge, record
        self._base_interval, self._plots = flush_s, plots
        self._desk: Desk | None = None
        self._answering: Answering | None = None
        self._editing: int | None = None
        self._lost_at, self._waiting = float("-inf"), False  # a question waits for its model
        self._unasked: str | None = None  # that question

    @property
    def desk(self) -> Desk:
        """The conversation; there once the history is open."""
        if self._desk is None:
            raise NotFound(_("still starting"))
        return self._desk

    @property
    def transcript(self) -> Transcript:
        return self.query_one(Transcript)

    @property
    def prompt(self) -> Prompt:
        return self.query_one(Prompt)

    @property
    def is_answering(self) -> bool:
        """From the sending of a message to the last word of its answer, loading included."""
        return self._desk is not None and self._desk.is_answering

    def compose(self) -> ComposeResult:
        yield StatusBar()
        yield Transcript()
        yield Static(_("↓ new text · Ctrl+End follows it"), id="new-text", markup=False)
        yield MonitorView(plots=self._plots, id="side-monitor")
        yield Prompt(enter_sends=self.library.config.tui.enter_sends, blinks=False)
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        self.prompt.focus()

    def on_paste(self, event: Paste) -> None:
        self.prompt.focus()
        self.prompt.post_message(event)

    def tell(self, text: str, *, severity: str = "information") -> None:
        """Say a sentence in a corner of the screen."""
        self.notify(text, severity=severity, timeout=8)  # type: ignore[arg-type]

    def fail(self, error: EdgeQwenError) -> None:
        """Say what went wrong."""
        self.tell(error.message, severity="error")

    async def begin(self, desk: Desk, chat: int | None) -> None:
        """Take the conversation over, once the history is open."""
        self._desk = desk
        desk.session.delta_s = self._base_interval
        desk.usual = self._usual
        desk.forget_settings()
        try:
            if chat is not None:
                await desk.open(chat)
                await self.redraw()
        except EdgeQwenError as error:
            self.fail(error)

    def _usual(self) -> Usual:
        config = self.library.config
        return Usual(config.run.think, config.sampler.given(), config.run.full)

    async def welcome(self) -> None:
        """Say what can be done where no model is installed."""
        await self.transcript.welcome([Welcome(self.library, self.queue)])

    def on_welcome_chosen(self, event: Welcome.Chosen) -> None:
        self._run_command("models", event.ref)

    @work(exclusive=True, group="load")
    async def load(self, ref: str) -> bool:
        """Load a model in place of the one in use, and say whether it is there."""
        while self.is_answering and not self._waiting:
            with suppress(WorkerLost):
                await self.desk.stop()
            await asyncio.sleep(0.05)
        config = self.library.config.run
        options = LoadOptions(n_ctx=config.ctx, n_threads=config.threads or usable_cores())
        try:
            self.gauge.rate = None  # what was measured was another model's
            loaded = await self.desk.load(ref, options, Progress(self.gauge))
        except EdgeQwenError as error:
            before = self.desk.host.loaded
            self.gauge.model = before.name if before else ""
            await self.transcript.notice(f"{error.message}\n{_('Ctrl+O shows the models')}", kind="error")
            return False
        finally:
            self.gauge.activity = ""
        self.gauge.model, self.gauge.n_ctx, self.gauge.n_context = loaded.name, loaded.ready.n_ctx, 0
        self.record.answers.clear()
        self.gauge.kv_bytes = loaded.plan.estimate.kv_cache if loaded.plan.estimate else 0
        for notice in loaded.notices:
            self.tell(notice, severity="warning")
        self.library.remember_model(ref)
        if not (self.desk.conversation.messages or self._waiting or self.query(".help")):
            await self.redraw()
        return True

    def follow_settings(self, key: str) -> None:
        """Do what the settings say now of `key`; what was set for this chat alone stays."""
        table, _dot, name = key.partition(".")
        usual, desk = self._usual(), self.desk
        if table == "sampler":
            kept = {field: value for field, value in desk.sampler.items() if field != name}
            desk.sampler = kept | ({name: usual.sampler[name]} if name in usual.sampler else {})
        elif key == "run.think":
            desk.think = usual.think
        elif key == "run.full":
            desk.session.overflow = usual.overflow
        desk.apply_settings()
        self.app.follow_settings()  # type: ignore[attr-defined]
        self.prompt.use_enter(sends=self.library.config.tui.enter_sends)  # in the language of now

    def on_prompt_sent(self, event: Prompt.Sent) -> None:
        first, *rest = event.text.split(maxsplit=1)
        if first.startswith("/") and "/" not in first[1:]:  # else it is a path
            name = first[1:]
            command = commands.COMMANDS.get(name)
            if command is None or (rest and not command.takes):
                self.prompt.put_back(event.text)
            self._run_command(name, self.prompt.with_attachments(rest[0]) if rest else "")
        else:
            self.say(event.text)

    @work(group="answer")
    async def say(self, typed: str) -> None:
        """Send a message, or what replaces an earlier one."""
        if self.is_answering:
            self.prompt.put_back(typed)
            self.tell(_("an answer is coming; Esc stops it"))
            return
        is_kept = False
        try:
            with self.desk.turn():
                text = await asyncio.to_thread(insert_files, typed)
                self._unasked = clean(self.prompt.with_attachments(text))
                await self._wait_for_model()
                await self.keep_question()
                is_kept, self._editing = True, None
                self.prompt.take_up()
                await self._stream()
        except EdgeQwenError as error:
            self.fail(error)
        finally:
            prompts = self.query(Prompt)  # none while the program closes, which keeps the question
            if prompts and not is_kept:
                prompts.first().put_back(typed)
                self._unasked = None

    async def keep_question(self) -> None:
        """Put a question into the chat that was sent and is not there yet; also as the program closes."""
        question, self._unasked = self._unasked, None
        if question is not None:
            await self.desk.put_question(question, instead_of=self._editing)

    @work(group="answer")
    async def regenerate(self, message: int | None) -> None:
        """Answer a question again: that which `message` is or answers, or else the last one."""
        try:
            with self.desk.turn():
                await self._wait_for_model()
                self.desk.back_to_question(message)
                await self._stream()
        except EdgeQwenError as error:
            self.fail(error)

    async def _wait_for_model(self) -> None:
        """Wait while a model loads. Raises NotFound when none is loaded then."""
        self._waiting = True
        try:
            while loading := [one for one in self.workers if one.group == "load" and not one.is_finished]:
                with suppress(WorkerCancelled, WorkerFailed):  # another load may have taken its place
                    await self.workers.wait_for_complete(loading)
        finally:
            self._waiting = False
        if self.desk.host.loaded is None:
            raise NotFound(_("no model is loaded; Ctrl+O shows the models"))

    async def _stream(self) -> None:
        """Show the question at the end of the branch and its answer as it comes."""
        desk, session = self.desk, self.desk.session
        await self.transcript.follow(desk.conversation)
        view = await self.transcript.begin_answer(session.model)
        self.gauge.rate = None  # until this answer has one
        answering = self._answering = Answering(view, self._base_interval, session.thinking_budget)
        failure: EdgeQwenError | None = None
        before = session.reply
        try:
            await answering.run(desk.answer(), session)
        except EdgeQwenError as error:
            failure = error
        finally:
            self._answering = None
        head = desk.conversation.branch()[-1]
        await self.transcript.end_answer(desk.conversation, head if head.role == "assistant" else None)
        await self._tell_end(session.reply if session.reply is not before else None, failure)

    async def _tell_end(self, reply: Reply | None, failure: EdgeQwenError | None) -> None:
        if reply and reply.finished:
            self.gauge.count(reply.finished.stats)
            self.record.answers.append(reply.finished.stats)
        for kind, text in remarks(reply) if reply else ():
            await self.transcript.notice(text, kind=kind)
        if failure is None:
            return
        if isinstance(failure, WorkerLost):
            self._restart()  # first: what is dead is not shown as loaded
        await self.transcript.notice(f"{failure.message}\n{_('Ctrl+G asks again')}", kind="error")

    def _restart(self) -> None:
        """Load the model again after its worker died, unless it has just done so."""
        now, ref = time.monotonic(), self.desk.session.model
        self.gauge.model = ""
        loaded = self.desk.host.loaded
        if now - self._lost_at < _AGAIN_S or loaded is None:
            text = _("the model is not started again; Ctrl+O loads it, or a smaller one")
            self.tell(text, severity="error")
            return
        self._lost_at = now
        self.load(str(loaded.located.paths[0]) if loaded.located.entry is None else ref)

    async def redraw(self) -> None:
        """Draw the conversation from scratch, as after opening another one."""
        self._editing = None
        branch = self.desk.conversation.branch()
        self.prompt.remember([message.text for message in branch if message.role == "user"])
        last = next((message.made for message in reversed(branch) if message.made), None)
        self.gauge.n_context = last.stats.prompt_tokens + last.stats.completion_tokens if last else 0
        await self.transcript.show(self.desk.conversation)
        if not branch:
            await self.transcript.welcome_text(_("Type a message, or / and a command; F1 shows all of them."))
        self.prompt.focus()

    def action_command(self, name: str) -> None:
        self._run_command(name, "")

    @work(group="command")
    async def _run_command(self, name: str, rest: str) -> None:
        command = commands.COMMANDS.get(name)
        if command is None:
            near = ", ".join(f"/{one}" for one in commands.COMMANDS if one.startswith(name[:2]))
            self.tell(_("unknown command: /{name}").format(name=name) + (f" ({near}?)" if near else ""))
        elif rest and not command.takes:
            self.tell(_("/{name} takes no text").format(name=name))
        else:
            await self._attempt(command.run(self, rest))

    @work(group="command")
    async def on_message_view_asked(self, event: MessageView.Asked) -> None:
        await self._attempt(commands.do_with(self, event.view.message, event.what))

    async def _attempt(self, doing: Awaitable[None]) -> None:
        try:
            await doing
        except EdgeQwenError as error:
            self.fail(error)

    def edit(self, message: Message) -> None:
        """Put a message into the prompt; sending it begins another branch there."""
        if message.role != "user":
            parent = message.parent
            message = self.desk.conversation.messages[parent] if parent is not None else message
        self._editing = message.id
        self.prompt.lay_aside(message.text)
        self.prompt.focus()
        self.tell(_("editing an earlier message; Esc leaves it as it was"))

    def show_monitor(self) -> None:
        """Open the monitor over the screen."""
        from edgeqwen.tui.screens.monitor import MonitorScreen

        self.app.push_screen(MonitorScreen(self.gauge, self.record, self.library, plots=self._plots))

    async def leave(self) -> None:
        """Quit, after a question where something is going on."""
        if self.is_answering or self.queue.is_busy:
            words = _("An answer or a download is going on. Quit? Both stay as far as they have come.")
            if not await self.app.push_screen_wait(Confirm(words)):
                return
        self.app.exit()

    async def action_back(self) -> None:
        if self._waiting:
            self.workers.cancel_group(self, "answer")
        elif self._answering:
            self.gauge.activity = _("stopping…")
            with suppress(WorkerLost):  # the answer's own end says so
                await self.desk.stop()
            self.gauge.activity = ""
        elif self._editing is not None:
            self._editing = None
            self.prompt.give_up()
        else:
            self.clear_selection()
            self.prompt.focus()

    async def action_copy_or_stop(self) -> None:
        selected = self.get_selected_text() or self.prompt.selected_text
        if selected:
            await commands.copy_text(self, selected)
        elif self.is_answering or self._editing is not None:
            await self.action_back()
        elif self.prompt.text:
            self.prompt.give_up()
        else:
            self.tell(_("Ctrl+Q quits"))

    def action_page(self, step: int) -> None:
        self.transcript.page(step)

    def action_scroll_to(self, end: int) -> None:
        self.transcript.go_to(end=bool(end))

    def action_message(self, step: int) -> None:
        self.transcript.focus_next(step)

    def draw(self, *, second: bool) -> None:
        """Show the gauges; `second` is true once a second, when the plots move."""
        if self._answering and self._answering.rate:
            self.gauge.rate = self._answering.rate
        if self._answering and (reply := self.desk.session.reply):
            self.gauge.n_context = reply.prompt_tokens + reply.n_tokens
        for hint in self.query("#new-text"):
            hint.display = self._answering is not None and not self.transcript.is_followed
        if second or not self.is_answering:
            for bar in self.query(StatusBar):  # none while the program closes
                bar.draw(self.gauge)
        for side in self.query("#side-monitor").results(MonitorView):
            if second and side.display:
                side.draw(self.gauge, self.record)
