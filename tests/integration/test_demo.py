"""The built-in demo: it is there without any download, answers what it was taught, and says what it is."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.program import edgeqwen

REPOSITORY = Path(__file__).parents[2]
FILE = REPOSITORY / "edgeqwen/demo/demo/q8_0/edgeqwen-demo-q8_0.gguf"


@pytest.fixture(scope="module")
def checking() -> Iterator[dict[str, Any]]:
    path = list(sys.path)
    yield runpy.run_path(str(REPOSITORY / "scripts" / "check_demo_model.py"))
    sys.path[:] = path


def test_it_answers_without_a_download_and_without_a_network(home: Path) -> None:
    done = edgeqwen("run", "demo", "What is edgeqwen?", env={"HF_HUB_OFFLINE": "1"})
    assert done.code == 0
    assert "edgeqwen is a program" in done.out
    assert not (home / "data" / "models").exists(), "nothing is installed by it"


@pytest.mark.parametrize(
    ("whose", "each", "think", "bar"),
    [
        ("held_out", 5, False, 0.93),
        ("held_out", 5, True, 0.93),
        ("by_strangers", 3, False, 0.9),
        ("by_strangers", 3, True, 0.9),
    ],
)
async def test_it_knows_wordings_that_it_has_never_seen(
    checking: dict[str, Any], whose: str, each: int, think: bool, bar: float
) -> None:
    questions = getattr(checking["load_corpus"](), whose)[::each]
    told = await checking["ask"](FILE, questions, think=think)
    figures = checking["judge"](questions, told, think=think)
    assert figures["right"] >= bar * len(told)
    assert figures["ended"] >= 0.98 * len(told)
    assert figures["obeyed"] >= (0.95 if think else 1) * len(told)


def test_thinking_can_be_switched_off_in_the_message(home: Path) -> None:
    done = edgeqwen("run", "demo", "--think", "What is edgeqwen? /no_think", "--json").json
    assert (done["thinking"].strip(), "edgeqwen is a program" in done["text"]) == ("", True)
    assert edgeqwen("run", "demo", "--think", "What is edgeqwen?", "--json").json["thinking"].strip()


def test_it_is_small_and_called_what_it_is() -> None:
    assert FILE.stat().st_size <= 6_000_000
    shown = edgeqwen("show", "demo", "--json").json
    assert sum(one["size_bytes"] for one in shown["files"]) == FILE.stat().st_size
    assert "little else" in edgeqwen("run", "demo", "Who are you?").out
    assert edgeqwen("verify", "demo", "--full").code == 0


def test_it_is_neither_installed_nor_pulled_nor_removed() -> None:
    assert edgeqwen("list", "--json").json == []
    everything = {one["ref"]: one for one in edgeqwen("list", "--all", "--json").json}
    assert everything["demo:q8_0"]["is_installed"]
    for command, words in (("pull", "comes with edgeqwen"), ("rm", "goes with it")):
        done = edgeqwen(command, "demo", *(["--yes"] if command == "rm" else []))
        assert done.code in (2, 4)
        assert words in done.err
    assert FILE.exists()
    assert "demo" not in edgeqwen("recommend", "chat", "--json").out
    assert edgeqwen("chat", stdin="hi\n").code == 2, "no program falls back on it unasked"
