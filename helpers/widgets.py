"""Widgets: a response while it is written, and controls on a distribution.

In go tokens as they come, or log-probabilities; what a reader sees is a widget. Each
widget has a `Panel` beside it, which a saved page shows where no kernel runs.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

import ipywidgets
from IPython import get_ipython
from IPython.display import display

from .charts import COLOURS, TEXT_STYLE, Panel, show_table, show_thinking
from .internals.thinking.families import unwrap_tokenizer
from .kernel import at_shutdown
from .sampling import NEUTRAL, describe, reshape
from .thinking import ThinkingStream

# Lowest, highest and step of each sampling parameter's slider; vLLM refuses top_p = 0.
_RANGES = {
    "temperature": (0.0, 2.0, 0.05),
    "top_k": (0, 100, 1),
    "top_p": (0.05, 1.0, 0.05),
    "min_p": (0.0, 0.5, 0.01),
}
# The two bars of each token: their colours, and the heads of their columns.
_BARS = {
    c: Panel(f'<span aria-hidden="true" style="color:{c}">■</span> {name}', name)
    for c, name in (("#999999", "the model's"), (COLOURS[0], "drawn from"))
}
# A reversed box stays scrolled to its end, where text is added.
_LIVE = f"{TEXT_STYLE};display:flex;flex-direction:column-reverse;max-height:20em"


def show_widget(widget: ipywidgets.Widget, fallback: Panel) -> Any:
    """Display `widget`, with `fallback` where no widgets run; return the handle."""
    # The handle is for the end: a widget without its kernel shows an error instead.
    texts = {"text/html": fallback._repr_html_(), "text/plain": fallback.text}
    return display({**widget._repr_mimebundle_(), **texts}, raw=True, display_id=True)


def close_widget(widget: ipywidgets.Widget) -> None:
    """Close a widget and all its parts: a kernel keeps each of them until then."""
    for value in widget.trait_values().values():
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, ipywidgets.Widget):
                close_widget(part)
    widget.close()


class LiveResponse:
    """One response while it is written, drawn into the cell that runs.

    Pass it to `generate` as `streamer=live`, or `put` the prompt's tokens and then
    those of each step of vLLM's engine, and call `end`. The response ends with its cell
    at the latest; what is written by then stays, as a page that needs no kernel.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.result = tokenizer, None  # A result after `end`.
        self._stop = threading.Event()  # Set from the thread that hears the button.
        self._stream = self._box = self._reason = None  # No box outside a notebook.
        self._next_draw = 0.0

    def put(self, token_ids: Any) -> None:
        """Take one prompt, then new tokens. Raises KeyboardInterrupt after Stop."""
        if self._stop.is_set():
            self.end()
            raise KeyboardInterrupt
        ids = list(token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids)
        if len(ids) == 1 and isinstance(ids[0], list):
            ids = ids[0]  # A batch of one.
        if self._stream is None:
            self._stream = ThinkingStream(self.tokenizer, prompt_token_ids=ids)
            if hasattr(get_ipython(), "kernel"):
                self._open_view()
            return
        self._stream.feed(ids)
        ended = ids[-1:] == [unwrap_tokenizer(self.tokenizer).eos_token_id]
        self._reason = "stop" if ended else None
        if self._box and time.monotonic() >= self._next_draw:
            self._draw()

    def end(self) -> None:
        """Keep the finished response as `result`, and leave it on the page."""
        if self._stream is None or self.result is not None:
            return
        reason = "abort" if self._stop.is_set() else self._reason
        self.result = self._stream.result(reason)
        if self._box:
            self._handle.update(show_thinking(self.result))
            close_widget(self._box)
        else:
            print(show_thinking(self.result))

    def _open_view(self) -> None:
        button = ipywidgets.Button(description="Stop", icon="stop")
        # JupyterLab delivers this while the cell runs, by a subshell of the kernel.
        button.on_click(lambda _: self._stop.set())
        self._text = ipywidgets.HTML()
        self._box = ipywidgets.VBox([button, self._text])
        self._handle = show_widget(self._box, Panel("Writing ...", "Writing ..."))
        # ipykernel 7.4 hears a widget in the thread that made it, which is busy now.
        vars(button.comm).pop("_reply_subshell_id", None)
        get_ipython().events.register("post_run_cell", self._end_with_cell)

    def _draw(self) -> None:
        start, so_far = time.monotonic(), self._stream.result()
        count = so_far.thinking_tokens + so_far.response_tokens
        text = f'<div style="opacity:0.75">{escape(so_far.thinking)}</div>'
        text = Panel(f"{text}{escape(so_far.response or '')}", "")._repr_html_()
        box = f'<div tabindex="0" style="{_LIVE};overflow:auto">{text}</div>'
        self._text.value = f'<p role="status">{count:,} tokens</p>{box}'
        # A long response is slow to parse: take a tenth of the time for it.
        self._next_draw = start + max(0.1, 10 * (time.monotonic() - start))

    def _end_with_cell(self, _: object) -> None:
        """End the response with its cell: after an interrupt nothing else does."""
        get_ipython().events.unregister("post_run_cell", self._end_with_cell)
        self._stop.set()
        self.end()


