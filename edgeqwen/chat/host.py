"""The model in use: checks its files, loads it into a worker, and starts another one when that is lost.

One host serves one front end for as long as that runs. Knows no conversation and no screen; the machine's
memory is told to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from edgeqwen.chat.loading import LoadOptions, LoadPlan, plan_load, saved_params
from edgeqwen.chat.running import RunningFile
from edgeqwen.engine.client import WorkerClient
from edgeqwen.engine.protocol import Ready, Stats
from edgeqwen.errors import InvalidInput
from edgeqwen.models.library import Library
from edgeqwen.models.locate import Located, locate, read_located

Progress = Callable[[str, float], None]
"""Gets what is being done, and the share of it that is done."""


@dataclass(frozen=True)
class Loaded:
    """A model that is ready."""

    located: Located
    plan: LoadPlan
    ready: Ready

    @property
    def name(self) -> str:
        """The ref, or the file name of a model that is not in the store."""
        return self.located.name

    def card(self, *, thinks: bool) -> dict[str, Any]:
        """Return the model card's sampler values, None where it has none."""
        model = self.located.model
        return vars(model.sampling_for(thinks)) if model else {}

    @property
    def notices(self) -> tuple[str, ...]:
        """What was not done as asked, a sentence each."""
        return (*self.plan.notices, *self.ready.notices)


class ModelHost:
    """At most one loaded model; `client` is the worker to ask."""

    def __init__(self, library: Library, available_bytes: Callable[[], int]) -> None:
        self._library, self._available_bytes = library, available_bytes
        self.client = WorkerClient(library.paths.logs)
        self.loaded: Loaded | None = None
        self._running = RunningFile(library.paths.running)
        self._is_remembered = False

    def find(self, ref: str) -> Located:
        """Return what a ref means. Raises InvalidInput, UnknownModel, NotInstalled, StoreError."""
        located = locate(ref, self._library.store, self._library.catalogue)
        model = located.model
        if model and not model.can_chat:
            raise InvalidInput(f"{model.ref} is made for {' and '.join(model.capabilities)}; it cannot chat")
        return located

    async def open(self, located: Located, options: LoadOptions, progress: Progress) -> Loaded:
        """Load a model in place of the one before, which is closed only once the new one can fit.

        Raises StoreError, InvalidGGUF, LoadFailed, WorkerLost; after those of the load itself none is loaded.
        """
        await self._check(located, progress)
        progress(f"loading {located.name}", 0.0)
        next_client = WorkerClient(self._library.paths.logs)
        await next_client.start()  # it gets up while we read the header
        try:
            plan = await asyncio.to_thread(self._plan, located, options)
            await self.close()
            self.client = next_client
            ready = await next_client.load(plan.params, partial(progress, f"loading {located.name}"))
        except BaseException:
            await next_client.close()
            raise
        self._is_remembered = False
        self.loaded = Loaded(located, plan, ready)
        params = plan.params
        self._running.begin(
            next_client.pid or 0, located.name, ready.n_ctx, params.n_threads, ready.n_gpu_layers
        )
        return self.loaded

    async def close(self) -> None:
        """End the worker, which saves what its cache holds; after it no model is loaded."""
        self.loaded = None
        self._running.end()
        await self.client.close()

    def count(self, stats: Stats) -> None:
        """Keep the counters of an answer for `ps`, and once per load the memory for `fit`."""
        self._running.add(stats)
        plan = self.loaded.plan if self.loaded else None
        if plan and plan.load and plan.estimate and stats.completion_tokens and not self._is_remembered:
            self._library.measured.put(plan.load, plan.estimate.total, stats.rss_bytes)
            self._is_remembered = True

    async def _check(self, located: Located, progress: Progress) -> None:
        """Hash installed files that have changed since they were last found right. Raises StoreError."""
        entry, stamps = located.entry, self._library.stamps
        if entry is None or stamps.hold(entry):
            return

        def tell(done: int, total: int) -> None:
            progress(f"checking {located.name}", done / max(1, total))

        await asyncio.to_thread(stamps.check, entry, tell)

    def _plan(self, located: Located, options: LoadOptions) -> LoadPlan:
        library = self._library
        facts = None if located.is_script else read_located(located)
        available = self._available_bytes()
        if self.client.pid and self.loaded and self.loaded.plan.estimate:
            parts = self.loaded.plan.estimate  # its memory comes back before the new one needs it
            available += parts.total - parts.weights
        return plan_load(
            located,
            facts,
            options,
            available_bytes=available,
            saved=saved_params(located, library.paths.kv, library.config.kv.max_mib),
            catalogue=library.catalogue,
        )
