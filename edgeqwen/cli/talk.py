"""Holds a session open for `edgeqwen run` and streams its replies to the terminal or as JSON.

Owns the event loop, Ctrl-C and the look of a reply. The async core is used from here as plain calls, because
input() blocks between turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import msgspec

from edgeqwen.chat.conversation import Conversation
from edgeqwen.chat.host import ModelHost
from edgeqwen.chat.loading import LoadOptions
from edgeqwen.chat.sampling import plan_turns
from edgeqwen.chat.session import Reply, Session
from edgeqwen.chat.thinking import Delta
from edgeqwen.cli import failures, output
from edgeqwen.cli.invocation import Invocation
from edgeqwen.engine.protocol import (
    Dropped,
    KvType,
    Overflow,
    Prefill,
    Ready,
    Stats,
)
from edgeqwen.errors import EdgeQwenError, WorkerLost
from edgeqwen.machine.cpu import usable_cores
from edgeqwen.machine.memory import available_bytes

T = TypeVar("T")


@dataclass(frozen=True)
class TalkOptions:
    """What the command line says; None leaves it to the settings, then to the model."""

    system: str = ""
    think: bool | None = None
    n_ctx: int | None = None
    n_threads: int | None = None
    overflow: Overflow | None = None
    think_budget: int | None = None
    kv_type: KvType = "f16"
    kv_type_v: KvType | None = None
    load_mode: Literal["auto", "mlock", "read"] = "auto"
    repack: bool = True
    n_gpu_layers: int = -1
    force: bool = False
    """Load even what does not fit."""
    sampler: dict[str, Any] = field(default_factory=dict)
    """Fields of SamplerParams."""


class Talk:
    """A loaded model and the conversation held with it; a context manager that ends the worker."""

    def __init__(self, invocation: Invocation, ref: str, options: TalkOptions) -> None:
        self.as_json = invocation.as_json
        self._invocation, self._options = invocation, options
        self._host = ModelHost(invocation, available_bytes)
        self._located = self._host.find(ref)
        config = invocation.config.run
        self._load_options = LoadOptions(
            n_ctx=config.ctx if options.n_ctx is None else options.n_ctx,
            n_threads=options.n_threads or config.threads or usable_cores(),
            kv_type=options.kv_type,
            kv_type_v=options.kv_type_v,
            load_mode=options.load_mode,
            repack=options.repack,
            n_gpu_layers=options.n_gpu_layers,
            force=options.force,
        )
        self._runner = asyncio.Runner()
        self.session = Session(self._host.client, conversation=Conversation(options.system))
        self.session.thinking_budget = options.think_budget
        self.session.overflow = options.overflow or config.full
        self._was_interrupted = False
        self.think(config.think if options.think is None else options.think)

    @property
    def name(self) -> str:
        """The model's."""
        return self._located.name

    def __enter__(self) -> Talk:
        try:
            self._call(self._load())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker."""
        self._call(self._host.close())
        self._runner.close()

    def think(self, think: bool | None) -> None:
        """Switch thinking on or off, with the sampler settings that go with it."""
        sampler = {**self._invocation.config.sampler.given(), **self._options.sampler}
        plan = plan_turns(self._located.model, think, sampler)
        self.session.sampler, self.session.think = plan.sampler, plan.think
        if plan.notice:
            output.note(f"note: {plan.notice}")

    def answer_once(self, text: str) -> int:
        """Stream one answer and return the exit code. Raises EdgeQwenError once what was said is shown."""
        failure = self.turn(text)
        if failure:
            failures.tell(failure)
            return failures.exit_code(failure)
        return failures.INTERRUPTED if self._was_interrupted else 0

    def turn(self, text: str) -> EdgeQwenError | None:
        """Ask, show the reply, and return what made it fail, if anything did."""
        failure = None
        try:
            self._call(self._stream(text))
        except EdgeQwenError as error:
            failure = error
        except KeyboardInterrupt:  # the second Ctrl-C
            self._end_reply(None)
            raise
        self._end_reply(failure)
        if not failure:
            self._tell_how_it_ended()
        return failure

    def _end_reply(self, failure: EdgeQwenError | None) -> None:
        reply = self.session.reply
        if reply and self.as_json:
            output.document(self._document(reply, failure))
        elif failure and self.as_json:
            output.document({"error": failures.as_data(failure)})
        elif reply and reply.text:
            output.line()

    def restart_if_lost(self, failure: EdgeQwenError) -> None:
        """Load the model again after its worker died. Raises EdgeQwenError."""
        if isinstance(failure, WorkerLost):
            output.note("starting the engine again")
            self._call(self._load())

    def summary(self) -> str:
        """Return what the last reply took, in one line."""
        reply = self.session.reply
        if reply is None or reply.finished is None:
            return ""
        stats = reply.finished.stats
        parts = [f"{stats.completion_tokens:,} tokens"]
        if stats.decode_tps:
            parts.append(f"{stats.decode_tps:.1f} tokens/s")
        if stats.ttft_s is not None:
            parts.append(f"first after {stats.queued_s + stats.ttft_s:.2f} s")
        parts.append(f"prompt {stats.prompt_tokens:,}, {stats.cached_tokens:,} of it cached")
        return " · ".join(parts)

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    async def _load(self) -> None:
        with output.Status() as status:
            loaded = await self._host.open(
                self._located,
                self._load_options,
                lambda what, share: status.share(what, int(share * 100), 100),
            )
        self.session.client = self._host.client
        for notice in loaded.notices:
            output.note(f"note: {notice}")

    async def _stream(self, text: str) -> None:
        with _interruptible(self.session) as interrupted, output.Status() as status:
            async with aclosing(self.session.ask(text)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Prefill):
                        status.share("reading the prompt", piece.done, piece.total)
                    else:
                        status.clear()
                        self._show(piece)
        self._was_interrupted = interrupted.is_set()

    def _show(self, delta: Delta) -> None:
        if self.as_json:
            return
        if delta.kind == "thinking":
            if output.has_terminal():
                output.aside(delta.text, end="")
            return
        reply = self.session.reply
        if reply and reply.thinking and reply.text == delta.text and output.has_terminal():
            output.note("\n")  # the answer begins after its thinking
        output.write(delta.text)

    def _tell_how_it_ended(self) -> None:
        reply = self.session.reply
        if reply and reply.dropped:
            self._tell_dropped(reply.dropped)
        if reply and reply.finished:
            self._host.count(reply.finished.stats)
        if reply is None or reply.finished is None or reply.finished.stop_reason != "length":
            return
        limit = self.session.sampler.max_tokens
        if reply.finished.stats.completion_tokens == limit:
            output.note(f"note: the answer was cut off after {limit:,} tokens (`--max-tokens`)")
        elif loaded := self._host.loaded:
            output.note(
                f"note: the answer was cut off because the context of {loaded.ready.n_ctx:,} tokens is full"
            )

    def _tell_dropped(self, dropped: Dropped) -> None:
        parts = (f"{len(dropped.messages)} earlier messages", f"the thinking of {len(dropped.thinking_of)}")
        lengths = (len(dropped.messages), len(dropped.thinking_of))
        what = " and ".join(part for part, length in zip(parts, lengths, strict=True) if length)
        output.note(
            f"note: the context was full, so {what} ({dropped.n_tokens:,} tokens) were left out; "
            "nothing is lost: a larger `--ctx` (`run.ctx` for a chat that is kept) shows the model all of it"
        )

    def _document(self, reply: Reply, failure: EdgeQwenError | None) -> dict[str, Any]:
        finished, loaded = reply.finished, self._host.loaded
        document: dict[str, Any] = {
            "model": self.name,
            "text": reply.text,
            "thinking": reply.thinking,
            "stop_reason": finished.stop_reason if finished else None,
            "stats": _stats(finished.stats, loaded.ready) if finished and loaded else None,
            **({"dropped": msgspec.structs.asdict(reply.dropped)} if reply.dropped else {}),
        }
        return {**document, "error": failures.as_data(failure)} if failure else document


def _stats(stats: Stats, ready: Ready) -> dict[str, Any]:
    """Return counts, seconds and the rates made of them, as DESIGN names them."""

    def rounded(value: float | None) -> float | None:
        return None if value is None else round(value, 4)

    return {
        "queued_s": rounded(stats.queued_s),
        "load_s": rounded(ready.load_s),
        "ttft_s": rounded(stats.ttft_s),
        "prompt_tokens": stats.prompt_tokens,
        "cached_tokens": stats.cached_tokens,
        "prefill_s": rounded(stats.prefill_s),
        "prefill_tps": rounded(stats.prefill_tps),
        "completion_tokens": stats.completion_tokens,
        "decode_s": rounded(stats.decode_s),
        "decode_tps": rounded(stats.decode_tps),
        "rss_bytes": stats.rss_bytes,
    }


@contextmanager
def _interruptible(session: Session) -> Iterator[asyncio.Event]:
    """Make the first Ctrl-C stop the reply and the second one leave; the event says that there was one."""
    loop, task, interrupted = asyncio.get_running_loop(), asyncio.current_task(), asyncio.Event()
    cancels: list[asyncio.Task[None]] = []

    async def cancel() -> None:
        with contextlib.suppress(WorkerLost):  # the reply's own stream says so
            await session.cancel()

    def on_interrupt() -> None:
        if interrupted.is_set() and task is not None:
            task.cancel()
            return
        interrupted.set()
        cancels.append(loop.create_task(cancel()))

    loop.add_signal_handler(signal.SIGINT, on_interrupt)
    try:
        yield interrupted
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        loop.remove_signal_handler(signal.SIGINT)
