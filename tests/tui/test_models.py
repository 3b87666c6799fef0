"""Models in the chat: pulled, paused, resumed, cancelled, switched to, verified, removed, imported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from textual.widgets import Input, OptionList

from edgeqwen.models.queue import Download
from edgeqwen.tui.app import EdgeApp
from edgeqwen.tui.screens.chooser import Chooser
from edgeqwen.tui.screens.dialogs import Confirm, Form
from tests.integration.test_pull import REPO, offer
from tests.support.hub import Hub
from tests.support.tiny import write_model
from tests.tui.conftest import Open
from tests.tui.waiting import app_of, ask, messages, toasts, until


@pytest.fixture
def hub(tmp_path: Path, home: Path) -> Iterator[Hub]:
    (tmp_path / "hub" / REPO).mkdir(parents=True)
    with Hub(tmp_path / "hub") as hub:
        offer(hub, home, write_model(hub.folder / REPO / "tiny-q8_0.gguf"))
        yield hub


def key(app: EdgeApp) -> str | None:
    return app.screen.key if isinstance(app.screen, Chooser) else None


def keys(app: EdgeApp) -> list[str | None]:
    return [option.id for option in app.screen.query_one(OptionList).options]


async def test_a_model_is_pulled_loaded_verified_and_removed(open_app: Open, hub: Hub, home: Path) -> None:
    with (home / "config" / "config.toml").open("a") as file:
        file.write("[sampler]\nmax_tokens = 8\n")
    async with open_app(size=(110, 40)) as pilot:
        app = app_of(pilot)
        await pilot.press("ctrl+o")
        await until(pilot, lambda: key(app), "the list is there")
        await pilot.press(*"tiny", "enter")
        await until(pilot, lambda: isinstance(app.screen, Confirm), "it asks")
        await pilot.press("y")
        await until(pilot, lambda: app.gauge.model == "tiny:q8_0", "it comes, and is loaded as the first one")
        await pilot.press("escape")
        await ask(pilot, "hi")
        assert len(messages(pilot)) == 2
        await pilot.press("ctrl+o")
        await until(pilot, lambda: key(app), "the list is there")
        await pilot.press("ctrl+v")
        await until(pilot, lambda: any("is whole" in text for text in toasts(pilot)), "it is verified")
        await pilot.press("ctrl+d")
        await until(pilot, lambda: isinstance(app.screen, Confirm), "it asks")
        await pilot.press("y")
        await until(pilot, lambda: not app.library.store.entries(), "it is removed")


async def test_a_download_pauses_resumes_and_survives_the_screen(open_app: Open, hub: Hub) -> None:
    hub.fail("tiny-q8_0.gguf", "stall", at=100_000)
    async with open_app(size=(110, 40)) as pilot:
        app = app_of(pilot)

        def download() -> Download | None:
            return app._queue.find("tiny:q8_0")

        def state() -> str:
            found = download()
            return found.state if found else ""

        await pilot.press("ctrl+o")
        await until(pilot, lambda: key(app), "the list is there")
        await pilot.press(*"tiny", "enter")
        await until(pilot, lambda: isinstance(app.screen, Confirm), "it asks")
        await pilot.press("y")
        await until(pilot, lambda: (found := download()) and found.done >= 50_000, "some of it is here")
        await until(pilot, lambda: key(app) == "tiny:q8_0", "it is shown")
        await pilot.press("f7")
        await until(pilot, lambda: state() == "paused", "it is paused")
        hub.stalled.set()
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is app.chat, "the screen is left")
        await pilot.press("ctrl+o")
        await until(pilot, lambda: key(app) == "tiny:q8_0", "still there")
        await pilot.press("f7")
        await until(pilot, lambda: state() == "done", "it is here")


async def test_a_download_that_fails_says_why_and_can_be_cancelled(open_app: Open, hub: Hub) -> None:
    hub.fail("tiny-q8_0.gguf", "status", at=403, times=9)
    async with open_app(size=(110, 40)) as pilot:
        app = app_of(pilot)
        await pilot.press("ctrl+o")
        await until(pilot, lambda: key(app), "the list is there")
        await pilot.press(*"tiny", "enter")
        await until(pilot, lambda: isinstance(app.screen, Confirm), "it asks")
        await pilot.press("y")
        await until(
            pilot, lambda: (found := app._queue.find("tiny:q8_0")) and found.state == "failed", "it fails"
        )
        assert app._queue.downloads[0].message
        await until(pilot, lambda: key(app) == "tiny:q8_0", "it is shown")
        await pilot.press("f8")
        await until(pilot, lambda: app._queue.downloads[0].state == "cancelled", "it is gone")


async def test_a_file_is_imported_and_switched_to(open_app: Open, models: Path, home: Path) -> None:
    async with open_app(pieces=["scripted"]) as pilot:
        app = app_of(pilot)
        await ask(pilot, "hello")
        await pilot.press("ctrl+o")
        await until(pilot, lambda: key(app), "the list is there")
        for path, words in ((models / "nowhere.gguf", "nowhere.gguf"), (models / "qwen3.gguf", "imported")):
            await pilot.press("f6")
            await until(pilot, lambda: isinstance(app.screen, Form), "it asks for the file")
            app.screen.query_one(Input).value = str(path)
            await pilot.press("enter")
            await until(pilot, lambda words=words: any(words in text for text in toasts(pilot)), words)
        ref = app.library.store.entries()[0].ref
        await until(pilot, lambda: ref in keys(app), "it is in the list")
        app.screen.query_one(Input).value = ref
        await until(pilot, lambda: key(app) == ref, "it is found")
        await pilot.press("enter")
        await until(pilot, lambda: app.gauge.model == ref, "it is loaded")
        assert messages(pilot) == ["hello", "scripted"]
        assert (home / "state" / "last-model").read_text() == ref
