"""The chat: what was said, the answer that comes, and the line to type in.

Puts the desk's conversation on the screen and the keys to work. What can be done stands in tui/commands.py.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any, ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Footer

from edgeqwen.chat.attach import insert_files
from edgeqwen.chat.conversation import Message
from edgeqwen.chat.desk import Desk
from edgeqwen.chat.loading import LoadOptions
from edgeqwen.chat.session import Reply
from edgeqwen.errors import EdgeQwenError, NotFound, WorkerLost
from edgeqwen.machine.cpu import usable_cores
from edgeqwen.models.library import Library
from edgeqwen.models.queue import PullQueue
from edgeqwen.text import clean
from edgeqwen.tui import commands
from edgeqwen.tui.answering import Answering
from edgeqwen.tui.language import _
from edgeqwen.tui.screens.dialogs import Confirm
from edgeqwen.tui.welcome import Welcome
from edgeqwen.tui.widgets.message import MessageView
from edgeqwen.tui.widgets.monitor import MonitorView, Record
from edgeqwen.tui.widgets.prompt import Prompt
from edgeqwen.tui.widgets.status import Gauge, StatusBar
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
        self, library: Library, queue: PullQueue, gauge: Gauge, record: Record, *, base_interval: float
    ) -> None:
        super().__init__()
        self.library, self.queue, self.gauge, self.record = library, queue, gauge, record
        self._base_interval = base_interval
        self._desk: Desk | None = None
        self._answering: Answering | None = None
        self._editing: int | None = None
        self._lost_at = float("-inf")

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
        return self._answering is not None

    def compose(self) -> ComposeResult:
        settings = self.library.config.tui
        yield StatusBar()
        yield Transcript()
        yield MonitorView(plots=not settings.low_bandwidth, id="side-monitor")
        yield Prompt(enter_sends=settings.enter_sends, blinks=False)
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        self.prompt.focus()

    def tell(self, text: str, *, severity: str = "information") -> None:
        """Say a sentence in a corner of the screen."""
        self.notify(text, severity=severity, markup=False, timeout=8)  # type: ignore[arg-type]

    def fail(self, error: EdgeQwenError) -> None:
        """Say what went wrong."""
        self.tell(error.message, severity="error")

    async def begin(self, desk: Desk, chat: int | None) -> None:
        """Take the conversation over, once the history is open."""
        self._desk = desk
        desk.session.overflow = self.library.config.run.full
        desk.session.delta_s = self._base_interval
        desk.think = self.library.config.run.think
        desk.sampler = self.library.config.sampler.given()
        if chat is not None:
            await desk.open(chat)
            await self.redraw()

    async def welcome(self) -> None:
        """Say what can be done where no model is installed."""
        await self.transcript.welcome([Welcome(self.library, self.queue)])

    def on_welcome_chosen(self, event: Welcome.Chosen) -> None:
        self._run_command("models", event.ref)

    @work(exclusive=True, group="load")
    async def load(self, ref: str) -> None:
        """Load a model in place of the one in use."""
        if self.is_answering:
            with suppress(WorkerLost):
                await self.desk.stop()
            await self.workers.wait_for_complete([one for one in self.workers if one.group == "answer"])
        config = self.library.config.run
        options = LoadOptions(n_ctx=config.ctx, n_threads=config.threads or usable_cores())
        started = time.monotonic()

        def progress(what: str, share: float) -> None:
            elapsed = time.monotonic() - started
            left = f", {elapsed / share - elapsed:.0f} s" if share > 0.05 and elapsed > 1 else ""
            self.gauge.activity = f"{what} {100 * share:.0f}%{left}"

        try:
            loaded = await self.desk.load(ref, options, progress)
        except EdgeQwenError as error:
            self.gauge.model = ""
            await self.transcript.notice(f"{error.message}\n{_('Ctrl+O shows the models')}", kind="error")
            return
        finally:
            self.gauge.activity = ""
        self.gauge.model, self.gauge.n_ctx, self.gauge.n_context = loaded.name, loaded.ready.n_ctx, 0
        self.gauge.kv_bytes = loaded.plan.estimate.kv_cache if loaded.plan.estimate else 0
        for notice in loaded.notices:
            self.tell(notice, severity="warning")
        self._remember(ref)
        if not self.desk.conversation.messages:
            await self.redraw()

    def _remember(self, ref: str) -> None:
        with suppress(OSError):
            self.library.paths.last_model.parent.mkdir(parents=True, exist_ok=True)
            self.library.paths.last_model.write_text(ref, encoding="utf-8")

    def model_card(self) -> dict[str, Any]:
        """Return the sampler values that hold where nothing is set."""
        loaded = self.desk.host.loaded
        if loaded is None or loaded.located.model is None:
            return {}
        return vars(loaded.located.model.sampling_for(self.desk.session.think is True))

    def follow_settings(self) -> None:
        """Do what the settings say now."""
        self.desk.sampler = self.library.config.sampler.given()
        self.desk.think = self.library.config.run.think
        self.desk.session.overflow = self.library.config.run.full
        self.desk.apply_settings()
        self.app.follow_settings()  # type: ignore[attr-defined]

    def on_prompt_sent(self, event: Prompt.Sent) -> None:
        if event.text.startswith("/"):
            name, _space, rest = event.text[1:].strip().partition(" ")
            self._run_command(name, rest.strip())
        else:
            self.say(event.text)

    @work(group="answer")
    async def say(self, typed: str) -> None:
        """Send a message, or what replaces an earlier one."""
        try:
            if self.is_answering:
                self.prompt.put_back(typed)
                self.tell(_("an answer is coming; Esc stops it"))
                return
            text = await asyncio.to_thread(insert_files, clean(self.prompt.with_attachments(typed)))
            await self._wait_for_model()
            editing, self._editing = self._editing, None
            await self.desk.put_question(text, instead_of=editing)
            await self._stream()
        except EdgeQwenError as error:
            self.prompt.put_back(typed)
            self.fail(error)

    @work(group="answer")
    async def regenerate(self, answer: int | None) -> None:
        """Answer a question again, the last one or that of `answer`."""
        try:
            await self._wait_for_model()
            self.desk.back_to_question(answer)
            await self._stream()
        except EdgeQwenError as error:
            self.fail(error)

    async def _wait_for_model(self) -> None:
        """Wait while a model loads. Raises NotFound when none is loaded then."""
        loading = [worker for worker in self.workers if worker.group == "load" and not worker.is_finished]
        if loading:
            await self.workers.wait_for_complete(loading)
        if self.desk.host.loaded is None:
            raise NotFound(_("no model is loaded; Ctrl+O shows the models"))

    async def _stream(self) -> None:
        """Show the question at the end of the branch and its answer as it comes."""
        desk, session = self.desk, self.desk.session
        await self._show_branch()
        view = await self.transcript.begin_answer(session.model)
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

    async def _show_branch(self) -> None:
        """Bring the transcript up to the conversation's head without drawing again what is right."""
        branch = self.desk.conversation.branch()
        shown = [view.message.id for view in self.transcript.views]
        wanted = [message.id for message in branch]
        if shown and wanted[: len(shown)] == shown:
            for message in branch[len(shown) :]:
                await self.transcript.add(self.desk.conversation, message)
        else:
            await self.transcript.show(self.desk.conversation)

    async def _tell_end(self, reply: Reply | None, failure: EdgeQwenError | None) -> None:
        if reply and reply.finished:
            self.gauge.count(reply.finished.stats)
            self.record.answers.append(reply.finished.stats)
        if reply and reply.restored_tokens:
            text = _("{n} tokens of this chat came back from disk and were not read again")
            self.tell(text.format(n=f"{reply.restored_tokens:,}"))
        if reply and reply.dropped:
            text = _("the context was full: {n} earlier messages ({m} tokens) were not shown to the model")
            n_messages = len(reply.dropped.messages) + len(reply.dropped.thinking_of)
            hint = _("/full stop, or a larger run.ctx, shows it all of them")
            notice = text.format(n=n_messages, m=f"{reply.dropped.n_tokens:,}")
            await self.transcript.notice(f"{notice}\n{hint}", kind="warning")
        if failure is None:
            return
        hint = _("Ctrl+G asks again")
        await self.transcript.notice(f"{failure.message}\n{hint}", kind="error")
        if isinstance(failure, WorkerLost):
            self._restart()

    def _restart(self) -> None:
        """Load the model again after its worker died, unless it has just done so."""
        now, ref = time.monotonic(), self.desk.session.model
        self.gauge.model = ""
        loaded = self.desk.host.loaded
        if now - self._lost_at < _AGAIN_S or loaded is None:
            self.tell(
                _("the model is not started again; Ctrl+O loads it, or a smaller one"), severity="error"
            )
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
            text = _("Type a message, or / and a command; F1 shows all of them.")
            await self.transcript.welcome_text(text)
        self.prompt.focus()

    def action_command(self, name: str) -> None:
        self._run_command(name, "")

    @work(group="command")
    async def _run_command(self, name: str, rest: str) -> None:
        command = commands.COMMANDS.get(name)
        if command is None:
            near = ", ".join(f"/{one}" for one in commands.COMMANDS if one.startswith(name[:2]))
            self.tell(_("unknown command: /{name}").format(name=name) + (f" ({near}?)" if near else ""))
            return
        try:
            await command.run(self, rest)
        except EdgeQwenError as error:
            self.fail(error)

    async def on_message_view_asked(self, event: MessageView.Asked) -> None:
        message = event.view.message
        try:
            await commands.do_with(self, message, event.what)
        except EdgeQwenError as error:
            self.fail(error)

    def edit(self, message: Message) -> None:
        """Put a message into the prompt; sending it begins another branch there."""
        if message.role != "user":
            parent = message.parent
            message = self.desk.conversation.messages[parent] if parent is not None else message
        self._editing = message.id
        self.prompt.put(message.text)
        self.prompt.focus()
        self.tell(_("editing an earlier message; Esc leaves it as it was"))

    def show_monitor(self) -> None:
        """Open the monitor over the screen."""
        from edgeqwen.tui.screens.monitor import MonitorScreen

        plots = not self.library.config.tui.low_bandwidth
        self.app.push_screen(
            MonitorScreen(self.gauge, self.record, self.library, self.desk.host, plots=plots)
        )

    async def leave(self) -> None:
        """Quit, after a question where something is going on."""
        if self.is_answering or self.queue.is_busy:
            words = _("An answer or a download is going on. Quit? Both stay as far as they have come.")
            if not await self.app.push_screen_wait(Confirm(words)):
                return
        self.app.exit()

    async def action_back(self) -> None:
        if self.is_answering:
            self.gauge.activity = _("stopping…")
            with suppress(WorkerLost):  # the answer's own end says so
                await self.desk.stop()
            self.gauge.activity = ""
        elif self._editing is not None:
            self._editing = None
            self.prompt.put("")
        else:
            self.clear_selection()
            self.prompt.focus()

    async def action_copy_or_stop(self) -> None:
        selected = self.get_selected_text() or self.prompt.selected_text
        if selected:
            await commands.copy_text(self, selected)
        elif self.is_answering:
            await self.action_back()
        elif self.prompt.text:
            self.prompt.put("")
        else:
            self.tell(_("Ctrl+Q quits"))

    def action_page(self, step: int) -> None:
        self.transcript.scroll_relative(y=step * max(1, self.transcript.size.height - 2), animate=False)

    def action_scroll_to(self, end: int) -> None:
        if end:
            self.transcript.anchor()
            self.transcript.scroll_end(animate=False)
        else:
            self.transcript.scroll_home(animate=False)

    def action_message(self, step: int) -> None:
        self.transcript.focus_next(step)

    def draw(self, *, second: bool) -> None:
        """Show the gauges; `second` is true once a second, when the plots move."""
        if self._answering and self._answering.rate:
            self.gauge.rate = self._answering.rate
        if self._answering and (reply := self.desk.session.reply):
            self.gauge.n_context = reply.prompt_tokens + reply.n_tokens
        if second or not self.is_answering:
            for bar in self.query(StatusBar):  # none while the program closes
                bar.draw(self.gauge)
        for side in self.query("#side-monitor").results(MonitorView):
            if second and side.display:
                side.draw(self.gauge, self.record)
