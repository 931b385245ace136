"""Widgets: a response while it is written, and controls on a distribution.

In go tokens as they come, or log-probabilities; what a reader sees is a widget. Each
widget has a `Panel` beside it, which a saved page shows where no kernel runs. This
module knows nothing of models and engines: it is given tokens, or a function to call.
"""

import threading
import time
from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

import ipywidgets
from IPython import get_ipython
from IPython.display import display

from .charts import COLOURS, TEXT_STYLE, Panel, show_table, show_thinking
from .internals.thinking.families import unwrap_tokenizer
from .kernel import at_shutdown
from .sampling import NEUTRAL, describe, reshape
from .thinking import ThinkingResult, ThinkingStream

if TYPE_CHECKING:
    from numpy import ndarray

# Lowest, highest and step of each sampling parameter's slider; vLLM refuses top_p = 0.
_RANGES = {
    "temperature": (0.0, 2.0, 0.05),
    "top_k": (0, 100, 1),
    "top_p": (0.05, 1.0, 0.05),
    "min_p": (0.0, 0.5, 0.01),
}
# The two bars of each token.
_BARS = {"the model's": "#999999", "drawn from": COLOURS[0]}
_HEADS = [
    Panel(f'<span aria-hidden="true" style="color:{colour}">■</span> {name}', name)
    for name, colour in _BARS.items()
]
_ENDED = "The kernel has ended: run the notebook again to use the controls."


