"""Compares edgeqwen's engine with llama.cpp's own programs: same file, same threads, turn about.

    python scripts/bench_peers.py MODEL.gguf --peers FOLDER [--rounds N] [--only NAME...] [--threads N]

FOLDER holds llama-bench and llama-server of the same llama.cpp commit, which the source package of the pinned
llama-cpp-python has under vendor/llama.cpp (`pip download --no-deps --no-binary :all:` brings it; then
`cmake -B build` and `cmake --build build --target llama-bench llama-server`). Medians of the rounds, and of
the rounds' ratios, with the quartiles of those. A table goes first, one JSON line comes last. Rates and times
are those a front end sees, as text arrives; prefill alone is the engine's counter (tokens read by the seconds
of reading them), as llama-bench's is.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import itertools
import json
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from edgeqwen.engine.client import WorkerClient
from edgeqwen.engine.protocol import (
    ChatMessage,
    Finished,
    Generate,
    LoadParams,
    SamplerParams,
    SavedParams,
    Stats,
    TextDelta,
)
from edgeqwen.errors import EdgeQwenError
from edgeqwen.machine.cpu import cpu_name, usable_cores

_SENTENCE = "The old bridge over the river leads from one half of the city to the other. "
_LONG = _SENTENCE * 118 + "Sum this up in one sentence."  # about 2,000 tokens
_NEXT = "And now say it in three words."
_ANSWERS, _READINGS, _SECOND_TURNS = 5, 2, 5
# As short as goes on for 128 tokens: llama-bench begins behind none, and attention costs by the token.
_COUNTING = [("system", "Count."), ("user", "Count to 400 in words, one per line.")]
_N_CTX = 4096
# Answers that go on to their last token, so that all eight are there to the end.
_QUESTIONS = [
    f"Explain in detail how a {thing} works, step by step, in at least 500 words."
    for thing in ("camera", "bicycle", "lighthouse", "telephone", "volcano", "ship", "clock", "plane")
]
_PARALLEL, _PARALLEL_CTX, _PARALLEL_TOKENS = len(_QUESTIONS), 1024, 128


_AMX = (
    "; gcc 12.2, for one, sets AMX up wrongly (docs/decisions/0010-amx.md), so build the peers with "
    "-DCMAKE_CXX_FLAGS='-mno-amx-tile -mno-amx-int8 -mno-amx-bf16'"
)


class NotMeasured(Exception):
    """A row for which there is no figure, in words."""


class PeerFailed(NotMeasured):
    """One of llama.cpp's programs did not do its work."""

    def __init__(self, program: str, status: int | None) -> None:
        how = "did not get ready within two minutes" if status is None else f"ended with status {status}"
        super().__init__(f"{program} {how}{_AMX if status == -signal.SIGILL else ''}")


