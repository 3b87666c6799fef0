"""`edgeqwen pull`: shows what would come, asks where it must, and tells how it goes."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import Any

import click

from edgeqwen.cli import describe, output
from edgeqwen.cli.invocation import Invocation
from edgeqwen.cli.options import complete_ref, json_option, yes_option
from edgeqwen.errors import InvalidInput
from edgeqwen.machine.memory import available_bytes
from edgeqwen.models.fit import estimate
from edgeqwen.models.install import find_same
from edgeqwen.models.pull import Plan, PullWatch, plan_pull
from edgeqwen.models.pull import pull as pull_model
from edgeqwen.models.ref import parse_ref
from edgeqwen.models.sources import user_sources
from edgeqwen.models.store import ManifestFile
from edgeqwen.text import size_text

_LEAST_CONTEXT = 2048
_WINDOW_S = 8.0  # the rate is that of the last seconds
_LINE_EVERY_S = 10.0
_EVENT_EVERY_S = 1.0


@click.command()
@click.argument("ref", shell_complete=complete_ref)
@click.option("--dry-run", is_flag=True, help="Show what would be downloaded, and stop.")
@yes_option
@json_option
@click.pass_obj
def pull(invocation: Invocation, ref: str, dry_run: bool, yes: bool) -> None:
    """Download a model, or take it from where it is already.

    REF is a model of the catalogue (qwen3-4b, qwen3-4b:q5_k_m), or a repository: hf:OWNER/REPO:QUANT.

    Bytes are checked against the size and sha256 of the catalogue, or those of the hub. A pull that was cut
    off goes on where it was, also from another source. Files that Ollama, LM Studio or a Hugging Face cache
    hold are linked instead of downloaded.

    With --json, each line is an event, and the last one is the installed model.
    """
    sources = user_sources(invocation.config.pull.sources)
    plan = plan_pull(parse_ref(ref), invocation.catalogue, sources, invocation.heads)
    meter = _Meter(plan, as_json=invocation.as_json)
    n_held = plan.n_held(invocation.store)
    meter.event(
        "plan", files=[origin.name for origin in plan.origins], size_bytes=plan.size, held_bytes=n_held
    )
    files = [ManifestFile(origin.name, origin.size, origin.sha256) for origin in plan.origins]
    if entry := find_same(invocation.store, files):
        output.note(f"{entry.ref} is installed already")
    else:
        _tell_plan(invocation, plan, n_held)
        if dry_run:
            return
        _ask(invocation, plan, yes=yes)
        watch = PullWatch(meter.on_bytes, meter.on_trouble, meter.on_found, meter.on_wait)
        try:
            entry = pull_model(plan, invocation.store, sources, watch)
        except KeyboardInterrupt:
            meter.close()
            output.note(f"stopped; `edgeqwen pull {plan.ref}` goes on from here")
            raise
        finally:
            meter.close()
        invocation.stamps.put(entry)
        output.note(f"installed {entry.ref}; {size_text(watch.downloaded)} were downloaded")
    if invocation.as_json:
        meter.event("installed", **describe.entry_data(entry))
    else:
        output.line(entry.ref)


def _tell_plan(invocation: Invocation, plan: Plan, n_held: int) -> None:
    kept = f", of which {size_text(n_held)} are here already" if n_held else ""
    model = plan.model_known
    name = invocation.catalogue.licences[model.licence].name if model else "not known, see its web page"
    output.note(f"{plan.ref}: {size_text(plan.size)}{kept}; licence: {name}")
    if model is None:
        output.note("note: no catalogue knows this file: the hub's own sha256 is taken on trust, this once")
    parts = estimate(plan.facts, min(_LEAST_CONTEXT, plan.facts.context))
    needed, available = parts.total + invocation.measured.correction(None, parts), available_bytes()
    if needed > available:
        output.note(
            f"note: it needs about {size_text(needed)} of memory and {size_text(available)} are available; "
            "`edgeqwen fit` shows what fits"
        )


def _ask(invocation: Invocation, plan: Plan, *, yes: bool) -> None:
    """Have a licence accepted that forbids commercial use. Raises InvalidInput where nobody can be asked."""
    licence = invocation.catalogue.licences[plan.model_known.licence] if plan.model_known else None
    if licence is None or licence.commercial_use or yes:
        return
    output.note(f"the {licence.name} does not allow commercial use: {licence.url}")
    if not sys.stdin.isatty():
        raise InvalidInput("this licence needs a yes: give `--yes` where nobody can be asked")
    click.confirm("go on?", abort=True, err=True)


class _Meter:
    """Shows how far a download is: a line on a terminal, now and then one in a pipe, events with --json."""

    def __init__(self, plan: Plan, *, as_json: bool) -> None:
        self._plan, self._as_json = plan, as_json
        self._status = output.Status()
        self._marks: deque[tuple[float, int]] = deque()
        self._told_at = time.monotonic()

    def event(self, kind: str, **data: Any) -> None:  # noqa: ANN401 - JSON values
        if self._as_json:
            output.document({"event": kind, "ref": self._plan.ref, **data})

    def on_bytes(self, done: int, total: int) -> None:
        rate = self._rate(done)
        text = f"pulling {self._plan.ref}: {_share(done, total)}{_speed(rate, total - done)}"
        self._status.show(text)
        waited = time.monotonic() - self._told_at
        if self._as_json and (waited >= _EVENT_EVERY_S or done == total):
            self._told_at = time.monotonic()
            self.event("progress", done_bytes=done, total_bytes=total, bytes_per_s=rate and round(rate))
        elif not self._as_json and not output.has_terminal() and waited >= _LINE_EVERY_S:
            self._told_at = time.monotonic()
            output.note(text)

    def on_wait(self, done: int, total: int) -> None:
        text = f"another edgeqwen pulls {self._plan.ref}: {_share(done, total)}"
        self._status.show(text)
        waited = time.monotonic() - self._told_at
        if self._as_json and waited >= _EVENT_EVERY_S:
            self._told_at = time.monotonic()
            self.event("waiting", done_bytes=done, total_bytes=total)
        elif not self._as_json and not output.has_terminal() and waited >= _LINE_EVERY_S:
            self._told_at = time.monotonic()
            output.note(text)

    def on_trouble(self, sentence: str) -> None:
        self._status.clear()
        output.note(f"note: {sentence}")
        self.event("trouble", message=sentence)

    def on_found(self, path: str) -> None:
        self._status.clear()
        output.note(f"found on this machine: {path}")
        self.event("found", path=path)

    def close(self) -> None:
        self._status.clear()

    def _rate(self, done: int) -> float | None:
        """Return bytes per second over the last seconds, None at the beginning."""
        now = time.monotonic()
        self._marks.append((now, done))
        while now - self._marks[0][0] > _WINDOW_S:
            self._marks.popleft()
        then, before = self._marks[0]
        return (done - before) / (now - then) if now - then > 0.5 and done > before else None


def _share(done: int, total: int) -> str:
    return f"{100 * done // max(total, 1)} % of {size_text(total)}"


def _speed(rate: float | None, left: int) -> str:
    if not rate:
        return ""
    seconds = left / rate
    unit = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
    return f", {size_text(rate)}/s, {unit} left"
