"""What somebody sees who has no model yet: what this machine can run, and the ways to get one."""

from __future__ import annotations

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.message import Message as Event
from textual.widgets import Button, Static

from edgeqwen.machine.bandwidth import memory_bytes_per_s
from edgeqwen.machine.cpu import usable_cores
from edgeqwen.machine.memory import available_bytes
from edgeqwen.models.library import Library
from edgeqwen.models.queue import PullQueue
from edgeqwen.models.recommend import Machine, recommend
from edgeqwen.tui.language import _
from edgeqwen.tui.widgets.status import megabytes

_LINE_BYTES_PER_S = 50e6 / 8  # a common home line, by which the time is guessed


class Welcome(Vertical):
    """A message like others: it takes no key that is typed into the prompt."""

    class Chosen(Event):
        """A way was chosen: `ref` to load, or "" for the list of models."""

        def __init__(self, ref: str) -> None:
            super().__init__()
            self.ref = ref

    def __init__(self, library: Library, queue: PullQueue) -> None:
        super().__init__(classes="message welcome")
        self._library, self._queue = library, queue
        available = available_bytes()
        choice = recommend(library.catalogue, "chat", Machine(available, memory_bytes_per_s()))
        self._ref = choice.ref if choice else ""
        self._demo = next((entry.ref for entry in library.store.shipped()), "")
        lines = [
            _("Welcome. There is no model on this machine yet."),
            _("{n} of memory are available, {c} CPU cores can be used.").format(
                n=megabytes(available), c=usable_cores()
            ),
        ]
        if choice:
            text = _(
                "Recommended here: {ref}, {n} to download (about {m} min at 50 Mbit/s), {s} tok/s expected."
            )
            minutes = choice.variant.size / _LINE_BYTES_PER_S / 60
            lines.append(
                text.format(
                    ref=choice.ref,
                    n=megabytes(choice.variant.size),
                    m=f"{minutes:.0f}",
                    s=f"{choice.tokens_per_s:.0f}",
                )
            )
        lines.append(
            _("Without a network: Ctrl+O, then F6 imports a GGUF file; `edgeqwen bundle import` a bundle.")
        )
        self._text = "\n\n".join(lines)

    def compose(self) -> ComposeResult:
        yield Static(self._text, markup=False)
        if self._ref:
            yield Button(
                _("Download {ref}").format(ref=self._ref), id="recommended", variant="primary", compact=True
            )
        if self._demo:
            yield Button(_("Try the built-in demo"), id="demo", compact=True)
        yield Button(_("Show all models (Ctrl+O)"), id="all-models", compact=True)

    @on(Button.Pressed)
    def _choose(self, event: Button.Pressed) -> None:
        if event.button.id == "recommended":
            self._download()
        else:
            self.post_message(self.Chosen(self._demo if event.button.id == "demo" else ""))

    @work
    async def _download(self) -> None:
        from edgeqwen.tui.screens.models import offer_download

        await offer_download(self.app, self._library, self._queue, self._ref)