@dataclass(eq=False, repr=False)
class DistributionExplorer:
    """A next-token distribution with a slider for each sampling parameter.

    `parameters` are neutral where not given; sliders change them. Where no widgets run
    the cell shows `panel()`. Raises `KeyError` for a parameter that has no slider.
    """

    logprobs: Any  # As `reshape` takes them.
    decode: Callable[[list[int]], str]
    sample: Callable[[dict[str, float]], Any]  # The button shows what it returns.
    parameters: Mapping[str, float] = field(default_factory=dict)
    tokens: int = 10  # The likeliest, shown.
    title: str = "The next token"

    def __post_init__(self) -> None:
        self.chart = ipywidgets.HTML()
        button = {"manual": True, "manual_name": "Sample", "auto_display": True}
        self.view = ipywidgets.interactive(
            lambda **_: self.sample(self.parameters), button, **_RANGES
        )
        self.controls = {one.description: one for one in self.view.kwargs_widgets}
        for name, value in {**NEUTRAL, **self.parameters}.items():
            slider = self.controls[name]
            slider.value, slider.style.description_width = value, "7em"
            slider.layout = {"width": "30em", "max_width": "98%"}
            slider.observe(self._redraw, "value")
        self._redraw()

    def panel(self) -> Panel:
        """Show the distribution under the present parameters, as a table with bars."""
        import numpy as np

        before = reshape(self.logprobs)
        after = reshape(self.logprobs, **self.parameters)
        shown = np.argsort(-before, kind="stable")[: self.tokens]
        shares = [(before[i], after[i]) for i in shown]
        shares.append([max(0.0, 1 - one[shown].sum()) for one in (before, after)])
        labels = [repr(self.decode([i])) for i in shown.tolist()]
        labels.append(f"{before.size - len(shown):,} others")
        rows, unit = [], 18 / max(map(max, shares))  # em
        for label, pair in zip(labels, shares, strict=True):
            row, bars = {"token": Panel(f"<code>{escape(label)}</code>", label)}, ""
            for (colour, head), share in zip(_BARS.items(), pair, strict=True):
                row[head] = f"{share:.1%}"
                bars += f'<div aria-hidden="true" style="width:{share * unit:.2f}em;'
                bars += f'max-width:100%;height:0.45em;background:{colour}"></div>'
            rows.append(row | {"compared": Panel(bars, "#" * round(30 * pair[1]))})
        values = ", ".join(f"{k} {v:g}" for k, v in self.parameters.items())
        return show_table(rows, caption=f"{self.title}. {values}: {describe(after)}.")

    def _redraw(self, _: object = None) -> None:
        # A slider adds up steps from its lowest value: 0.95 is 0.9500000000000001.
        self.parameters = {k: round(one.value, 4) for k, one in self.controls.items()}
        self.chart.value = self.panel().html

    def _ipython_display_(self) -> None:
        handle = show_widget(ipywidgets.VBox([self.chart, self.view]), self.panel())

        def leave_panel() -> None:
            ended = "The kernel has ended: run the notebook again to use the controls."
            last = self.panel()
            handle.update(Panel(f"{last.html}<p><em>{ended}</em></p>", last.text))

        if handle:  # None outside a notebook.
            at_shutdown.append(leave_panel)
