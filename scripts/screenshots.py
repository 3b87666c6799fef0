"""Draws the pictures of the documents: scenes of the full-screen chat, as SVG files under docs/screenshots.

    python scripts/screenshots.py [SCENE...]

The chat in them was held with a real model, and its figures are those that were measured then; it lies beside
this script. Machine and clock stand still, so that the same code draws the same picture: a test compares them
byte by byte.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from textual.pilot import Pilot

from edgeqwen import config
from edgeqwen.chat.exchange import import_chats
from edgeqwen.chat.history import History
from edgeqwen.machine.health import Check
from edgeqwen.machine.monitor import Sample, WorkerMemory
from edgeqwen.models.library import Library
from edgeqwen.paths import Paths
from edgeqwen.tui.app import EdgeApp, Start
from edgeqwen.tui.language import set_language

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs/screenshots"
CHATS = ROOT / "scripts/chats.json"
WHEN = 1_793_620_800.0  # a morning in November 2026
# Read while the chat was held: AMD EPYC (virtual machine), 2 cores, 24 GiB.
MACHINE = Sample(
    worker=WorkerMemory(rss=698_000_000, mapped=487_000_000, own=211_000_000),
    available=23_400_000_000,
    total=25_300_000_000,
    swap_used=0,
    swapped_in=0,
    memory_pressure=0.0,
    cpu=(99.0, 98.0),
    temperature=None,
    is_throttled=None,
)
HEALTH = [
    Check(
        "llama.cpp", "ok", "built for this CPU: AVX, AVX2, FMA, F16C, BMI2, AVX512, AVX512_VNNI, AVX512_BF16"
    ),
    Check("cpu", "ok", "x86_64, 2 cores for edgeqwen"),
    Check("memory", "ok", "23.4 GB of 25.3 GB available"),
]
Act = Callable[[Pilot[None]], Awaitable[object]]


def press(*keys: str) -> Act:
    return lambda pilot: pilot.press(*keys)


class Scene(NamedTuple):
    """One picture: the size in cells, what is done before it is taken, and how the chat is set."""

    size: tuple[int, int]
    act: Act = press()
    config: str = ""
    chat: int | None = 1


SCENES = {
    "chat": Scene((100, 30)),
    "chat-wide": Scene((140, 42)),
    "monitor": Scene((100, 40), press("f3")),
    "chat-narrow": Scene((40, 20)),
    "chat-contrast": Scene((80, 24), config='theme = "contrast"'),
    "chat-light-chinese": Scene((80, 24), config='theme = "light"\nlanguage = "zh_CN"'),
    "welcome": Scene((80, 24), chat=None),
    "models": Scene((100, 30), press("ctrl+o")),
    "history": Scene((80, 24), press("ctrl+r", *"bridge")),
    "settings": Scene((80, 24), press("f2")),
    "help-hungarian": Scene((100, 42), press("f1"), 'language = "hu"', None),
}


def draw(name: str) -> str:
    """Return a scene's picture as SVG."""
    scene = SCENES[name]
    with tempfile.TemporaryDirectory() as folder, _machine_that_stands_still():
        return asyncio.run(_take(_library(Path(folder), scene), scene))


@contextmanager
def _machine_that_stands_still() -> Iterator[None]:
    readings: dict[str, object] = {
        "commands.available_bytes": MACHINE.available,
        "welcome.available_bytes": MACHINE.available,
        "welcome.memory_bytes_per_s": 9.6e9,
        "welcome.usable_cores": len(MACHINE.cpu),
        "app.Monitor.sample": MACHINE,
        "screens.monitor.examine": HEALTH,
        "widgets.monitor.Record.tick": None,
    }
    with ExitStack() as stack:
        for name, value in readings.items():
            stack.enter_context(mock.patch(f"edgeqwen.tui.{name}", return_value=value))
        stack.callback(time.tzset)
        stack.enter_context(mock.patch.dict(os.environ, TZ="UTC"))
        time.tzset()
        yield


def _library(folder: Path, scene: Scene) -> Library:
    library = Library()
    settings = folder / "config.toml"
    settings.write_text(f"[tui]\n{scene.config}\n", encoding="utf-8")
    own = Paths(folder / "data", Path("/home/you/.config/edgeqwen"), folder / "cache", folder / "state")
    library.__dict__ |= {"paths": own, "config": config.load(settings)}
    history = History(own.chats, clock=lambda: WHEN)
    import_chats(CHATS, history)
    history.close()
    return library


async def _take(library: Library, scene: Scene) -> str:
    set_language("en")
    app = EdgeApp(library, Start(chat=scene.chat))
    app.animation_level = "none"
    async with app.run_test(size=scene.size) as pilot:
        while app.gauge.sample is None:
            await pilot.pause(0.05)
        if scene.chat is not None:
            _tell_the_gauge(app)
        await scene.act(pilot)
        await pilot.pause(0.5)
        return _offline(app.export_screenshot(title="edgeqwen"))


def _tell_the_gauge(app: EdgeApp) -> None:
    """Say what the gauge would say had the chat just been held."""
    last = next(one.made for one in app.chat.desk.conversation.branch()[::-1] if one.made)
    app.gauge.model, app.gauge.n_ctx, app.gauge.kv_bytes = last.model, 8192, 100_663_296
    app.gauge.count(last.stats)
    if not app.record.answers:
        app.record.answers += [one.made.stats for one in app.chat.desk.conversation.branch() if one.made]
    app.record.rates.extend(stats.decode_tps or 0.0 for stats in app.record.answers)
    app.chat.draw(second=True)


def _offline(svg: str) -> str:
    """Return the picture without the fonts that it would fetch from the network."""
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


def main() -> int:
    """Draw the scenes that are named, or all."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or SCENES:
        (PICTURES / f"{name}.svg").write_text(draw(name), encoding="utf-8")
        print(PICTURES / f"{name}.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
