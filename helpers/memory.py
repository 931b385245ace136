"""Watch memory over time.

Figures are NVML's, of all processes, or without a GPU of this one and its children. A
monitor samples from a thread; out comes a chart, or a live view on the page.
"""

import threading
import time
from html import escape
from itertools import pairwise
from typing import Any, NamedTuple

from .charts import Chart, Panel, new_axes, svg_line
from .internals.machine.devices import measure_memory, memory_kind
from .kernel import at_shutdown


class Sample(NamedTuple):
    """Memory in MiB at a time in seconds since the start; a mark has a label."""

    seconds: float
    mib: int
    label: str = ""


class MemoryMonitor:
    """Sample memory from a thread while something runs.

    Use the monitor once, as a context manager or over several cells with `start()` and
    `stop()`. The memory is that of all processes on the GPU, or of this process and its
    children. An allocation shorter than `interval_s` (seconds) can pass unseen, except
    at a `mark`. With `live=True` the page shows the samples, and at last the chart.
    """

    def __init__(self, interval_s: float = 0.2, *, live: bool = False) -> None:
        self.interval_s, self.live, self.kind = interval_s, live, memory_kind()
        self.title = self.kind[0].upper() + self.kind[1:]
        self.samples: list[Sample] = []
        self._page: Any = None  # The handle of the live view.
        self._thread = threading.Thread(target=self._keep_sampling, daemon=True)
        self._stopping = threading.Event()
        self._lock = threading.Lock()

    def start(self) -> "MemoryMonitor":
        """Begin to sample. Raises `RuntimeError` the second time."""
        if self.samples:
            raise RuntimeError("This monitor has run already: make a new one.")
        self._started = time.perf_counter()
        self._take_sample("start")
        self._thread.start()
        if self.live:
            from IPython.display import display

            self._page = display(self._live_view(), display_id=True)
            at_shutdown.append(self.stop)
        return self

    def stop(self) -> None:
        """Take the last sample and end the thread; stopping twice does nothing."""
        if not self.samples or self._stopping.is_set():
            return
        self._stopping.set()
        self._thread.join()
        self._take_sample("stop")
        if self._page:  # None outside a notebook.
            chart = self.plot()
            self._page.update(Panel(chart.html + self._html_steps(), chart.text))

    __enter__ = start

    def __exit__(self, *_: object) -> None:
        self.stop()

    def mark(self, label: str) -> int:
        """Sample now under this name; return the MiB in use."""
        if not self.samples or self._stopping.is_set():
            raise RuntimeError("The monitor is not running: start it first.")
        return self._take_sample(label)

    @property
    def marks(self) -> list[Sample]:
        """The samples that have a label, "start" and "stop" among them."""
        return [sample for sample in self.samples if sample.label]

    @property
    def peak(self) -> int:
        """The highest sample in MiB; 0 before the start."""
        return max((sample.mib for sample in self.samples), default=0)

    def steps(self) -> list[tuple[str, int]]:
        """List each mark with its difference from the mark before, in MiB."""
        return [(b.label, b.mib - a.mib) for a, b in pairwise(self.marks)]

    def plot(self) -> Chart:
        """Draw memory over time, with a line at each mark; its text has the steps."""
        axes = new_axes(8, 3)
        seconds, mib, _ = zip(*self.samples, strict=True)
        axes.fill_between(seconds, mib, alpha=0.25, linewidth=0)
        axes.plot(seconds, mib)
        for place, mark in enumerate(self.marks):
            axes.axvline(mark.seconds, color="0.5", linestyle=":", linewidth=1)
            if mark.label not in ("start", "stop"):  # Four heights, as marks are close.
                how = {"transform": axes.get_xaxis_transform(), "fontsize": 8}
                height = 0.9 - 0.1 * (place % 4)
                axes.text(mark.seconds, height, f" {mark.label}", va="center", **how)
        axes.set_title(f"{self.title}, peak {self.peak:,} MiB")
        axes.set(xlabel="seconds", ylabel="MiB", ylim=(0, None))
        axes.yaxis.set_major_formatter("{x:,.0f}")
        steps = ", ".join(f"{label} {mib:+,} MiB" for label, mib in self.steps())
        return Chart(axes.figure, f"{axes.get_title()}. Steps: {steps or 'none'}.")

    def _keep_sampling(self) -> None:
        while not self._stopping.wait(self.interval_s):
            self._take_sample()

    def _take_sample(self, label: str = "") -> int:
        with self._lock:  # Keeps the samples in order of time.
            mib = measure_memory(self.kind)
            seconds = time.perf_counter() - self._started
            self.samples.append(Sample(seconds, mib, label))
        if self._page and label != "stop":
            self._page.update(self._live_view())
        return mib

    def _live_view(self) -> Panel:
        """Draw the samples so far as a line, with numbered marks and their steps."""
        points = [(one.seconds, one.mib) for one in list(self.samples)]
        seconds, mib = points[-1]
        words = f"{self.title}: {mib:,} MiB after {seconds:.0f} s"
        line = svg_line(points, [mark.seconds for mark in self.marks[1:]], words)
        peak = f'<p style="margin:0"><b>{words}</b>, {self.peak:,} at most</p>'
        return Panel(peak + line + self._html_steps(), words)

    def _html_steps(self) -> str:
        items = [f"<li>{escape(name)}: {mib:+,} MiB</li>" for name, mib in self.steps()]
        return f'<ol style="margin:0;line-height:1.4">{"".join(items)}</ol>'