def show_widget(widget: ipywidgets.Widget, fallback: Panel) -> Any:
    """Display `widget`, with `fallback` where no widgets run; return the handle.

    Update the handle at the end: for a widget without its kernel JupyterLab shows an
    error, and not the fallback.
    """
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
    those of each step of vLLM's engine, and call `end`. The stop button raises
    KeyboardInterrupt at the next token. The response ends with its cell at the latest;
    what is written by then stays in the notebook, as a page that needs no kernel.
    """

    DRAW_SECONDS = 0.1  # The eye needs no more, and drawing takes time from the model.

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.result: ThinkingResult | None = None  # Once `end` was called.
        self._stop = threading.Event()  # Set from the thread that hears the button.
        self._stream: ThinkingStream | None = None
        self._reason: str | None = None  # "stop" once the model has ended it.
        self._box: ipywidgets.VBox | None = None  # None outside a notebook.
        self._next_draw = 0.0

    def put(self, token_ids: Any) -> None:
        """Take the prompt at the first call, new tokens at all later ones.

        Raises `ValueError` for a batch of more than one prompt, and KeyboardInterrupt
        once the stop button was pressed.
        """
        if self._stop.is_set():
            self.end()
            raise KeyboardInterrupt
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else list(token_ids)
        if ids and isinstance(ids[0], list):
            if len(ids) > 1:
                raise ValueError("LiveResponse shows one prompt at a time")
            ids = ids[0]
        if self._stream is None:
            self._stream = ThinkingStream(self.tokenizer, prompt_token_ids=ids)
            if hasattr(get_ipython(), "kernel"):
                self._open_view()
            return
        self._stream.feed(ids)
        end = unwrap_tokenizer(self.tokenizer).eos_token_id
        self._reason = "stop" if ids[-1:] == [end] else None
        start = time.monotonic()
        if self._box and start >= self._next_draw:
            self._draw(self._stream.result())
            now = time.monotonic()
            # The longer the response the slower its parsing: a tenth of the time.
            self._next_draw = now + max(self.DRAW_SECONDS, 9 * (now - start))

    def end(self) -> None:
        """Keep the finished response as `result`, and leave it on the page.

        Its `finish_reason` is "abort" if it was stopped, "stop" if the model ended it.
        """
        if self._stream is None or self.result is not None:
            return
        self.result = self._stream.result(
            "abort" if self._stop.is_set() else self._reason
        )
        panel = show_thinking(self.result)
        if self._box:
            self._handle.update(panel)
            close_widget(self._box)
        else:
            print(panel)

    def _open_view(self) -> None:
        self._status, self._thinking = ipywidgets.HTML(), ipywidgets.HTML()
        self._folded = ipywidgets.Accordion([self._thinking], titles=["Thinking"])
        self._below = ipywidgets.HTML()  # The last line of the thinking, or the answer.
        button = ipywidgets.Button(description="Stop", icon="stop")
        button.tooltip = "Stop writing, and keep the rest"
        # JupyterLab delivers this while the cell runs, by a subshell of the kernel.
        button.on_click(lambda _: self._stop.set())
        top = ipywidgets.HBox([button, self._status])
        self._box = ipywidgets.VBox([top, self._folded, self._below])
        self._handle = show_widget(self._box, Panel("Writing ...", "Writing ..."))
        # ipykernel 7.4 hears a widget in the thread that made it, which is busy now.
        vars(button.comm).pop("_reply_subshell_id", None)
        get_ipython().events.register("post_run_cell", self._end_with_cell)

    def _draw(self, so_far: ThinkingResult) -> None:
        count = so_far.thinking_tokens + so_far.response_tokens
        self._status.value = f'<span role="status">{count:,} tokens</span>'
        self._folded.set_title(0, f"Thinking ({so_far.thinking_tokens:,} tokens)")
        last = "".join(so_far.thinking.splitlines()[-1:])
        self._thinking.value = _html_text(so_far.thinking, 0.75)
        answer = so_far.response
        self._below.value = _html_text(answer, 1) if answer else _html_text(last, 0.75)

    def _end_with_cell(self, _: object) -> None:
        """End the response with its cell: after an interrupt nothing else does."""
        get_ipython().events.unregister("post_run_cell", self._end_with_cell)
        self._stop.set()
        self.end()


def _html_text(text: str, opacity: float) -> str:
    style = f"{TEXT_STYLE};opacity:{opacity}"
    return f'<div class="mathjax_ignore" style="{style}">{escape(text)}</div>'


class DistributionExplorer:
    """A next-token distribution with a slider for each sampling parameter.

    The sliders, `controls`, redraw the distribution as they move; the button calls
    `sample(parameters)` and shows the `Panel` or text that it returns. Where no widgets
    run (a saved page, a test runner) the cell shows `panel()`.
    """

    def __init__(
        self,
        logprobs: "ndarray",
        decode: Callable[[list[int]], str],
        sample: Callable[[dict[str, float]], Any],
        *,
        parameters: Mapping[str, float] | None = None,
        tokens: int = 10,
        title: str = "The next token",
    ) -> None:
        """Begin at `parameters`, those of `reshape`; neutral where none is given.

        `logprobs` are as `reshape` takes them; `tokens` is how many of them are shown.
        Raises `ValueError` for a parameter that has no slider.
        """
        start = {**NEUTRAL, **(parameters or {})}
        if unknown := sorted(set(start) - set(_RANGES)):
            known = ", ".join(_RANGES)
            raise ValueError(f"no control for {', '.join(unknown)}; there are {known}")
        self.logprobs, self.decode, self.sample = logprobs, decode, sample
        self.tokens, self.title = tokens, title
        self.chart, self.output = ipywidgets.HTML(), ipywidgets.HTML()
        self.button = ipywidgets.Button(description="Sample")
        self.button.on_click(self._press)
        self.controls = {name: _make_slider(name, start[name]) for name in start}
        for slider in self.controls.values():
            slider.observe(self._redraw, "value")
        self._redraw()

    @property
    def parameters(self) -> dict[str, float]:
        """The sliders' values, as `reshape` and `SamplingParams` name them."""
        # A slider adds up steps from its lowest value: 0.95 is 0.9500000000000001.
        return {name: round(one.value, 4) for name, one in self.controls.items()}

    def panel(self) -> Panel:
        """Show the distribution under the present parameters, as a table with bars."""
        import numpy as np

        before = reshape(self.logprobs)
        after = reshape(self.logprobs, **self.parameters)
        shown = np.argsort(-before, kind="stable")[: self.tokens]
        rows = [(repr(self.decode([int(i)])), before[i], after[i]) for i in shown]
        rest = [max(0.0, 1 - some[shown].sum()) for some in (before, after)]
        rows.append((f"{before.size - len(shown):,} others", *rest))
        widest = max(max(shares) for _, *shares in rows)
        values = ", ".join(f"{k} {v:g}" for k, v in self.parameters.items())
        return show_table(
            [_bars_row(*row, widest) for row in rows],
            caption=f"{self.title}. {values}: {describe(after)}.",
        )

    def _redraw(self, _: object = None) -> None:
        self.chart.value = self.panel().html

    def _press(self, _: object) -> None:
        """Show the sample, or its error: a widget's error goes to a log unread."""
        self.button.disabled = True
        self.output.value = '<p role="status">Sample ...</p>'
        try:
            result = self.sample(self.parameters)
            html = result.html if isinstance(result, Panel) else escape(str(result))
        except Exception as error:
            html = escape(f"{type(error).__name__}: {error}")
            if isinstance(error, NameError):  # A later cell deleted it: the model.
                html += ". It is gone: run the cells from the top again."
        finally:
            self.button.disabled = False
        self.output.value = f'<div role="status">{html}</div>'

    def _ipython_display_(self) -> None:
        parts = [*self.controls.values(), self.chart, self.button, self.output]
        handle = show_widget(ipywidgets.VBox(parts), self.panel())

        def leave_panel() -> None:
            last = self.panel()
            handle.update(Panel(f"{last.html}<p><em>{_ENDED}</em></p>", last.text))

        if handle:  # None outside a notebook.
            at_shutdown.append(leave_panel)


def _make_slider(name: str, value: float) -> ipywidgets.Widget:
    low, high, step = _RANGES[name]
    kind = ipywidgets.IntSlider if isinstance(step, int) else ipywidgets.FloatSlider
    limits = {"value": value, "min": low, "max": high, "step": step}
    style, layout = {"description_width": "7em"}, {"width": "30em", "max_width": "98%"}
    return kind(**limits, description=name, style=style, layout=layout)


def _bars_row(label: str, before: float, after: float, widest: float) -> dict:
    """Make the row of a token: its probabilities as numbers and as two bars."""
    bars = "".join(
        f'<div aria-hidden="true" style="width:{18 * share / widest:.2f}em;'
        f'max-width:100%;height:0.45em;background:{colour}"></div>'
        for share, colour in zip((before, after), _BARS.values(), strict=True)
    )
    row = {"token": Panel(f"<code>{escape(label)}</code>", label)}
    row |= dict(zip(_HEADS, (f"{before:.1%}", f"{after:.1%}"), strict=True))
    return row | {"compared": Panel(bars, "#" * round(30 * after))}
