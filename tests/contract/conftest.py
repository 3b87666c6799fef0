"""The engines every contract test runs on, each in a real worker process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from edgeqwen.engine.client import WorkerClient
from edgeqwen.engine.protocol import LoadParams
from tests.support.asking import script

SAYING = "The quick brown fox jumps over the lazy dog, and does it once more. " * 40
OpenWorker = Callable[..., Awaitable[WorkerClient]]


@pytest.fixture(params=["scripted", "qwen2", "qwen3", "qwen35"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def open_worker(kind: str, models: Path, tmp_path: Path) -> AsyncIterator[OpenWorker]:
    """Return a function that loads the engine under test; `delay_s` slows the scripted one down."""
    async with AsyncExitStack() as stack:

        async def open_(delay_s: float = 0.0, **params: Any) -> WorkerClient:
            client = await stack.enter_async_context(WorkerClient(tmp_path / "logs"))
            if kind == "scripted":
                path = script(tmp_path, pieces=list(SAYING), delay_s=delay_s)
            else:
                path = models / f"{kind}.gguf"
            engine = "scripted" if kind == "scripted" else "llama"
            await client.load(LoadParams(paths=(str(path),), engine=engine, **{"n_ctx": 512, **params}))
            return client

        yield open_
