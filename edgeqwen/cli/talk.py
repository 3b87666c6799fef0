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
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from edgeqwen.chat.conversation import Conversation
from edgeqwen.chat.sampling import plan_turns
from edgeqwen.chat.session import Reply, Session
from edgeqwen.chat.thinking import Delta
from edgeqwen.cli import failures, output
from edgeqwen.cli.invocation import Invocation
from edgeqwen.engine.client import WorkerClient
from edgeqwen.engine.protocol import (
    Dropped,
    KvType,
    Layers,
    LoadParams,
    Overflow,
    Prefill,
    Ready,
    SavedParams,
    Stats,
)
from edgeqwen.errors import EdgeQwenError, InvalidInput, WorkerLost
from edgeqwen.machine.cpu import usable_cores
from edgeqwen.machine.memory import available_bytes
from edgeqwen.models.facts import ModelFacts, kv_bytes
from edgeqwen.models.fit import DEFAULT_CONTEXT, check_memory, choose_context, estimate
from edgeqwen.models.locate import locate, read_located
from edgeqwen.models.measured import Load

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
        self._located = locate(ref, invocation.store, invocation.catalogue)
        model = self._located.model
        if model and "chat" not in model.capabilities:
            raise InvalidInput(f"{model.ref} is made for {' and '.join(model.capabilities)}; it cannot chat")
        config = invocation.config.run
        self._n_ctx = options.n_ctx or config.ctx
        self._n_threads = options.n_threads or config.threads or usable_cores()
        self._runner = asyncio.Runner()
        self.session = Session(WorkerClient(invocation.paths.logs), conversation=Conversation(options.system))
        self.session.thinking_budget = options.think_budget
        self.session.overflow = options.overflow or config.full
        self._ready: Ready | None = None
        self._load_estimate: tuple[Load, int] | None = None
        self._was_interrupted = False
        self.think(config.think if options.think is None else options.think)

    @property
    def name(self) -> str:
        return self._located.name

    def __enter__(self) -> Talk:
        try:
            self._check_files()
            self._ready = self._call(self._load())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker."""
        self._call(self.session.client.close())
        self._runner.close()

    def think(self, think: bool | None) -> None:
        """Switch thinking on or off, with the sampler settings that go with it."""
        plan = plan_turns(self._located.model, think, self._options.sampler)
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
            self._keep_memory()
        return failure

    def _end_reply(self, failure: EdgeQwenError | None) -> None:
        reply = self.session.reply
        if reply and self.as_json:
            output.document(self._document(reply, failure))
        elif reply and reply.text:
            output.line()

    def restart_if_lost(self, failure: EdgeQwenError) -> None:
        """Load the model again after its worker died. Raises EdgeQwenError."""
        if isinstance(failure, WorkerLost):
            self._call(self.session.client.close())
            output.note("starting the engine again")
            self.session.client = WorkerClient(self._invocation.paths.logs)
            self._ready = self._call(self._load())

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

    def _keep_memory(self) -> None:
        """Remember what the model took, once per load: `fit` corrects its estimates by it."""
        reply = self.session.reply
        if self._load_estimate and reply and reply.finished and reply.finished.stats.completion_tokens:
            load, estimated = self._load_estimate
            self._invocation.measured.put(load, estimated, reply.finished.stats.rss_bytes)
            self._load_estimate = None

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def _check_files(self) -> None:
        """Hash installed files that have changed since they were last found right. Raises StoreError."""
        if self._located.entry is not None:
            with output.Status() as status:
                self._invocation.stamps.check(
                    self._located.entry, partial(status.share, f"checking {self.name}")
                )

    async def _load(self) -> Ready:
        client = self.session.client
        with output.Status() as status:
            status.show(f"loading {self.name}")
            await client.start()  # it gets up while we read the header
            facts = None if self._located.is_script else read_located(self._located)
            params = self._load_params(facts)
            if facts:
                self._tell_template(facts)
            ready = await client.load(
                params, lambda share: status.share(f"loading {self.name}", int(share * 100), 100)
            )
        for notice in ready.notices:
            output.note(f"note: {notice}")
        return ready

    def _load_params(self, facts: ModelFacts | None) -> LoadParams:
        n_ctx = self._n_ctx or DEFAULT_CONTEXT
        if facts and self._n_ctx is None:
            choice = choose_context(facts, available_bytes())
            n_ctx = choice.n_ctx
            if choice.is_reduced:
                output.note(
                    f"note: memory is short, so the context is {n_ctx:,} tokens; `--ctx` sets another"
                )
        if facts and n_ctx > facts.context:
            output.note(f"note: {n_ctx:,} tokens are more than the {facts.context:,} the model was made for")
        if facts and self._located.entry:
            load = Load(self._located.entry.manifest.files[0].sha256, n_ctx, self._options.kv_type)
            self._load_estimate = (load, estimate(facts, n_ctx, load.kv_type).total)
        options = self._options
        if facts and not options.force:
            check_memory(facts, n_ctx, options.kv_type, available_bytes())
        return LoadParams(
            paths=tuple(str(Path(path).absolute()) for path in self._located.paths),
            engine="scripted" if self._located.is_script else "llama",
            n_ctx=n_ctx,
            n_threads=self._n_threads,
            kv_type=options.kv_type,
            kv_type_v=options.kv_type_v,
            load_mode=options.load_mode,
            repack=options.repack,
            n_gpu_layers=options.n_gpu_layers,
            layers=_layers(facts, n_ctx, options.kv_type) if facts else None,
            saved=self._saved(),
        )

    def _saved(self) -> SavedParams | None:
        """Say where the KV cache goes; files named by their path are known by what a change would change."""
        limit = self._invocation.config.kv.max_mib
        if not limit or self._located.is_script:
            return None
        if entry := self._located.entry:
            model = entry.manifest.files[0].sha256
        else:
            status = self._located.paths[0].stat()
            model = f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"
        return SavedParams(folder=str(self._invocation.paths.kv), model=model, max_bytes=limit << 20)

    def _tell_template(self, facts: ModelFacts) -> None:
        if facts.template_sha256 is None:
            output.note("note: the file has no chat template; plain ChatML is used")
        elif facts.template_sha256 not in self._invocation.catalogue.templates:
            output.note("note: the file's chat template is not one of the known ones; it runs in a sandbox")

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
        if reply is None or reply.finished is None or reply.finished.stop_reason != "length":
            return
        limit = self.session.sampler.max_tokens
        if reply.finished.stats.completion_tokens == limit:
            output.note(f"note: the answer was cut off after {limit:,} tokens (`--max-tokens`)")
        elif self._ready:
            output.note(
                f"note: the answer was cut off because the context of {self._ready.n_ctx:,} tokens is full"
            )

    def _tell_dropped(self, dropped: Dropped) -> None:
        what = "earlier thinking" if self.session.overflow == "drop-thinking" else "earlier messages"
        count = f"{len(dropped.messages)} {what} ({dropped.n_tokens:,} tokens)"
        output.note(
            f"note: the context was full, so {count} were left out; "
            "nothing is lost, and `/full stop` or a larger `--ctx` shows the model all of it"
        )

    def _document(self, reply: Reply, failure: EdgeQwenError | None) -> dict[str, Any]:
        finished = reply.finished
        document: dict[str, Any] = {
            "model": self.name,
            "text": reply.text,
            "thinking": reply.thinking,
            "stop_reason": finished.stop_reason if finished else None,
            "stats": _stats(finished.stats, self._ready) if finished and self._ready else None,
            **({"dropped": msgspec.structs.asdict(reply.dropped)} if reply.dropped else {}),
        }
        return {**document, "error": failures.as_data(failure)} if failure else document


def _layers(facts: ModelFacts, n_ctx: int, kv_type: KvType) -> Layers:
    n_bytes = facts.weights_bytes + kv_bytes(facts, n_ctx, kv_type)
    return Layers(n=facts.n_layers, n_bytes=n_bytes // max(1, facts.n_layers))


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
