"""Measures the full-screen chat in a real pseudo-terminal; asserts nothing.

    python tests/bench/bench_tui.py MODEL.gguf [--rounds 5]

First paint, memory with 200 messages, key to paint while the model decodes with all its threads, what the
screen costs the decode rate, bytes to the terminal per 100 tokens, and searching 10,000 chats. A table,
then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))

from edgeqwen.chat.conversation import Conversation
from edgeqwen.chat.history import History
from edgeqwen.paths import user_paths
from tests.support.screen import ScreenTerminal

QUESTION = "Explain in great detail how a bicycle works, in at least 600 words."
N_TOKENS = 200
PARAGRAPH = "The old bridge leads from one half of the city to the *other*, and `back` again. " * 15


def first_paint(rounds: int) -> float:
    """Return the seconds from exec to the first text of ours."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        with ScreenTerminal("chat") as terminal:
            terminal.wait_for("Enter sends")
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def memory_of_200_messages(model: Path) -> int:
    """Return the resident bytes of the screen's process with 200 messages open."""
    history = History(user_paths().chats)
    conversation = Conversation()
    for index in range(200):
        conversation.add("assistant" if index % 2 else "user", f"{index}. {PARAGRAPH}")
    chat = history.create(conversation, "long")
    history.close()
    with ScreenTerminal("chat", "--open", str(chat), model) as terminal:
        terminal.wait_for(r"gguf ·", 60)
        terminal.wait_for("199")
        read_for(terminal, 1.0)
        return int(psutil.Process(terminal.pid).memory_info().rss)


def search_among_10000() -> list[float]:
    """Return the seconds of each search while somebody types words to look for."""
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghijklmnoprstuvz", k=rng.randrange(3, 10))) for _ in range(5000)]
    history = History(Path(os.environ["EDGEQWEN_HOME"]) / "many.db")
    for _ in range(10_000):
        conversation = Conversation()
        for role in ("user", "assistant") * 2:
            conversation.add(role, " ".join(rng.choices(words, k=60)))  # type: ignore[arg-type]
        history.create(conversation, " ".join(rng.choices(words, k=5)))
    seconds = []
    for text in (words[0], f"{words[1]} {words[2]}", words[3][:2]):
        for n_typed in range(1, len(text) + 1):
            started = time.perf_counter()
            history.search(text[:n_typed])
            seconds.append(time.perf_counter() - started)
    history.close()
    return seconds


def read_for(terminal: ScreenTerminal, seconds: float) -> None:
    """Take what comes for a while."""
    deadline = time.perf_counter() + seconds
    while (left := deadline - time.perf_counter()) > 0:
        terminal.read(left)


def answering(model: Path, *arguments: str) -> tuple[float, list[float], float]:
    """Return the decode rate, the seconds from each key to its paint, and bytes per 100 tokens."""
    with ScreenTerminal("chat", *arguments, model) as terminal:
        terminal.wait_for(r"gguf ·", 60)
        read_for(terminal, 1.5)
        before = len(terminal.raw)
        terminal.type(f"{QUESTION}\r")
        terminal.wait_for("first after", 120)
        n_bytes = len(terminal.raw) - before
        rate = float(re.search(r"([\d.]+) tok/s · first", terminal.text)[1])  # type: ignore[index]
        terminal.type("/new\r")
        read_for(terminal, 1.0)
        terminal.type(f"{QUESTION}\r")
        terminal.wait_for(r"bicycle[\s\S]*bicycle", 60)
        lags = []
        for index in range(20):
            key = chr(ord("a") + index)
            lags.append(key_to_paint(terminal, key))
            read_for(terminal, 0.13)
    return rate, lags, n_bytes / (N_TOKENS / 100)


def key_to_paint(terminal: ScreenTerminal, key: str) -> float:
    """Press a key and return the seconds until it stands in the prompt."""
    started = time.perf_counter()
    terminal.type(key)
    while not re.search(rf"│ [a-z]*{key}\s", terminal.text):
        terminal.read(1.0)
        if time.perf_counter() - started > 5:
            return 5.0
    return time.perf_counter() - started


def plain_rate(model: Path) -> float:
    """Return the decode rate of the line by line program."""
    command = [sys.executable, "-m", "edgeqwen", "run", str(model), QUESTION, "--json"]
    done = subprocess.run(
        [*command, "--max-tokens", str(N_TOKENS)], capture_output=True, text=True, check=True
    )
    return float(json.loads(done.stdout)["stats"]["decode_tps"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model = options.model.absolute()
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"EDGEQWEN_HOME": home, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
        (Path(home) / "config").mkdir()
        (Path(home) / "config" / "config.toml").write_text(f"[sampler]\nmax_tokens = {N_TOKENS}\n")
        paint = first_paint(options.rounds)
        searches = search_among_10000()
        memory = memory_of_200_messages(model)
        plain, screen, ratios, lags, n_bytes = [], [], [], [], []
        for _ in range(options.rounds):
            plain.append(plain_rate(model))
            rate, some, size = answering(model)
            screen.append(rate)
            ratios.append(rate / plain[-1])
            lags += some
            n_bytes.append(size)
        slow = answering(model, "--low-bandwidth")[2]
    p90 = statistics.quantiles(lags, n=10)[8]
    figures = {
        "first_paint_s": round(paint, 3),
        "key_to_paint_p50_ms": round(1000 * statistics.median(lags), 1),
        "key_to_paint_p90_ms": round(1000 * p90, 1),
        "memory_200_messages_bytes": memory,
        "search_10000_p50_ms": round(1000 * statistics.median(searches), 1),
        "search_10000_max_ms": round(1000 * max(searches), 1),
        "decode_plain_tps": round(statistics.median(plain), 2),
        "decode_screen_tps": round(statistics.median(screen), 2),
        "decode_ratio": round(statistics.median(ratios), 3),
        "bytes_per_100_tokens": round(statistics.median(n_bytes)),
        "bytes_per_100_tokens_low_bandwidth": round(slow),
    }
    for name, value in figures.items():
        print(f"| {name} | {value:,} |")
    print(
        json.dumps(
            {"machine": platform.machine(), "cores": os.cpu_count(), "rounds": options.rounds, **figures}
        )
    )


if __name__ == "__main__":
    main()
