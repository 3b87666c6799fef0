"""Asks a worker and gathers what it says."""

from __future__ import annotations

import json
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeqwen.engine.client import WorkerClient
from edgeqwen.engine.protocol import ChatMessage, Event, Finished, Generate, SamplerParams, TextDelta


def script(folder: Path, **content: Any) -> Path:
    """Write a script for the scripted engine and return its path."""
    path = folder / f"s{len(list(folder.glob('*.script.json')))}.script.json"
    path.write_text(json.dumps(content))
    return path


def user(*texts: str) -> tuple[ChatMessage, ...]:
    """Return a conversation: user, assistant, user ..."""
    return tuple(
        ChatMessage(role="assistant" if index % 2 else "user", content=text)
        for index, text in enumerate(texts)
    )


@dataclass
class Answer:
    """Every frame of one request."""

    events: list[Event] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TextDelta))

    @property
    def finished(self) -> Finished:
        closing = [event for event in self.events if isinstance(event, Finished)]
        assert len(closing) == 1
        return closing[0]


async def ask(client: WorkerClient, *texts: str, think: bool | None = None, **sampler: Any) -> Answer:
    """Hold one turn; greedy unless `sampler` says otherwise."""
    params = SamplerParams(**{"temperature": 0.0, "max_tokens": 24, **sampler})
    request = Generate(id=client.next_id(), messages=user(*texts), sampler=params, think=think)
    answer = Answer()
    async with aclosing(client.generate(request)) as events:
        async for event in events:
            answer.events.append(event)
    return answer
