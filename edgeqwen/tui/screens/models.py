"""The models: installed ones first, then what fits this machine, then the rest; with their downloads.

Shows the catalogue, the store and the queue, and gives back the ref to load. Downloads go on when it closes.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar

from textual import work
from textual.app import App
from textual.binding import Binding, BindingType

from edgeqwen.errors import EdgeQwenError
from edgeqwen.models.adopt import adopt
from edgeqwen.models.catalogue import Model, Variant
from edgeqwen.models.fit import estimate, facts_from_catalogue, verdict
from edgeqwen.models.library import Library
from edgeqwen.models.pull import plan_pull
from edgeqwen.models.queue import Download, PullQueue
from edgeqwen.models.ref import parse_ref
from edgeqwen.models.sources import user_sources
from edgeqwen.models.store import Entry, verify
from edgeqwen.paths import expand
from edgeqwen.text import clean_line
from edgeqwen.tui.language import _
from edgeqwen.tui.screens.chooser import Chooser, Row
from edgeqwen.tui.screens.dialogs import Confirm, Form
from edgeqwen.tui.widgets.status import bar, megabytes

_CONTEXT = 4096  # tokens for which the list says whether a model fits


class ModelsScreen(Chooser[str]):
    """Enter loads an installed model, or downloads another one."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+d", "remove", "Remove", priority=True),
        Binding("ctrl+v", "verify", "Verify", priority=True),
        Binding("f6", "import_file", "Import"),
        Binding("f7", "pause", "Pause or go on", priority=True),
        Binding("f8", "cancel", "Cancel the download", priority=True),
    ]

    def __init__(self, library: Library, queue: PullQueue, available_bytes: int, current: str) -> None:
        super().__init__()
        self._library, self._queue = library, queue
        self._available, self._current = available_bytes, current
        self._installed: dict[str, Entry] = {}
        self._shipped = {entry.ref for entry in library.store.shipped()}
        self._offered: dict[str, tuple[Model, Variant]] = {}
        self._totals: dict[str, int] = {}

    def heading(self) -> str:
        return _("Models · {n} of memory available").format(n=megabytes(self._available))

    def hint(self) -> str:
        keys = _("Enter load or download · Ctrl+D remove · Ctrl+V verify · F6 import a file")
        return keys + "\n" + _("of a download: F7 pause or go on · F8 cancel · Esc back")

    def on_show(self) -> None:
        self.refresh_models()
        self.set_interval(0.5, self._tick)

    @work(exclusive=True, group="list")
    async def refresh_models(self) -> None:
        """Read the store and the catalogue again."""
        try:
            self._installed, self._offered, self._totals = await asyncio.to_thread(self._read)
        except EdgeQwenError as error:  # the user's own models.toml, or a store that cannot be read
            self.notify(error.message, severity="error", timeout=15)
        self._draw()

    def _read(self) -> tuple[dict[str, Entry], dict[str, tuple[Model, Variant]], dict[str, int]]:
        store = self._library.store
        installed = {entry.ref: entry for entry in (*store.shipped(), *store.entries())}
        offered: dict[str, tuple[Model, Variant]] = {}
        totals: dict[str, int] = {}
        for model in self._library.catalogue.models.values():
            variant = model.variant(model.default_quant)
            if variant is None or "chat" not in model.capabilities:
                continue
            ref = f"{model.ref}:{variant.quant}"
            offered[ref] = (model, variant)
            facts = facts_from_catalogue(model, variant)
            totals[ref] = estimate(facts, min(_CONTEXT, model.context)).total
        return installed, offered, totals

    def on_input_changed(self) -> None:
        self._draw()

    def _tick(self) -> None:
        if self._queue.downloads:
            self._draw()

    def _draw(self) -> None:
        words = self.filter.lower().split()

        def wanted(ref: str) -> bool:
            return all(word in ref for word in words)

        here = [ref for ref in self._installed if wanted(ref)]
        installed = [self._installed_row(ref) for ref in here if ref not in self._shipped]
        shipped = [self._installed_row(ref) for ref in here if ref in self._shipped]
        others = [ref for ref in self._offered if ref not in self._installed and wanted(ref)]
        running = [self._download_row(one) for one in self._shown_downloads() if wanted(one.ref)]
        busy = {one.ref for one in self._shown_downloads()}
        fitting: list[Row] = []
        rest: list[Row] = []
        for ref in sorted(others, key=lambda ref: self._totals[ref]):
            if ref not in busy:
                fits = verdict(self._totals[ref], self._available) == "fits"
                (fitting if fits else rest).append(self._offered_row(ref))
        rows: list[Row] = []
        sections = (
            (_("downloads"), running),
            (_("installed"), installed),
            (_("fits this machine"), fitting[::-1]),
            (_("needs more memory"), rest),
            (_("built in"), shipped),
        )
        for title, section in sections:
            if section:
                rows += [Row("", title), *section]
        self.show_rows(rows or [Row("", _("nothing has such a name"))])

    def _shown_downloads(self) -> list[Download]:
        return [
            one for one in self._queue.downloads if one.state in ("running", "waiting", "paused", "failed")
        ]

    def _installed_row(self, ref: str) -> Row:
        mark = "● " if ref == self._current else "  "
        return Row(ref, mark + ref, megabytes(self._installed[ref].size))

    def _offered_row(self, ref: str) -> Row:
        _model, variant = self._offered[ref]
        needs = _("{n} to download, about {m} of memory").format(
            n=megabytes(variant.size), m=megabytes(self._totals[ref])
        )
        return Row(ref, f"  {ref}", needs)

    def _download_row(self, one: Download) -> Row:
        share = one.done / max(1, one.plan.size)
        state = {"running": "", "waiting": _("waiting"), "paused": _("paused"), "failed": _("failed")}[
            one.state
        ]
        note = f"{bar(share, 10)} {100 * share:.0f}% {state}"
        if one.rate and one.seconds_left is not None:
            note += f"{megabytes(one.rate)}/s {one.seconds_left:.0f} s"
        return Row(one.ref, f"↓ {one.ref}", note)

    def detail(self, key: str) -> str:
        download = self._queue.find(key)
        if download and download.message:
            return clean_line(download.message)
        entry = self._installed.get(key)
        model = self._library.catalogue.models.get(entry.manifest.catalogue_ref or "") if entry else None
        if model is None and key in self._offered:
            model = self._offered[key][0]
        if model is None:
            return _("not in the catalogue: its licence is not known")
        licence = self._library.catalogue.licences[model.licence].name
        thinking = {"none": "", "toggle": _("thinking on and off"), "always": _("always thinks")}[
            model.thinking
        ]
        parts = [
            licence,
            ", ".join(model.capabilities),
            thinking,
            _("context {n}").format(n=f"{model.context:,}"),
        ]
        return " · ".join(filter(None, parts))

    def choose(self, key: str) -> None:
        if key in self._installed:
            self.dismiss(key)
            return
        download = self._queue.find(key)
        if download and download.state in ("paused", "failed"):
            self._queue.resume(download)
        elif download is None or download.state in ("cancelled", "done"):
            # By the app: what was agreed to is begun also when this screen closes meanwhile.
            self.app.run_worker(offer_download(self.app, self._library, self._queue, key))

    def action_pause(self) -> None:
        download = self._queue.find(self.key or "")
        if download and download.state in ("running", "waiting"):
            self._queue.pause(download)
        elif download:
            self._queue.resume(download)
        self._draw()

    def action_cancel(self) -> None:
        if download := self._queue.find(self.key or ""):
            self._queue.cancel(download)
            self._draw()

    @work
    async def action_remove(self) -> None:
        entry = self._installed.get(self.key or "")
        if entry is None:
            return
        question = _("Remove {ref} and free {n}?").format(ref=entry.ref, n=megabytes(entry.size))
        if await self.app.push_screen_wait(Confirm(question)):
            try:
                await asyncio.to_thread(self._library.store.remove, entry)
                self.notify(_("removed {ref}").format(ref=entry.ref))
            except EdgeQwenError as error:
                self.notify(error.message, severity="error")
            self.refresh_models()

    @work(exclusive=True, group="verify")
    async def action_verify(self) -> None:
        entry = self._installed.get(self.key or "")
        if entry is None:
            return
        self.notify(_("checking {ref}…").format(ref=entry.ref))
        checks = await asyncio.to_thread(lambda: list(verify(entry)))
        problems = [f"{check.path.name}: {check.problem}" for check in checks if check.problem]
        if problems:
            self.notify("\n".join(problems), severity="error", timeout=20)
        else:
            self._library.stamps.put(entry)
            self.notify(_("{ref} is whole").format(ref=entry.ref))

    @work
    async def action_import_file(self) -> None:
        field = _("Path of a GGUF file")
        answer = await self.app.push_screen_wait(Form(_("Import a model"), {field: ""}))
        if not answer or not answer[field].strip():
            return
        self.notify(_("importing…"))
        try:
            path: Path = expand(answer[field].strip())
            adopted = await asyncio.to_thread(adopt, path, self._library.store, self._library.catalogue)
            self.notify(_("imported {ref}").format(ref=adopted.entry.ref))
        except EdgeQwenError as error:
            self.notify(error.message, severity="error", timeout=15)
        self.refresh_models()


async def offer_download(app: App[object], library: Library, queue: PullQueue, ref: str) -> bool:
    """Ask whether a model of the catalogue is wanted, with size and licence, and queue it if so."""
    parsed = parse_ref(ref)
    model = library.catalogue.find(parsed)
    variant = model.variant(parsed.quant or model.default_quant)
    licence = library.catalogue.licences[model.licence]
    question = _("Download {ref}, {n}?\nLicence: {licence}").format(
        ref=ref, n=megabytes(variant.size if variant else 0), licence=licence.name
    )
    if not licence.commercial_use:
        question += "\n" + _("It does not allow commercial use: {url}").format(url=licence.url)
    if not await app.push_screen_wait(Confirm(question)):
        return False
    try:
        sources = user_sources(library.config.pull.sources)
        plan = await asyncio.to_thread(plan_pull, parsed, library.catalogue, sources, library.heads)
    except EdgeQwenError as error:
        app.notify(error.message, severity="error")
        return False
    queue.add(plan)
    return True
