"""Measures prefill and decode next to llama.cpp's own llama-bench: same file, same threads, turn about.

    python scripts/bench_engine.py MODEL.gguf [--llama-bench PATH] [--threads N]

Each round asks the real worker one question and then runs llama-bench; medians of the rounds are compared.
A table goes first, one JSON line comes last. Rates are those of edgeqwen.engine.protocol.Stats.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import aclosing
from pathlib import Path
from typing import Any

from edgeqwen.engine.client import WorkerClient
from edgeqwen.engine.protocol import ChatMessage, Finished, Generate, LoadParams, SamplerParams, Stats
from edgeqwen.errors import EdgeQwenError
from edgeqwen.machine.cpu import usable_cores
from edgeqwen.models.facts import read_facts

_WORDS = "The old bridge over the river leads from one half of the city to the other. "
_COUNT = "Count from 1 to 400 in words, one number per line. Do not stop early."


def main() -> int:
    """Run the rounds, print the table and the JSON line, and return the exit code."""
    options = _options()
    try:
        read_facts(options.model)
        ours, theirs = asyncio.run(_rounds(options))
    except (EdgeQwenError, subprocess.CalledProcessError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    report = _report(options, ours, theirs)
    _print_table(report)
    print(json.dumps(report))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama-bench", default=shutil.which("llama-bench"), help="default: the one on PATH")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--answer-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


async def _rounds(options: argparse.Namespace) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as logs:
        async with WorkerClient(Path(logs)) as client:
            n_ctx = options.prompt_tokens + options.answer_tokens + 1024
            params = LoadParams(
                paths=(str(options.model.absolute()),), n_ctx=n_ctx, n_threads=options.threads
            )
            await client.load(params)
            await _ask(client, "Hello", 8)  # wakes the weights up, as llama-bench does for itself
            one, two = [(await _ask(client, _WORDS * n, 1)).prompt_tokens for n in (1, 2)]
            long_prompt = _WORDS * max(1, round((options.prompt_tokens - one) / (two - one)))
            for number in range(options.rounds):
                print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
                read = await _ask(client, f"{number}. {long_prompt}", 1)
                said = await _ask(client, f"{number}. {_COUNT}", options.answer_tokens)
                ours.append({"prefill_tps": read.prefill_tps or 0, "decode_tps": said.decode_tps or 0})
                if options.llama_bench:
                    theirs.append(await asyncio.to_thread(_llama_bench, options))
    return ours, theirs


async def _ask(client: WorkerClient, text: str, max_tokens: int) -> Stats:
    request = Generate(
        id=client.next_id(),
        messages=(ChatMessage(role="user", content=text),),
        sampler=SamplerParams(temperature=0, max_tokens=max_tokens),
        think=False,
    )
    async with aclosing(client.generate(request)) as events:
        async for event in events:
            if isinstance(event, Finished):
                return event.stats
    raise AssertionError("an answer without an end")


def _llama_bench(options: argparse.Namespace) -> dict[str, float]:
    """Run llama-bench once for prefill and once for decode. Source: llama.cpp tools/llama-bench."""
    command = [options.llama_bench, "-m", options.model, "-t", options.threads, "-r", 1, "-o", "json"]
    command += ["-p", options.prompt_tokens, "-n", options.answer_tokens]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)
    return {"prefill_tps" if row["n_prompt"] else "decode_tps": row["avg_ts"] for row in rows}


def _report(
    options: argparse.Namespace, ours: list[dict[str, float]], theirs: list[dict[str, float]]
) -> dict[str, Any]:
    report: dict[str, Any] = {
        "model": options.model.name,
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": options.threads,
        "prompt_tokens": options.prompt_tokens,
        "answer_tokens": options.answer_tokens,
        "rounds": options.rounds,
    }
    for rate in ("prefill_tps", "decode_tps"):
        mine = statistics.median(row[rate] for row in ours)
        other = statistics.median(row[rate] for row in theirs) if theirs else None
        report[rate] = {
            "edgeqwen": round(mine, 2),
            "llama_bench": other and round(other, 2),
            "ratio": other and round(mine / other, 3),
        }
    return report


def _print_table(report: dict[str, Any]) -> None:
    print(f"{report['model']}, {report['threads']} threads, medians of {report['rounds']} rounds, tokens/s")
    print(f"{'':8}  {'edgeqwen':>10}  {'llama-bench':>11}  {'ratio':>6}")
    for rate, name in (("prefill_tps", "prefill"), ("decode_tps", "decode")):
        row = report[rate]
        cells = [row["edgeqwen"], row["llama_bench"] or "-", row["ratio"] or "-"]
        print(f"{name:8}  {cells[0]:>10}  {cells[1]:>11}  {cells[2]:>6}")


if __name__ == "__main__":
    sys.exit(main())
