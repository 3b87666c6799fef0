"""Asks the built-in demo wordings that it was not trained on, through edgeqwen's own engine.

    python scripts/check_demo_model.py [FILE] [--think]

An answer is right when it is the topic's answer, word for word. What went wrong goes to stderr; the last line
is JSON. Exits 1 when less than 90 % are right, or less than 98 % end by themselves or think as they are told.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from demo.corpus import Question, load_corpus

from edgeqwen.engine.client import WorkerClient
from edgeqwen.engine.protocol import ChatMessage, Finished, Generate, LoadParams, SamplerParams, TextDelta
from edgeqwen.machine.cpu import usable_cores

SHIPPED = Path(__file__).resolve().parent.parent / "edgeqwen/demo/demo/q8_0/edgeqwen-demo-q8_0.gguf"
_BAR, _DISCIPLINE = 0.9, 0.98


async def ask(file: Path, questions: Sequence[Question], *, think: bool) -> list[tuple[str, str]]:
    """Return the text and the stop reason of each answer."""
    told = []
    with tempfile.TemporaryDirectory() as logs:
        async with WorkerClient(Path(logs)) as client:
            await client.load(LoadParams(paths=(str(file),), n_ctx=1024, n_threads=usable_cores()))
            for question in questions:
                request = Generate(
                    id=client.next_id(),
                    messages=(ChatMessage(role="user", content=question.text),),
                    sampler=SamplerParams(temperature=0, max_tokens=200),
                    think=think,
                )
                events = [event async for event in client.generate(request)]
                text = "".join(event.text for event in events if isinstance(event, TextDelta))
                told.append((text, next(e.stop_reason for e in events if isinstance(e, Finished))))
    return told


def judge(questions: Sequence[Question], told: Sequence[tuple[str, str]], *, think: bool) -> dict[str, int]:
    """Count answers that are right, ended by themselves and thought as told; name the wrong ones."""
    n_right = n_ended = n_obeyed = 0
    for question, (text, reason) in zip(questions, told, strict=True):
        thinking, _, said = text.rpartition("</think>")
        n_ended += reason == "eos"
        n_obeyed += bool(thinking.replace("<think>", "").strip()) == think
        if said.strip() == question.answer:
            n_right += 1
        else:
            wanted = question.answer[:100]
            print(f"? {question.text}\n  {said.strip()[:110]}\n  instead of: {wanted}", file=sys.stderr)
    return {"asked": len(questions), "right": n_right, "ended": n_ended, "obeyed": n_obeyed}


def main() -> int:
    """Ask, report and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, nargs="?", default=SHIPPED)
    parser.add_argument("--think", action="store_true", help="let it think first")
    options = parser.parse_args()
    corpus, file = load_corpus(), options.file.absolute()
    figures = {}
    for name, questions in (("held_out", corpus.held_out), ("by_strangers", corpus.by_strangers)):
        told = asyncio.run(ask(file, questions, think=options.think))
        figures[name] = judge(questions, told, think=options.think)
    print(json.dumps({**figures, "bytes": file.stat().st_size}))
    is_well = all(
        one["right"] >= _BAR * one["asked"] and min(one["ended"], one["obeyed"]) >= _DISCIPLINE * one["asked"]
        for one in figures.values()
    )
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
