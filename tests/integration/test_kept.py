"""Saved KV caches under fire: killed while written, written by two; and one conversation asked twice."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from edgeqwen.engine.client import WorkerClient
from edgeqwen.engine.protocol import LoadParams, SavedParams, Started
from edgeqwen.errors import WorkerLost
from tests.support.asking import Answer, ask

LONG = "The old bridge over the river leads from one half of the city to the other. " * 12


def params(models: Path, folder: Path | None, arch: str = "qwen3", **changes: int) -> LoadParams:
    saved = folder and SavedParams(folder=str(folder), model=arch)
    return LoadParams(
        paths=(str(models / f"{arch}.gguf"),), saved=saved or None, **{"n_ctx": 2048, "n_slots": 1, **changes}
    )


def cached(answer: Answer) -> int:
    return next(event.cached_tokens for event in answer.events if isinstance(event, Started))


def restored(answer: Answer) -> int:
    return next(event.restored_tokens for event in answer.events if isinstance(event, Started))


def kill_while_saving(pid: int, folder: Path, delay_s: float) -> None:
    """Kill a process some time after its first file is there; it may be faster than that."""
    deadline = time.monotonic() + 5
    while not any(folder.glob("*")) and time.monotonic() < deadline:
        os.sched_yield()
    time.sleep(delay_s)  # each delay kills it at another point of writing
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("delay_s", [0.0, 0.002, 0.01, 0.05])
@pytest.mark.parametrize("arch", ["qwen3", "qwen35"])
async def test_a_worker_killed_while_it_saves_costs_the_next_one_nothing(
    models: Path, tmp_path: Path, arch: str, delay_s: float
) -> None:
    folder = tmp_path / "kv"
    async with WorkerClient(tmp_path / "logs") as client:
        await client.load(params(models, folder, arch))
        first = await ask(client, LONG)
        assert client.pid is not None
        closing = asyncio.create_task(client.close())
        await asyncio.to_thread(kill_while_saving, client.pid, folder, delay_s)
        await closing
    async with WorkerClient(tmp_path / "logs") as client:
        await client.load(params(models, folder, arch))
        again = await ask(client, LONG)
    assert again.text == first.text
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.glob("*"))


async def test_two_workers_may_keep_one_conversation(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kv"
    async with WorkerClient(tmp_path / "logs") as one, WorkerClient(tmp_path / "logs") as two:
        await asyncio.gather(one.load(params(models, folder)), two.load(params(models, folder)))
        said, also_said = await asyncio.gather(ask(one, LONG), ask(two, LONG))
        assert said.text == also_said.text
        await asyncio.gather(one.close(), two.close())
    async with WorkerClient(tmp_path / "logs") as client:
        await client.load(params(models, folder))
        again = await ask(client, LONG, said.text, "And now?")
    assert cached(again) == restored(again) > 800
    assert restored(said) == restored(also_said) == 0


@pytest.mark.parametrize("n_slots", [1, 3])
async def test_one_conversation_asked_twice_at_once_gets_two_answers(
    models: Path, tmp_path: Path, n_slots: int
) -> None:
    async with WorkerClient(tmp_path / "logs") as client:
        await client.load(params(models, None, n_slots=n_slots))
        answers = await asyncio.gather(*(ask(client, LONG) for _ in range(4)))
    assert len({answer.text for answer in answers}) == 1
    assert sum(cached(answer) > 800 for answer in answers) >= 3  # read once, then taken from the cache


async def test_a_saved_conversation_whose_file_vanishes_is_read_anew(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kv"
    async with WorkerClient(tmp_path / "logs") as client:
        await client.load(params(models, folder))
        first = await ask(client, LONG)
    async with WorkerClient(tmp_path / "logs") as client:
        await client.load(params(models, folder))
        for path in folder.glob("*.kv"):
            path.unlink()
        assert (await ask(client, LONG)).text == first.text


async def test_a_dead_worker_says_so_to_both_who_wait(models: Path, tmp_path: Path) -> None:
    async with WorkerClient(tmp_path / "logs") as client:
        await client.load(params(models, None))
        tasks = [asyncio.create_task(ask(client, LONG, max_tokens=None)) for _ in range(2)]
        await asyncio.sleep(0)
        assert client.pid is not None
        os.kill(client.pid, signal.SIGKILL)
        for task in tasks:
            with pytest.raises(WorkerLost):
                await task
