"""The messages on the screen, newest at the bottom. Follows the end unless somebody has scrolled away."""

from __future__ import annotations

from collections.abc import Sequence

from textual.containers import VerticalScroll
from textual.widget import Widget
from textual.widgets import Static

from edgeqwen.chat.conversation import Conversation, Message
from edgeqwen.text import clean
from edgeqwen.tui.language import _
from edgeqwen.tui.widgets.message import GrowingView, MessageView

_MOUNTED = 200  # messages; more are a key press away


class Transcript(VerticalScroll, can_focus=False):
    """The branch in use, and at its end the answer that comes."""

    def __init__(self) -> None:
        super().__init__(id="transcript")
        self._n_hidden = 0

    @property
    def growing(self) -> GrowingView | None:
        """The answer that comes, if one does."""
        return next(iter(self.query(GrowingView)), None)

    @property
    def views(self) -> list[MessageView]:
        return list(self.query(MessageView))

    async def show(self, conversation: Conversation, *, everything: bool = False) -> None:
        """Draw a conversation from scratch."""
        branch = conversation.branch()
        self._n_hidden = 0 if everything else max(0, len(branch) - _MOUNTED)
        await self.remove_children()
        if self._n_hidden:
            words = _("{n} older messages; /older shows them").format(n=self._n_hidden)
            await self.mount(Static(words, classes="notice", markup=False))
        await self.mount_all([_view(conversation, message) for message in branch[self._n_hidden :]])
        self.anchor()

    async def follow(self, conversation: Conversation) -> None:
        """Come up to a conversation's head without drawing again what is right."""
        branch = conversation.branch()[self._n_hidden :]
        shown = [view.message.id for view in self.views]
        wanted = [message.id for message in branch]
        if shown and wanted[: len(shown)] == shown:
            await self.mount_all([_view(conversation, message) for message in branch[len(shown) :]])
            self.anchor()
        else:
            await self.show(conversation)

    async def begin_answer(self, name: str) -> GrowingView:
        """Draw the place where an answer will grow."""
        view = GrowingView(name)
        await self.mount(view)
        self.anchor()
        return view

    async def end_answer(self, conversation: Conversation, message: Message | None) -> None:
        """Put the finished message where the answer grew, or nothing where none came."""
        growing = self.growing
        if growing is None:
            return
        if message is not None:
            await self.mount(_view(conversation, message), before=growing)
        await growing.remove()

    @property
    def is_followed(self) -> bool:
        """Say whether the end stays in view as text comes; the library keeps that to itself."""
        return not getattr(self, "_anchor_released", False)

    async def notice(self, text: str, *, kind: str = "notice") -> None:
        """Draw a sentence of ours between the messages; help is gone to, others do not disturb a reader."""
        follows = self.is_followed or kind == "help"
        await self.mount(Static(clean(text), classes=kind, markup=False))
        if follows:
            self.anchor()

    async def welcome_text(self, text: str) -> None:
        """Say something where a chat is still empty."""
        await self.mount(Static(text, classes="notice", markup=False))

    async def welcome(self, widgets: Sequence[Widget]) -> None:
        """Draw something instead of messages; it stands at the top."""
        await self.remove_children()
        await self.mount_all(widgets)

    def page(self, step: int) -> None:
        """Scroll by a screen."""
        self.scroll_relative(y=step * max(1, self.size.height - 2), animate=False)

    def go_to(self, *, end: bool) -> None:
        """Go to the end and follow it, or to the beginning."""
        if end:
            self.anchor()
            self.scroll_end(animate=False)
        else:
            self.scroll_home(animate=False)

    def focus_on(self, message: int) -> None:
        """Go to a message, if it is shown."""
        for view in self.views:
            if view.message.id == message:
                view.focus()

    def focus_next(self, step: int) -> None:
        """Go to another message from the one that has the focus; from none to the last."""
        views = self.views
        if not views:
            return
        index = next((i for i, view in enumerate(views) if view.has_focus), len(views) - 1 - step)
        target = index + step
        if 0 <= target < len(views):
            views[target].focus()


def _view(conversation: Conversation, message: Message) -> MessageView:
    ids = [sibling.id for sibling in conversation.siblings(message.id)]
    return MessageView(message, (ids.index(message.id) + 1, len(ids)))
