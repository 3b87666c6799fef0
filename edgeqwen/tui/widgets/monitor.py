"""Numbers and their last minutes: rates, memory, CPU, context. Draws what it is given."""

from __future__ import annotations

from collections import deque
from statistics import mean

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Sparkline, Static

from edgeqwen.chat.running import average
from edgeqwen.engine.protocol import Stats
from edgeqwen.tui.language import _
from edgeqwen.tui.widgets.status import Gauge, bar, megabytes

_MINUTES = 3 * 60  # seconds that the plots go back


class Record:
    """What was measured while the program runs: a point per second, and the counters of each answer."""

    def __init__(self) -> None:
        self.rates: deque[float] = deque([0.0] * 2, _MINUTES)
        self.memory: deque[float] = deque([0.0] * 2, _MINUTES)
        self.cpu: deque[float] = deque([0.0] * 2, _MINUTES)
        self.answers: deque[Stats] = deque(maxlen=100)

    def tick(self, gauge: Gauge, *, is_answering: bool) -> None:
        """Take one point per second."""
        self.rates.append((gauge.rate or 0.0) if is_answering else 0.0)
        if sample := gauge.sample:
            self.memory.append(float(sample.worker.rss if sample.worker else 0))
            self.cpu.append(mean(sample.cpu) if sample.cpu else 0.0)


class MonitorView(VerticalScroll, can_focus=False):
    """The live monitor, as a panel or over a whole screen."""

    def __init__(self, *, plots: bool, id: str | None = None) -> None:
        super().__init__(id=id)
        self._numbers = Static("", markup=False)
        names = ("rates", "memory", "cpu") if plots else ()
        self._plots = {name: Sparkline([0, 0], classes="plot") for name in names}

    def compose(self) -> ComposeResult:
        yield self._numbers
        for name, plot in self._plots.items():
            yield Static(self._title(name), classes="plot-title", markup=False)
            yield plot

    @staticmethod
    def _title(plot: str) -> str:
        titles = {
            "rates": _("tokens/s, last 3 minutes"),
            "memory": _("memory of the model"),
            "cpu": _("CPU, all cores"),
        }
        return titles[plot]

    def draw(self, gauge: Gauge, record: Record) -> None:
        """Show the latest."""
        self._numbers.update("\n".join(lines(gauge, record)))
        for name, plot in self._plots.items():
            plot.data = list(getattr(record, name))


def lines(gauge: Gauge, record: Record) -> list[str]:
    """Return the monitor's figures, one per line."""
    return [*_rate_lines(gauge, record), "", *_memory_lines(gauge), "", *_machine_lines(gauge)]


def _rate_lines(gauge: Gauge, record: Record) -> list[str]:
    now = f"{gauge.rate:.1f}" if gauge.rate else "-"
    found = [gauge.model or _("no model"), f"{_('decode')}  {now} tok/s"]
    if record.answers:
        whole = average(record.answers)
        for name, kind in ((_("decode"), "decode_tps"), (_("prefill"), "prefill_tps")):
            best = max((getattr(stats, kind) or 0.0 for stats in record.answers), default=0.0)
            if best:
                found.append(f"{name}  ⌀ {_short(getattr(whole, kind))}  max {_short(best)} tok/s")
        last = record.answers[-1]
        mean_wait = f"  ⌀ {whole.ttft_s:.2f} s" if whole.ttft_s is not None else ""
        found.append(f"TTFT  {last.queued_s + (last.ttft_s or 0):.2f} s{mean_wait}")
    if gauge.n_ctx:
        share = gauge.n_context / gauge.n_ctx
        found += [
            f"{_('context')}  {gauge.n_context:,}/{gauge.n_ctx:,}",
            bar(share),
            f"{_('KV cache')}  {megabytes(share * gauge.kv_bytes)} / {megabytes(gauge.kv_bytes)}",
        ]
    return found


def _short(rate: float) -> str:
    return f"{rate:.1f}" if rate < 100 else f"{rate:.0f}"  # the column is narrow


def _memory_lines(gauge: Gauge) -> list[str]:
    sample = gauge.sample
    if sample is None:
        return []
    found = []
    if worker := sample.worker:
        found.append(f"{_('model process')}  {megabytes(worker.rss)}")
        if worker.mapped is not None and worker.own is not None:
            other = max(0, worker.own - gauge.kv_bytes)
            found.append(f"  {_('weights, mapped')}  {megabytes(worker.mapped)}")
            found.append(f"  {_('KV cache, at most')}  {megabytes(gauge.kv_bytes)}")
            found.append(f"  {_('other')}  {megabytes(other)}")
    found.append(f"{_('available')}  {megabytes(sample.available)} / {megabytes(sample.total)}")
    found.append(bar(1 - sample.available / max(1, sample.total)))
    found.append(f"{_('swap used')}  {megabytes(sample.swap_used)}")
    if sample.memory_pressure is not None:
        found.append(f"{_('memory pressure')}  {sample.memory_pressure:.1f}%")
    found += [f"{gpu.name}  {megabytes(gpu.used)} / {megabytes(gpu.total)}" for gpu in sample.gpus]
    return found


def _machine_lines(gauge: Gauge) -> list[str]:
    sample = gauge.sample
    if sample is None:
        return []
    found = [f"CPU {index}  {bar(share / 100, 10)} {share:3.0f}%" for index, share in enumerate(sample.cpu)]
    if sample.temperature is not None:
        found.append(f"{_('temperature')}  {sample.temperature:.0f} °C")
    if sample.is_throttled is not None:
        found.append(_("throttled now") if sample.is_throttled else _("not throttled"))
    found.append("")
    return (
        [*found, *(f"! {one}" for one in gauge.advice or ())] if gauge.advice else [*found, _("all is well")]
    )