@dataclass(frozen=True)
class Bench:
    """What every comparison needs."""

    model: Path
    peers: Path
    threads: int
    scratch: Path

    def params(self, **more: Any) -> LoadParams:  # noqa: ANN401 - fields of LoadParams
        return LoadParams(paths=(str(self.model),), n_threads=self.threads, **{"n_ctx": _N_CTX, **more})

    @asynccontextmanager
    async def worker(self, **params: Any) -> AsyncIterator[WorkerClient]:  # noqa: ANN401
        async with WorkerClient(self.scratch / "logs") as client:
            await client.load(self.params(**params))
            yield client

    @contextmanager
    def server(self, n_slots: int = 1, n_ctx: int = _N_CTX) -> Iterator[Server]:
        port = _free_port()
        command = [
            str(self.peers / "llama-server"), "-m", str(self.model), "-t", str(self.threads),
            "-np", str(n_slots), "-c", str(n_ctx * n_slots),
            "--host", "127.0.0.1", "--port", str(port), "--no-webui",
        ]  # fmt: skip
        with (self.scratch / "server.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            server = Server(port, process.pid)
            server.wait(process)
            yield server
        finally:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class Told:
    """One answer as it arrived."""

    first_s: float
    """Request sent to first text."""
    rate: float
    """Tokens per second from first to last text."""
    n_tokens: int
    text: str


@dataclass(frozen=True)
class Server:
    """A llama-server."""

    port: int
    pid: int

    def wait(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise PeerFailed("llama-server", process.returncode)
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.01)
        raise PeerFailed("llama-server", None)

    def ask(self, messages: list[tuple[str, str]], n_tokens: int) -> Told:
        body = {
            "messages": [{"role": role, "content": text} for role, text in messages], "max_tokens": n_tokens,
            "temperature": 0, "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        start = time.perf_counter()
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        first = last = 0.0
        text, count = "", 0
        response = connection.getresponse()
        if response.status != 200:
            raise NotMeasured(f"llama-server answered {response.status}: {response.read(200)!r}")
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            count = (event.get("usage") or {}).get("completion_tokens", count)
            piece = event["choices"][0]["delta"].get("content") if event.get("choices") else None
            if piece:
                last = time.perf_counter()
                first = first or last
                text += piece
        if not text:
            raise NotMeasured("llama-server said nothing")
        return Told(first - start, _rate(count, last - first), count, text)


async def ask(client: WorkerClient, messages: list[tuple[str, str]], n_tokens: int) -> Told:
    """Ask our worker the same."""
    said = tuple(ChatMessage(role=role, content=text) for role, text in messages)  # type: ignore[arg-type]
    sampler = SamplerParams(temperature=0, max_tokens=n_tokens)
    request = Generate(id=client.next_id(), messages=said, sampler=sampler)
    start = time.perf_counter()
    first = last = 0.0
    text, count = "", 0
    async with aclosing(client.generate(request)) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                last = time.perf_counter()
                first = first or last
                text += event.text
            elif isinstance(event, Finished):
                count = event.stats.completion_tokens
    if not text:
        raise NotMeasured("our worker said nothing")
    return Told(first - start, _rate(count, last - first), count, text)


def decode(bench: Bench) -> tuple[float, float]:
    """Tokens per second of 128 tokens, as received by a front end, turn about with llama-bench tg128."""

    async def both() -> tuple[float, float]:
        async with bench.worker() as client:

            async def answer() -> float:
                return (await ask(client, _COUNTING, 128)).rate

            await ask(client, [("user", "Say hi.")], 16)  # llama-bench warms up before it measures, too
            return await _turn_about(answer, _ANSWERS, bench, "-p", "0", "-n", "128")

    return asyncio.run(both())


def prefill(bench: Bench) -> tuple[float, float]:
    """Tokens per second of a prompt of 2,048 tokens, turn about with llama-bench pp2048."""

    async def read(client: WorkerClient, number: int, text: str) -> Stats:
        # Another beginning each time: no more than the template's head can come from the cache.
        messages = (
            ChatMessage(role="system", content=f"{number}."),
            ChatMessage(role="user", content=_SENTENCE * 119 + text),
        )
        sampler = SamplerParams(temperature=0, max_tokens=1)
        request = Generate(id=client.next_id(), messages=messages, sampler=sampler)
        async with aclosing(client.generate(request)) as events:
            (stats,) = [event.stats async for event in events if isinstance(event, Finished)]
        return stats

    async def both() -> tuple[float, float]:
        async with bench.worker() as client:
            # As llama-bench does before it measures: the memory is there, and the pages of the file.
            warmed = await read(client, 0, "")
            numbers = itertools.count(1)

            async def reading() -> float:
                stats = await read(client, next(numbers), "one " * (2048 - warmed.prompt_tokens))
                if stats.prompt_tokens != 2048 or stats.cached_tokens > 8:
                    raise NotMeasured(f"{stats.prefill_tokens:,} tokens were read, not llama-bench's 2,048")
                return stats.prefill_tps or 0.0

            return await _turn_about(reading, _READINGS, bench, "-p", "2048", "-n", "0")

    return asyncio.run(both())


def second_turn(bench: Bench) -> tuple[float, float]:
    """Seconds to the first text of turn 2 of a chat of 2,000 tokens; llama-server.

    Half a second of a shared machine is noise: the medians of five second turns, asked turn about.
    """

    async def both() -> tuple[float, float]:
        ours, theirs = [], []
        with bench.server() as server:
            async with bench.worker() as client:
                told, heard = await ask(client, [("user", _LONG)], 24), server.ask([("user", _LONG)], 24)
                for number in range(_SECOND_TURNS):
                    ours.append((await ask(client, _turn_2(told, number), 8)).first_s)
                    theirs.append(server.ask(_turn_2(heard, number), 8).first_s)
        return statistics.median(ours), statistics.median(theirs)

    return asyncio.run(both())


def restart(bench: Bench) -> tuple[float, float]:
    """Seconds to the first text of turn 2 after a restart in between; llama-server started anew."""
    saved = SavedParams(folder=str(bench.scratch / f"kv-{time.monotonic_ns()}"), model=bench.model.name)

    async def ours() -> float:
        async with bench.worker(saved=saved) as client:
            told = await ask(client, [("user", _LONG)], 24)
        async with bench.worker(saved=saved) as client:
            return (await ask(client, _turn_2(told), 8)).first_s

    with bench.server() as server:
        told = server.ask([("user", _LONG)], 24)
    with bench.server() as server:
        theirs = server.ask(_turn_2(told), 8).first_s
    return asyncio.run(ours()), theirs


def parallel(bench: Bench) -> tuple[float, float]:
    """Tokens per second of 8 requests at once, all together; llama-server -np 8."""

    async def ours() -> float:
        async with bench.worker(n_slots=_PARALLEL, n_ctx=_PARALLEL_CTX) as client:
            start = time.perf_counter()
            told = await asyncio.gather(
                *(ask(client, [("user", question)], _PARALLEL_TOKENS) for question in _QUESTIONS)
            )
            return sum(one.n_tokens for one in told) / (time.perf_counter() - start)

    with bench.server(_PARALLEL, _PARALLEL_CTX) as server, ThreadPoolExecutor(_PARALLEL) as pool:
        start = time.perf_counter()
        told = pool.map(lambda question: server.ask([("user", question)], _PARALLEL_TOKENS), _QUESTIONS)
        theirs = sum(one.n_tokens for one in told) / (time.perf_counter() - start)
    return asyncio.run(ours()), theirs


def one_by_one(bench: Bench) -> tuple[float, float]:
    """Tokens per second of 8 requests at once; ours, one after another."""

    async def ours(n_slots: int) -> float:
        async with bench.worker(n_slots=n_slots, n_ctx=_PARALLEL_CTX) as client:
            start = time.perf_counter()
            asking = [ask(client, [("user", question)], _PARALLEL_TOKENS) for question in _QUESTIONS]
            told = await asyncio.gather(*asking) if n_slots > 1 else [await one for one in asking]
            return sum(one.n_tokens for one in told) / (time.perf_counter() - start)

    return asyncio.run(ours(_PARALLEL)), asyncio.run(ours(1))


def start(bench: Bench) -> tuple[float, float]:
    """Seconds from process start to first text, prompt of 20 tokens; llama-server and the same request."""
    messages = [("user", "Say hi.")]

    async def ours() -> float:
        begin = time.perf_counter()
        async with bench.worker() as client:
            loaded = time.perf_counter() - begin
            return loaded + (await ask(client, messages, 4)).first_s

    begin = time.perf_counter()
    with bench.server() as server:
        ready = time.perf_counter() - begin
        theirs = ready + server.ask(messages, 4).first_s
    return asyncio.run(ours()), theirs


def memory(bench: Bench) -> tuple[float, float]:
    """Resident MB after a prompt of 2,000 tokens, same context and KV type; llama-server."""

    async def ours() -> float:
        async with bench.worker() as client:
            await ask(client, [("user", _LONG)], 8)
            assert client.pid is not None
            return float(psutil.Process(client.pid).memory_info().rss) / 1e6

    with bench.server() as server:
        server.ask([("user", _LONG)], 8)
        theirs = psutil.Process(server.pid).memory_info().rss / 1e6
    return asyncio.run(ours()), theirs


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    unit: str
    against: str
    bar: float
    at_least: bool
    measure: Callable[[Bench], tuple[float, float]]


ROWS = {
    "decode": Row("decode, as received", "tokens/s", "llama-bench tg128", 0.97, True, decode),
    "prefill": Row("prefill of 2,048 tokens", "tokens/s", "llama-bench pp2048", 0.97, True, prefill),
    "second-turn": Row(
        "first token of turn 2, 2,000-token chat", "s", "llama-server", 1.0, False, second_turn
    ),
    "restart": Row("the same after a restart", "s", "llama-server started anew", 0.15, False, restart),
    "parallel": Row("8 requests at once", "tokens/s", "llama-server -np 8", 1.0, True, parallel),
    "one-by-one": Row("8 requests at once", "tokens/s", "ours, one after another", 1.7, True, one_by_one),
    "start": Row("process start to first token", "s", "llama-server", 1.2, False, start),
    "memory": Row("memory, 4,096 tokens of context", "MB", "llama-server", 1.1, False, memory),
}


def main() -> int:
    """Run the rounds, print the table and the JSON line, and return the exit code."""
    options = _options()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options.model.absolute(), options.peers.absolute(), options.threads, Path(scratch))
        for name in options.only or ROWS:
            row = ROWS[name]
            try:
                pairs = [row.measure(bench) for _ in range(options.rounds)]
            except (NotMeasured, EdgeQwenError, OSError, http.client.HTTPException) as error:
                rows.append({"name": name, "error": str(error)})
                print(f"| {row.what} | not measured: {error} |", flush=True)
                continue
            ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
            # The ratio of each round: what slows the machine for a while slows both.
            ratios = [pair[0] / pair[1] for pair in pairs]
            low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive")
            met = ratio >= row.bar if row.at_least else ratio <= row.bar
            rows.append(
                {"name": name, "ours": ours, "theirs": theirs, "ratio": ratio, "quartiles": [low, high],
                 "bar": row.bar, "met": met}
            )  # fmt: skip
            sign = ">=" if row.at_least else "<="
            print(
                f"| {row.what} | {ours:.3g} {row.unit} | {row.against}: {theirs:.3g} {row.unit} "
                f"| {ratio:.2f} ({low:.2f} to {high:.2f}) | {sign} {row.bar} | {'yes' if met else 'NO'} |",
                flush=True,
            )
    report = {
        "model": options.model.name, "threads": options.threads, "rounds": options.rounds, "rows": rows,
        "machine": cpu_name(), "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    print(json.dumps(report))
    return 1 if any("error" in row for row in rows) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--peers", type=Path, required=True, help="folder with llama-bench and llama-server")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, default=5, help="two or more")
    parser.add_argument("--only", nargs="*", choices=list(ROWS))
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds: two or more, as quartiles are given")
    return options


async def _turn_about(
    ours: Callable[[], Awaitable[float]], n_times: int, bench: Bench, *arguments: str
) -> tuple[float, float]:
    """Measure ours between runs of llama-bench: a machine that gets slower does so for both. Medians."""
    mine, theirs = [], [_llama_bench(bench, *arguments)]
    for _ in range(n_times):
        mine.append(await ours())
        theirs.append(_llama_bench(bench, *arguments))
    return statistics.median(mine), statistics.median(theirs)


def _llama_bench(bench: Bench, *arguments: str) -> float:
    command = [str(bench.peers / "llama-bench"), "-m", str(bench.model), "-t", str(bench.threads), "-r", "1"]
    done = subprocess.run([*command, "-o", "json", *arguments], capture_output=True, check=False)
    if done.returncode != 0:
        raise PeerFailed("llama-bench", done.returncode)
    return float(json.loads(done.stdout)[0]["avg_ts"])


def _turn_2(told: Told, number: int = 0) -> list[tuple[str, str]]:
    return [("user", _LONG), ("assistant", told.text), ("user", f"{number}. {_NEXT}")]


def _rate(n_tokens: int, seconds: float) -> float:
    return (n_tokens - 1) / seconds if seconds > 0 and n_tokens > 1 else 0.0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
