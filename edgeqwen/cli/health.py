"""`edgeqwen doctor` and `edgeqwen ps`: is all well here, and what runs."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import Any

import click

from edgeqwen.chat.running import KEPT_ANSWERS, Running, average, read_running
from edgeqwen.cli import output
from edgeqwen.cli.invocation import Invocation
from edgeqwen.cli.options import json_option
from edgeqwen.doctor import check_now, examine
from edgeqwen.machine.health import Check, status_of
from edgeqwen.machine.monitor import Monitor, Sample, advice
from edgeqwen.text import size_text

UNHEALTHY = 7
_LOOK_S = 0.2  # between the two looks at the CPU and at swapping


@click.command()
@json_option
@click.pass_obj
def doctor(invocation: Invocation) -> int:
    """Look for what is wrong, and say what to do.

    Python, the build of llama.cpp, devices, memory, disk, store, settings and terminal. Nothing is changed
    and no network is asked. The exit code is 7 when something fails, else 0.
    """
    checks = asyncio.run(examine(invocation))
    status = status_of(checks)
    if invocation.as_json:
        output.document({"status": status, "checks": [asdict(check) for check in checks]})
    else:
        output.table(("CHECK", "STATE", "FOUND"), [(one.name, one.state, one.says) for one in checks])
        for check in checks:
            if check.todo:
                output.note(f"\n{check.name}: {check.todo}")
        output.note(f"\n{status}")
    return UNHEALTHY if status == "unhealthy" else 0


@click.command()
@click.option(
    "--last",
    type=click.IntRange(1, KEPT_ANSWERS),
    default=20,
    show_default=True,
    help="Answers to average over.",
)
@json_option
@click.pass_obj
def ps(invocation: Invocation, last: int) -> None:
    """Show the models that are loaded, by whom, and how fast they answer.

    Rates are tokens over seconds of the last answers; MEMORY is the engine's process as a whole.
    """
    monitor = Monitor()
    time.sleep(_LOOK_S)
    engines = [(one, monitor.sample(one.worker)) for one in read_running(invocation.paths.running)]
    here = engines[0][1] if engines else monitor.sample(None)
    checks = [*check_now(here), *(check for one, sample in engines for check in _engine_checks(one, sample))]
    if invocation.as_json:
        output.document(
            {
                "status": status_of(checks),
                "checks": [asdict(check) for check in checks],
                "machine": _machine(here),
                "engines": [_engine(one, sample, last) for one, sample in engines],
            }
        )
        return
    output.table(
        ("PID", "MODEL", ">CONTEXT", ">MEMORY", ">TOK/S", ">FIRST AFTER", ">ANSWERS", ">UP"),
        [_row(one, sample, last) for one, sample in engines],
    )
    for check in checks:
        output.note(f"{check.name}: {check.says}{f': {check.todo}' if check.todo else ''}")


def _engine_checks(running: Running, sample: Sample) -> list[Check]:
    name = f"pid {running.pid}"
    if sample.worker is None:
        return [Check(name, "fail", f"the engine of {running.model} is gone", "load the model again there")]
    if not running.answers:
        return []
    stats = running.answers[-1]
    used = stats.prompt_tokens + stats.completion_tokens
    known = set(advice(sample))
    found = advice(sample, n_context=used, n_ctx=running.n_ctx)
    return [Check(name, "warn", *one.split(": ", 1)) for one in found if one not in known]


def _engine(running: Running, sample: Sample, last: int) -> dict[str, Any]:
    latest = running.answers[-1] if running.answers else None
    return {
        "pid": running.pid,
        "worker_pid": running.worker,
        "model": running.model,
        "n_ctx": running.n_ctx,
        "n_threads": running.n_threads,
        "n_gpu_layers": running.n_gpu_layers,
        "up_s": round(running.up_s, 1),
        "memory": asdict(sample.worker) if sample.worker else None,
        "average": asdict(average(running.answers[-last:])),
        "latest": asdict(average([latest])) if latest else None,
    }


def _machine(sample: Sample) -> dict[str, Any]:
    return {
        "memory_total": sample.total,
        "memory_available": sample.available,
        "swap_used": sample.swap_used,
        "memory_pressure": sample.memory_pressure,
        "cpu_percent": list(sample.cpu),
        "temperature": sample.temperature,
        "is_throttled": sample.is_throttled,
        "gpus": [asdict(gpu) for gpu in sample.gpus],
    }


def _row(running: Running, sample: Sample, last: int) -> tuple[str, ...]:
    mean = average(running.answers[-last:])
    return (
        str(running.pid),
        running.model,
        f"{running.n_ctx:,}",
        size_text(sample.worker.rss) if sample.worker else "-",
        f"{mean.decode_tps:.1f}" if mean.decode_tps else "-",
        f"{mean.ttft_s:.2f} s" if mean.ttft_s is not None else "-",
        str(len(running.answers)),
        f"{running.up_s / 60:.0f} min",
    )
