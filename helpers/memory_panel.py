"""Memory on the page while cells run: a live chart that stands beside the notebook."""

from html import escape
from typing import Any

import ipywidgets

from .charts import Panel
from .kernel import at_shutdown
from .memory import MemoryMonitor
from .widgets import show_widget

_WIDTH, _HEIGHT = 480, 140
_POINTS = 400  # More are thinned out: the eye sees no more.


class MemoryPanel(MemoryMonitor):
    """A monitor whose samples are on the page, and go on from cell to cell.

    In JupyterLab "Create New View for Cell Output" (by a right click) puts it beside
    the notebook. `stop()`, or the end of the kernel, leaves its chart as a picture.
    """

    def __init__(self, interval_s: float = 1.0, kind: str | None = None) -> None:
        super().__init__(interval_s, kind)
        self._view: Any = None
        self._handle: Any = None

    def start(self) -> "MemoryPanel":
        self._view = ipywidgets.HTML(layout={"width": "100%"})
        super().start()
        self._handle = show_widget(self._view, Panel("<p>Watching.</p>", "Watching."))
        at_shutdown(self.stop)
        return self

    def stop(self) -> None:
        steps = self._steps()
        super().stop()
        if self._handle:  # None outside a notebook.
            chart = self.plot()
            self._handle.update(Panel(chart._repr_html_() + steps, chart.text))

    def _sample(self, label: str = "") -> int:
        mib = super()._sample(label)
        self._view.value = self._draw()
        return mib

    def _draw(self) -> str:
        """The samples so far as a line, the marks by their numbers, and in words."""
        samples = list(self.samples)
        last = samples[-1]
        x, y = _WIDTH / (last.seconds or 1), -0.9 * _HEIGHT / (self.peak or 1)
        thinned = [*samples[:: len(samples) // _POINTS + 1], last]
        points = " ".join(f"{s.seconds * x:.1f},{s.mib * y:.1f}" for s in thinned)
        marks = "".join(
            f'<text x="{mark.seconds * x:.1f}" y="{-0.92 * _HEIGHT}">{number}</text>'
            f'<path d="M{mark.seconds * x:.1f},0v{-0.9 * _HEIGHT}" stroke="#777"/>'
            for number, mark in enumerate(self.marks[1:], start=1)
        )
        kind = self.kind[0].upper() + self.kind[1:]
        words = f"{kind}: {last.mib:,} MiB after {last.seconds:.0f} s"
        return (
            f'<p style="margin:0"><b>{words}</b>, {self.peak:,} at most</p>'
            f'<svg role="img" aria-label="{words}" style="max-width:40em" '
            f'viewBox="-5 {-_HEIGHT} {_WIDTH + 10} {_HEIGHT + 2}" font-size="12" '
            f'fill="currentColor" text-anchor="middle">{marks}'
            f'<path d="M0,0L{points}V0z" fill="#1F84C4" fill-opacity="0.3"/>'
            f'<polyline points="{points}" fill="none" stroke="#1F84C4" '
            'stroke-width="2"/></svg>'
            f"{self._steps()}"
        )

    def _steps(self) -> str:
        items = [f"<li>{escape(name)}: {mib:+,} MiB</li>" for name, mib in self.steps()]
        return f'<ol style="margin:0;line-height:1.4">{"".join(items)}</ol>'
