"""Asks an engine many times, with random cancels, and watches memory, slots and answers.

    python scripts/soak.py MODEL.gguf [--requests 1000] [--slots 3] [--seed 1]

The real worker, as a process. Answers that were not cancelled are asked again, each of a worker of its own
that has read nothing else; where the two differ, the difference is shown. Exits 1 when the worker's memory
grew by more than 3 % after the first tenth, when a request got no closing frame, or when over 5 % of the
answers differ: neighbours in a batch change the rounding, and with it ties.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from contextlib import aclosing
from pathlib import Path

import psutil

from edgeqwen.engine.client import WorkerClient
from edgeqwen.engine.protocol import ChatMessage, Finished, Generate, LoadParams, SamplerParams, TextDelta
from edgeqwen.machine.cpu import usable_cores

_WORDS = ["sea", "fox", "key", "bridge", "moon", "winter", "train", "letter", "river", "clock"]
_Messages = tuple[ChatMessage, ...]


async def _soak(options: argparse.Namespace, logs: Path) -> int:
    rng = random.Random(options.seed)
    paths = (str(options.model.absolute()),)
    load = LoadParams(paths=paths, n_ctx=1024, n_slots=options.slots, n_threads=usable_cores())
    asked: list[tuple[_Messages, int, str]] = []
    memory: list[int] = []
    n_closed = 0
    async with WorkerClient(logs) as client:
        await client.load(load)
        assert client.pid is not None
        worker = psutil.Process(client.pid)
        for start in range(0, options.requests, options.slots + 2):
            batch = [_question(rng) for _ in range(min(options.slots + 2, options.requests - start))]
            done = await asyncio.gather(*(_ask(client, rng, *one) for one in batch))
            n_closed += len(done)
            asked += [(*one, text) for one, text in zip(batch, done, strict=True) if text is not None]
            memory.append(worker.memory_info().rss)
    tenth = max(memory[: max(1, len(memory) // 10)])
    growth = max(memory) / tenth - 1
    n_different = await _compare(load, logs, asked[: options.compare])
    n_compared = len(asked[: options.compare])
    print(f"{n_closed} requests closed, {n_closed - len(asked)} of them cancelled")
    peak = max(memory) / 1e6
    print(f"memory: {tenth / 1e6:.1f} MB after a tenth, at most {peak:.1f} MB: {100 * growth:+.2f} %")
    print(f"{n_different} of {n_compared} answers differ from those of a fresh context")
    is_well = n_closed == options.requests and growth <= 0.03 and n_different <= 0.05 * n_compared
    return 0 if is_well else 1


def _question(rng: random.Random) -> tuple[_Messages, int]:
    head = "You know about everything. " * rng.randrange(3)
    system = (ChatMessage(role="system", content=head),) if head else ()
    text = " ".join(rng.choices(_WORDS, k=rng.randrange(3, 60)))
    return (*system, ChatMessage(role="user", content=text)), rng.randrange(1, 32)


async def _ask(client: WorkerClient, rng: random.Random, messages: _Messages, n_tokens: int) -> str | None:
    """Return the answer, or None when it was cancelled."""
    cancel_at = rng.randrange(1, 6) if rng.random() < 0.2 else None
    sampler = SamplerParams(temperature=0, max_tokens=n_tokens)
    request = Generate(id=client.next_id(), messages=messages, sampler=sampler)
    text, n_events, reason = "", 0, ""
    async with aclosing(client.generate(request)) as events:
        async for event in events:
            n_events += 1
            if n_events == cancel_at:
                await client.cancel(request.id)
            if isinstance(event, TextDelta):
                text += event.text
            elif isinstance(event, Finished):
                reason = event.stop_reason
    assert reason, "a request without a closing frame"
    return None if reason == "cancelled" else text


async def _compare(load: LoadParams, logs: Path, asked: list[tuple[_Messages, int, str]]) -> int:
    """Return how many answers a worker gives otherwise that has one slot and was started for this one."""
    n_different, rng = 0, random.Random(0)
    rng.random = lambda: 1.0  # type: ignore[method-assign] - nothing is cancelled
    alone = LoadParams(paths=load.paths, n_ctx=load.n_ctx, n_threads=load.n_threads)
    for messages, n_tokens, text in asked:
        async with WorkerClient(logs) as client:
            await client.load(alone)
            fresh = await _ask(client, rng, messages, n_tokens)
        if fresh != text:
            n_different += 1
            print(f"differs: {text[:60]!r} and {(fresh or '')[:60]!r}", file=sys.stderr)
    return n_different


def main() -> int:
    """Soak and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--slots", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--compare", type=int, default=200, help="answers to ask again (default 200)")
    with tempfile.TemporaryDirectory() as logs:
        return asyncio.run(_soak(parser.parse_args(), Path(logs)))


if __name__ == "__main__":
    sys.exit(main())
