"""How a model is loaded: the context, memory and cache settings that somebody did not name.

Pure but for the header it is given; starts no process and prints nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeqwen.engine.protocol import KvType, Layers, LoadParams, SavedParams
from edgeqwen.models.catalogue import Catalogue
from edgeqwen.models.facts import ModelFacts, kv_bytes
from edgeqwen.models.fit import DEFAULT_CONTEXT, Estimate, Setting, check_memory, choose_context
from edgeqwen.models.locate import Located
from edgeqwen.models.measured import Load


@dataclass(frozen=True)
class LoadOptions:
    """What somebody asked for."""

    n_ctx: int | None = None
    """None: 8,192, or less where the model or the memory has less."""
    n_threads: int = 1
    kv_type: KvType = "f16"
    kv_type_v: KvType | None = None
    load_mode: Literal["auto", "mlock", "read"] = "auto"
    repack: bool = True
    n_gpu_layers: int = -1
    force: bool = False
    """Load even what does not fit."""


@dataclass(frozen=True)
class LoadPlan:
    """What goes to the worker, and what to tell about it."""

    params: LoadParams
    notices: tuple[str, ...] = ()
    """What is not as one might think, a sentence each."""
    load: Load | None = None
    """By which the memory it takes is remembered; None for files outside the store, and where memory is so
    short that the system takes some of it back."""
    estimate: Estimate | None = None


def plan_load(
    located: Located,
    facts: ModelFacts | None,
    options: LoadOptions,
    *,
    available_bytes: int,
    saved: SavedParams | None,
    catalogue: Catalogue,
) -> LoadPlan:
    """Return how to load a model; `facts` None is a script. Raises LoadFailed when it cannot fit."""
    notices: list[str] = []
    n_ctx = DEFAULT_CONTEXT if options.n_ctx is None else options.n_ctx
    parts = None
    if facts:
        n_ctx = _context(facts, options, available_bytes, notices)
        _notice_template(facts, catalogue, notices)
        is_mapped = options.load_mode == "auto"
        asked = Setting(n_ctx, options.kv_type, options.kv_type_v, repack=options.repack, is_mapped=is_mapped)
        parts = asked.estimate(facts)
        if not options.force:
            check_memory(facts, asked, available_bytes)
    params = LoadParams(
        paths=tuple(str(Path(path).absolute()) for path in located.paths),
        engine="scripted" if located.is_script else "llama",
        n_ctx=n_ctx,
        n_threads=options.n_threads,
        kv_type=options.kv_type,
        kv_type_v=options.kv_type_v,
        load_mode=options.load_mode,
        repack=options.repack,
        n_gpu_layers=options.n_gpu_layers,
        layers=layers_of(facts, n_ctx, options.kv_type) if facts else None,
        saved=saved,
    )
    load = None
    if located.entry and parts and parts.total <= available_bytes:
        load = Load(located.entry.manifest.files[0].sha256, n_ctx, options.kv_type)
    return LoadPlan(params, tuple(notices), load, parts)


def saved_params(located: Located, folder: Path, max_mib: int) -> SavedParams | None:
    """Say where the KV cache goes; files named by their path are known by what a change would change."""
    if not max_mib or located.is_script:
        return None
    if entry := located.entry:
        model = " ".join(file.sha256 for file in entry.manifest.files)
    else:
        found = [path.stat() for path in located.paths]
        model = " ".join(f"{one.st_dev}:{one.st_ino}:{one.st_size}:{one.st_mtime_ns}" for one in found)
    return SavedParams(folder=str(folder), model=model, max_bytes=max_mib << 20)


def _context(facts: ModelFacts, options: LoadOptions, available_bytes: int, notices: list[str]) -> int:
    asked = options.n_ctx
    if asked is None:
        choice = choose_context(facts, available_bytes, options.kv_type, options.kv_type_v)
        if choice.is_reduced:
            notices.append(
                f"memory is short, so the context is {choice.n_ctx:,} tokens; `run.ctx` sets another"
            )
        return choice.n_ctx
    if asked > facts.context:
        notices.append(f"{asked:,} tokens are more than the {facts.context:,} the model was made for")
    return asked


def _notice_template(facts: ModelFacts, catalogue: Catalogue, notices: list[str]) -> None:
    if facts.template_sha256 is None:
        notices.append("the file has no chat template; plain ChatML is used")
    elif facts.template_sha256 not in catalogue.templates:
        notices.append("the file's chat template is not one of the known ones; it runs in a sandbox")


def layers_of(facts: ModelFacts, n_ctx: int, kv_type: KvType) -> Layers:
    """Return what the worker needs to know to give a GPU as many layers as its memory takes."""
    n_bytes = facts.weights_bytes + kv_bytes(facts, n_ctx, kv_type)
    return Layers(n=facts.n_layers, n_bytes=n_bytes // max(1, facts.n_layers))
