"""`edgeqwen bench`: how fast a model is here, next to the last time."""

from __future__ import annotations

import asyncio
import platform
from datetime import UTC, datetime
from importlib.metadata import version

import click
import psutil

from edgeqwen.chat.loading import layers_of
from edgeqwen.cli import output
from edgeqwen.cli.invocation import Invocation
from edgeqwen.cli.options import complete_ref, json_option
from edgeqwen.engine.protocol import KvType, LoadParams
from edgeqwen.errors import InvalidInput
from edgeqwen.machine.bandwidth import reading_bytes_per_s
from edgeqwen.machine.bench import Bench, Figure, History, Run
from edgeqwen.machine.cpu import cpu_name, usable_cores
from edgeqwen.machine.memory import available_bytes
from edgeqwen.models.facts import ModelFacts
from edgeqwen.models.fit import Setting, check_memory
from edgeqwen.models.locate import locate, read_located
from edgeqwen.text import size_text

_N_CTX = 4096
_BAR = 40


@click.command()
@click.argument("ref", shell_complete=complete_ref, required=False)
@click.option(
    "--kv", "kv_type", type=click.Choice(["f16", "q8_0", "q4_0"]), default="f16", help="Type of the KV cache."
)
@click.option("--threads", "n_threads", type=click.IntRange(1, 512), help="CPU threads.")
@click.option("--rounds", type=click.IntRange(1, 20), default=3, help="Rounds; medians count.")
@click.option("--plot", is_flag=True, help="Draw the figures as bars.")
@json_option
@click.pass_obj
def bench(
    invocation: Invocation, ref: str | None, kv_type: KvType, n_threads: int | None, rounds: int, plot: bool
) -> None:
    """Measure how fast a model is on this machine.

    Prefill and decode at several lengths, the wait for the first token (read anew, in turn 2, from disk),
    four requests at once, memory, and how much of the memory's speed decoding reaches. Each run is kept and
    compared with the one before. REF may be left out where one model is installed.
    """
    located = locate(ref or _only_model(invocation), invocation.store, invocation.catalogue)
    if located.is_script:
        raise InvalidInput(f"{located.name} is a script for the scripted engine, not a model")
    facts = read_located(located)
    n_ctx = min(_N_CTX, facts.context)
    check_memory(facts, Setting(n_ctx, kv_type), available_bytes())
    threads = n_threads or invocation.config.run.threads or usable_cores()
    paths = tuple(str(path.absolute()) for path in located.paths)
    layers = layers_of(facts, n_ctx, kv_type)
    params = LoadParams(paths=paths, n_ctx=n_ctx, n_threads=threads, kv_type=kv_type, layers=layers)
    with output.Status() as status:
        measuring = Bench(
            params, invocation.paths.logs, lambda what: status.show(f"measuring {what}"), rounds
        )
        figures = asyncio.run(measuring.run())
    for notice in measuring.notices:
        output.note(notice)
    figures += _bandwidth(figures, facts, threads)
    run = Run(
        model=located.name,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=f"edgeqwen {version('edgeqwen')}, llama-cpp-python {version('llama-cpp-python')}",
        machine=f"{platform.system()} {cpu_name()}, {psutil.cpu_count()} CPUs",
        n_threads=threads,
        kv_type=kv_type,
        figures={figure.name: figure.value for figure in figures},
        units={figure.name: figure.unit for figure in figures},
    )
    history, before = History(invocation.paths.bench), None
    try:
        before = history.last(run)
        history.add(run)
    except OSError as error:
        output.note(f"note: this run cannot be kept in {invocation.paths.bench}: {error.strerror}")
    _show(invocation, run, before, plot=plot)


def _only_model(invocation: Invocation) -> str:
    refs = [entry.ref for entry in invocation.store.entries()]
    if len(refs) != 1:
        raise InvalidInput(
            "name the model to measure" if refs else "no model is installed yet; pull one first"
        )
    return refs[0]


def _bandwidth(figures: list[Figure], facts: ModelFacts, n_threads: int) -> list[Figure]:
    """Return the bytes of weights read per second while decoding, and their share of what memory allows.

    None for mixtures of experts, of which a token reads a part.
    """
    rates = [figure.value for figure in figures if figure.name.startswith("decode")]
    if not rates or facts.is_mixture:
        return []
    read, readable = max(rates) * facts.weights_bytes, reading_bytes_per_s(n_threads)
    return [
        Figure("weights read per second", read, "bytes/s"),
        Figure("share of the memory's reading speed", read / readable, ""),
    ]


def _show(invocation: Invocation, run: Run, before: Run | None, *, plot: bool) -> None:
    if invocation.as_json:
        figures = {name: {"value": value, "unit": run.units[name]} for name, value in run.figures.items()}
        previous = before and {"date": before.date, "versions": before.versions, "figures": before.figures}
        output.document(
            {"model": run.model, "date": run.date, "versions": run.versions, "machine": run.machine,
             "n_threads": run.n_threads, "kv_type": run.kv_type, "figures": figures, "before": previous}
        )  # fmt: skip
        return
    rows = []
    for name, value in run.figures.items():
        old = before.figures.get(name) if before else None
        ratio = f"{value / old:.2f}" if old else "-"
        rows.append((name, _text(value, run.units[name]), ratio, *([_bar(run, name)] if plot else [])))
    header = ("FIGURE", ">MEASURED", ">OF BEFORE")
    output.table((*header, "BAR") if plot else header, rows)
    since = f"; before: {before.date}" if before else ""
    output.note(f"{run.model}, {run.n_threads} threads, {run.versions}, {run.machine}, {run.date}{since}")


def _bar(run: Run, name: str) -> str:
    """Return a bar whose full width is the largest figure of the same unit."""
    unit = run.units[name]
    largest = max(value for other, value in run.figures.items() if run.units[other] == unit)
    return "█" * max(1, round(_BAR * run.figures[name] / largest)) if largest > 0 else ""


def _text(value: float, unit: str) -> str:
    if unit.startswith("bytes"):
        return size_text(value) + unit.removeprefix("bytes")
    return f"{value:.3g} {unit}".strip() if value < 1000 else f"{value:,.0f} {unit}"
