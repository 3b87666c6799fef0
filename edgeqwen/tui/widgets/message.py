"""One message of the transcript, and the answer that grows.

A finished message is one Static; a growing answer is one Static per block, so that drawing it does not get
slower with its length. Shows what it is given; asks for everything else by messages.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message as Event
from textual.widgets import Static

from edgeqwen.chat.conversation import Made, Message
from edgeqwen.text import clean, clean_line
from edgeqwen.tui.language import _
from edgeqwen.tui.markdown import Block, GrowingText, render


class MessageView(Vertical, can_focus=True):
    """A message with its author, its text and, under an answer, what it took."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "ask_for('copy')", "Copy"),
        Binding("c", "ask_for('copy-code')", "Copy code"),
        Binding("e", "ask_for('edit')", "Edit"),
        Binding("g", "ask_for('regenerate')", "Again"),
        Binding("t", "toggle_thinking", "Thinking"),
        Binding("s", "ask_for('save')", "Save", show=False),
        Binding("delete,d", "ask_for('delete')", "Delete", show=False),
        Binding("left,h", "ask_for('previous')", "Other answer", show=False),
        Binding("right,l", "ask_for('next')", "Other answer", show=False),
        Binding("j,down", "ask_for('focus-next')", show=False),
        Binding("k,up", "ask_for('focus-previous')", show=False),
    ]

    class Asked(Event):
        """A key on a message wants something done with it."""

        def __init__(self, view: MessageView, what: str) -> None:
            super().__init__()
            self.view, self.what = view, what

    def __init__(self, message: Message, place: tuple[int, int] = (1, 1)) -> None:
        """Show a message; `place` is which of how many alternatives it is, from 1."""
        super().__init__(classes=f"message {message.role}")
        self.message, self._place = message, place

    def compose(self) -> ComposeResult:
        yield Static(self._head(), classes="head", markup=False)
        if self.message.thinking:
            made = self.message.made
            yield ThinkingView(
                clean(self.message.thinking), n_tokens=made.stats.thinking_tokens if made else 0
            )
        yield Static(self._body(), classes="body", markup=False)
        if foot := self._foot():
            yield Static(foot, classes="foot", markup=False)

    def action_ask_for(self, what: str) -> None:
        self.post_message(self.Asked(self, what))

    def action_toggle_thinking(self) -> None:
        for view in self.query(ThinkingView):
            view.toggle()

    def _head(self) -> str:
        made = self.message.made
        name = _("You") if self.message.role == "user" else clean_line(made.model) if made else _("Answer")
        number, count = self._place
        return f"{name}  ({number}/{count})" if count > 1 else name

    def _body(self) -> Content:
        text = clean(self.message.text)  # whatever came by: the history is a file like others
        return render(text) if self.message.role == "assistant" else Content(text)

    def _foot(self) -> str:
        if self.message.role != "assistant":
            return ""
        parts = [] if self.message.is_complete else [_("stopped")]
        return " · ".join([*parts, *figures(self.message.made)])


def figures(made: Made | None) -> Iterable[str]:
    """Yield what an answer took, in words; definitions stand in engine/protocol.py."""
    if made is None:
        return
    stats = made.stats
    if made.stop_reason == "length":
        yield _("cut off at its limit")
    yield _("{n} tokens").format(n=f"{stats.completion_tokens:,}")
    if stats.decode_tps:
        yield f"{stats.decode_tps:.1f} tok/s"
    if stats.ttft_s is not None:
        yield _("first after {s} s").format(s=f"{stats.queued_s + stats.ttft_s:.2f}")
    yield _("{n} cached").format(n=f"{stats.cached_tokens:,}/{stats.prompt_tokens:,}")


class ThinkingView(Static):
    """What a model thought: folded to one line until somebody opens it; only then is its text laid out."""

    def __init__(self, text: str = "", *, n_tokens: int = 0, is_growing: bool = False) -> None:
        super().__init__("", classes="thinking", markup=False)
        self._text, self._is_growing, self._is_open = text, is_growing, False
        self._budget: int | None = None
        self._n_tokens = n_tokens

    def on_mount(self) -> None:
        self._draw()

    def on_click(self) -> None:
        if self.text_selection is None:  # else a drag has ended here
            self.toggle()

    def toggle(self) -> None:
        """Open or fold it."""
        self._is_open = not self._is_open
        self.screen.clear_selection()  # it may lie in what is folded away
        self._draw()

    def grow(self, text: str, n_tokens: int, budget: int | None) -> None:
        """Add text; `n_tokens` were thought so far, of `budget` where there is one."""
        self._text += text
        self._n_tokens, self._budget = n_tokens, budget
        self._draw()

    def end(self) -> None:
        """The answer begins, or it is over."""
        self._is_growing = False
        self._draw()

    def _draw(self) -> None:
        sign = "▾" if self._is_open else "▸"
        words = _("thinking…") if self._is_growing else _("thought")
        n_tokens = self._n_tokens
        size = _("{n} tokens").format(n=f"{n_tokens:,}") if n_tokens else f"{len(self._text):,} ✎"
        title = f"{sign} {words} · {size}{self._bar()}"
        self.update(Content(f"{title}\n{self._text.strip()}" if self._is_open else title))

    def _bar(self) -> str:
        if not self._is_growing:
            return ""
        if not self._budget:
            return "  (" + _("Ctrl+Y: answer now") + ")"
        done = min(10, 10 * self._n_tokens // self._budget)
        return f" {'█' * done}{'░' * (10 - done)} /{self._budget:,}  (" + _("Ctrl+Y: answer now") + ")"


class GrowingView(Vertical):
    """An answer as it comes."""

    def __init__(self, name: str) -> None:
        super().__init__(classes="message assistant growing")
        self._author = name
        self._text = GrowingText()
        self._live: list[Static] = []
        self._thinking: ThinkingView | None = None
        self._state = Static("", classes="foot", markup=False)

    @property
    def source(self) -> str:
        """Everything that was drawn."""
        return self._text.source

    def compose(self) -> ComposeResult:
        yield Static(self._author, classes="head", markup=False)
        yield self._state

    def say(self, text: str) -> None:
        """Tell in one line what is going on."""
        self._state.update(text)
        self._state.display = bool(text)

    async def think(self, text: str, n_tokens: int, budget: int | None) -> None:
        """Draw more thinking."""
        if self._thinking is None:
            self._thinking = ThinkingView(is_growing=True)
            await self.mount(self._thinking, before=self._state)
        self._thinking.grow(text, n_tokens, budget)

    async def grow(self, text: str) -> None:
        """Draw more of the answer."""
        if self._thinking and not self._text.source:
            self._thinking.end()
        n_final = self._text.feed(text)
        found = self._text.live
        for view, block in zip(self._live, found, strict=False):
            _put(view, block)
        new = [_put(Static(markup=False), block) for block in found[len(self._live) :]]
        if new:
            await self.mount(*new, before=self._state)
        for view in self._live[len(found) :]:
            await view.remove()
        self._live = [*self._live[: len(found)], *new][n_final:]
        del found[:n_final]

    def toggle_thinking(self) -> None:
        """Open or fold what the model thinks."""
        if self._thinking:
            self._thinking.toggle()


def _put(view: Static, block: Block) -> Static:
    view.set_classes(f"block {block.kind}")
    view.update(block.content)
    return view
