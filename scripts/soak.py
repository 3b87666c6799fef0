"""Asks an engine many times, with random cancels, and watches memory, slots and answers.

    python scripts/soak.py MODEL.gguf [--requests 1000] [--slots 3] [--seed 1]

The real worker, as a process. Answers that were not cancelled are asked again, each of a worker of its own
that has read nothing else. Where the two part, this model's rounding is measured there: the same tokens read
as one batch and one by one; a difference counts when the two tokens' scores lie further apart than that
explains. Exits 1 when the worker's memory grew by more than 3 % after the first tenth, when a request got no
closing frame, or when an answer differs beyond rounding.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from contextlib import aclosing
from pathlib import Path

import numpy as np
import psutil

from edgeqwen.engine.client import WorkerClient
from edgeqwen.engine.protocol import ChatMessage, Finished, Generate, LoadParams, SamplerParams, TextDelta
from edgeqwen.machine.cpu import usable_cores
from edgeqwen.worker.binding import L
from edgeqwen.worker.engine import Row
from edgeqwen.worker.jobs import Acceptor
from edgeqwen.worker.llama import LlamaEngine

_WORDS = ["sea", "fox", "key", "bridge", "moon", "winter", "train", "letter", "river", "clock"]
_LOST_S = 600.0
_Messages = tuple[ChatMessage, ...]
_Asked = tuple[_Messages, int, str]


async def _soak(options: argparse.Namespace, logs: Path) -> int:
    rng = random.Random(options.seed)
    paths = (str(options.model.absolute()),)
    load = LoadParams(paths=paths, n_ctx=1024, n_slots=options.slots, n_threads=usable_cores())
    asked: list[_Asked] = []
    memory: list[int] = []
    n_closed = 0
    async with WorkerClient(logs) as client:
        await client.load(load)
        assert client.pid is not None
        worker = psutil.Process(client.pid)
        for start in range(0, options.requests, options.slots + 2):
            batch = [_question(rng) for _ in range(min(options.slots + 2, options.requests - start))]
            # A slot that is lost answers nobody: that is found out, and not waited for.
            done = await asyncio.wait_for(
                asyncio.gather(*(_ask(client, rng, *one) for one in batch)), _LOST_S
            )
            n_closed += len(done)
            asked += [(*one, text) for one, text in zip(batch, done, strict=True) if text is not None]
            memory.append(worker.memory_info().rss)
    tenth = max(memory[: max(1, len(memory) // 10)])
    growth = max(memory) / tenth - 1
    compared = asked[: options.compare]
    different = await _compare(load, logs, compared)
    n_beyond = _beyond_rounding(load, different)
    print(f"{n_closed} requests closed, {n_closed - len(asked)} of them cancelled")
    peak = max(memory) / 1e6
    print(f"memory: {tenth / 1e6:.1f} MB after a tenth, at most {peak:.1f} MB: {100 * growth:+.2f} %")
    parted = f"{len(different)} of {len(compared)} answers part from a fresh context's"
    print(f"{parted}, {n_beyond} of them beyond rounding")
    is_well = n_closed == options.requests and growth <= 0.03 and n_beyond == 0
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


async def _compare(load: LoadParams, logs: Path, asked: list[_Asked]) -> list[_Asked]:
    """Return the answers that a worker gives otherwise that has one slot and was started for this one."""
    different, rng = [], random.Random(0)
    rng.random = lambda: 1.0  # type: ignore[method-assign] - nothing is cancelled
    alone = LoadParams(paths=load.paths, n_ctx=load.n_ctx, n_threads=load.n_threads)
    for messages, n_tokens, text in asked:
        async with WorkerClient(logs) as client:
            await client.load(alone)
            if await _ask(client, rng, messages, n_tokens) != text:
                different.append((messages, n_tokens, text))
    return different


def _beyond_rounding(load: LoadParams, different: list[_Asked]) -> int:
    """Return how many answers part from those of a fresh context where rounding cannot be the reason."""
    engine = LlamaEngine(LoadParams(paths=load.paths, n_ctx=1024, n_threads=load.n_threads), lambda _: True)
    n_beyond = 0
    for messages, _n_tokens, text in different:
        request = Generate(id=1, messages=messages, sampler=SamplerParams(temperature=0, max_tokens=1))
        prompt = Acceptor(engine, time.perf_counter).accept(request).prompt
        margin, rounding = _parting(engine, list(prompt), text)
        n_beyond += margin > 2 * rounding  # each of the two scores may be off by that
        print(f"parts by {margin:.3f}, rounding {rounding:.3f}: {text[:50]!r}", file=sys.stderr)
    engine.close()
    return n_beyond


def _parting(engine: LlamaEngine, tokens: list[int], text: str) -> tuple[float, float]:
    """Return how far apart the scores lie where a fresh context and `text` part, and the rounding there.

    `tokens` is the prompt; it grows by what both say.
    """
    said = ""
    while True:
        scores = _scores(engine, tokens, at_once=False)
        best = int(scores.argmax())
        piece = engine.piece(best).decode("utf-8", "replace")
        if best in engine.eog or not piece or not text.startswith(said + piece):
            break
        tokens.append(best)
        said += piece
    rest = text.removeprefix(said)
    if not rest:  # read one by one, it is what was said: the fresh worker's batch rounded otherwise
        return 0.0, 0.0
    likely = [int(token) for token in scores.argsort()[::-1][:200]]
    pieces = {one: engine.piece(one).decode("utf-8", "replace") for one in likely}
    others = [one for one, piece in pieces.items() if piece and rest.startswith(piece)]
    other = others[0] if others else min(engine.eog, key=lambda one: -scores[one])
    rounding = np.abs(scores - _scores(engine, tokens, at_once=True)).max()
    return float(scores[best] - scores[other]), float(rounding)


def _scores(engine: LlamaEngine, tokens: list[int], *, at_once: bool) -> np.ndarray:
    """Return the scores behind the last token, of tokens read in one batch or one by one."""
    engine.trim(0, 0)
    rows = [Row(token, at, 0, at == len(tokens) - 1) for at, token in enumerate(tokens)]
    for group in [rows] if at_once else [[row] for row in rows]:
        engine.decode(group)
    row = len(tokens) - 1 if at_once else 0
    return np.ctypeslib.as_array(L.llama_get_logits_ith(engine._ctx, row), (engine.n_vocab,)).copy()


def main() -> int:
    """Soak and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--slots", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--compare", type=int, default=200, help="answers to ask again (default 200)")
    with tempfile.TemporaryDirectory() as logs:
        try:
            return asyncio.run(_soak(parser.parse_args(), Path(logs)))
        except TimeoutError:
            print(f"a slot is lost: its request was not closed within {_LOST_S:.0f} s", file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
