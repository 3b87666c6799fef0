"""The program with a scripted model, without a terminal."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from edgeqwen.models.library import Library
from tests.support.asking import script

os.environ["TEXTUAL_ANIMATIONS"] = "none"

from textual.pilot import Pilot

from edgeqwen.tui.app import EdgeApp, Start
from edgeqwen.tui.language import set_language
from tests.tui.waiting import until

Open = Callable[..., AbstractAsyncContextManager[Pilot[None]]]


@pytest.fixture
def open_app(tmp_path: Path, home: Path) -> Open:
    """Return a function that runs the program; what it is given becomes the script of its model."""

    @asynccontextmanager
    async def open_(
        size: tuple[int, int] = (100, 30), chat: int | None = None, ref: str | None = None, **content: Any
    ) -> AsyncIterator[Pilot[None]]:
        set_language("en")
        if content:
            ref = str(script(tmp_path, **content))
        app = EdgeApp(Library(), Start(ref, chat))
        async with app.run_test(size=size) as pilot:
            if ref:
                await until(pilot, lambda: app.gauge.model, "the model is loaded")
            else:
                await until(pilot, lambda: app.chat._desk is not None, "the history is open")
            yield pilot

    return open_
