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

    Update the handle as soon as there is nothing more to control: where JupyterLab
    finds a widget without its kernel, it shows an error and not the fallback.
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

    For one prompt at a time, as transformers' own streamers: pass it to `generate` as
    `streamer=live`, or `put` the prompt's tokens and then those of each step of vLLM's
    engine, and call `end`. The thinking is folded, with its last line below. The stop
    button raises KeyboardInterrupt at the next token, as the one of the toolbar does.
    The response ends with its cell at the latest; what is written by then stays in the
    notebook, as a page that needs no kernel.
    """

    DRAW_SECONDS = 0.1  # The eye needs no more, and drawing takes time from the model.

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.result: ThinkingResult | None = None  # Once `end` was called.
        self._stop = threading.Event()  # Set from the thread that hears the button.
        self._stream: ThinkingStream | None = None
        self._ended = False  # By the model, and not for want of tokens.
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
        self._ended = ids[-1:] == [unwrap_tokenizer(self.tokenizer).eos_token_id]
        start = time.monotonic()
        if self._box and start >= self._next_draw:
            self._draw(self._stream.result())
            now = time.monotonic()
            # The longer the response the slower its parsing: a tenth of the time.
            self._next_draw = now + max(self.DRAW_SECONDS, 9 * (now - start))

    def end(self) -> None:
        """Keep the finished response as `result`, and leave it on the page.

        Its `finish_reason` is named as vLLM's: "abort" where someone stopped it, "stop"
        where the model ended it, else None.
        """
        if self._stream is None or self.result is not None:
            return
        reason = "stop" if self._ended else None
        self.result = self._stream.result("abort" if self._stop.is_set() else reason)
        panel = show_thinking(self.result)
        if self._box:
            self._handle.update(panel)
            close_widget(self._box)
        else:
            print(panel)

    def _open_view(self) -> None:
        self._status, self._thinking = ipywidgets.HTML(), ipywidgets.HTML()
        self._last_line, self._answer = ipywidgets.HTML(), ipywidgets.HTML()
        self._folded = ipywidgets.Accordion([self._thinking], titles=["Thinking"])
        tooltip = "Stop writing, and keep the rest"
        button = ipywidgets.Button(description="Stop", icon="stop", tooltip=tooltip)
        # JupyterLab delivers this while the cell runs, by a subshell of the kernel.
        button.on_click(lambda _: self._stop.set())
        top = ipywidgets.HBox([button, self._status])
        self._box = ipywidgets.VBox([top, self._folded, self._last_line, self._answer])
        waiting = Panel("Writing ...", "Writing ...")
        self._handle = show_widget(self._box, waiting)
        # ipykernel 7.4 hears a widget in the thread that made it, which is busy now.
        vars(button.comm).pop("_reply_subshell_id", None)
        get_ipython().events.register("post_run_cell", self._end_with_cell)

    def _draw(self, so_far: ThinkingResult) -> None:
        count = so_far.thinking_tokens + so_far.response_tokens
        self._status.value = f'<span role="status">{count:,} tokens</span>'
        self._folded.set_title(0, f"Thinking ({so_far.thinking_tokens:,} tokens)")
        self._thinking.value = _html_text(so_far.thinking, faint=True)
        lines = so_far.thinking.splitlines() if not so_far.response else []
        self._last_line.value = _html_text("".join(lines[-1:]), faint=True)
        self._answer.value = _html_text(so_far.response or "")

    def _end_with_cell(self, _: object) -> None:
        """End the response with its cell: after an interrupt nothing else does."""
        get_ipython().events.unregister("post_run_cell", self._end_with_cell)
        self._stop.set()
        self.end()


def _html_text(text: str, faint: bool = False) -> str:
    style = f"{TEXT_STYLE};opacity:0.75" if faint else TEXT_STYLE
    return f'<div class="mathjax_ignore" style="{style}">{escape(text)}</div>'


class DistributionExplorer:
    """A next-token distribution with a slider for each sampling parameter.

    The sliders, `controls`, redraw the distribution as they move; the button calls
    `sample(parameters)` and shows the `Panel` or text that it returns. All of it works
    by keyboard: Tab goes from control to control, the arrow keys move a slider, Space
    presses the button. Where no widgets run (a saved page, a test runner) the cell
    shows `panel()`.
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
        self.controls = {name: _make_slider(name, start[name]) for name in start}
        for slider in self.controls.values():
            slider.observe(self._redraw, "value")
        self.logprobs, self.decode, self.sample = logprobs, decode, sample
        self.tokens, self.title = tokens, title
        self.chart, self.output = ipywidgets.HTML(), ipywidgets.HTML()
        tooltip = "Generate with these parameters"
        self.button = ipywidgets.Button(description="Sample", tooltip=tooltip)
        self.button.on_click(self._press)
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
        values = ", ".join(f"{k} {v:g}" for k, v in self.parameters.items())
        return _bars_panel(f"{self.title}. {values}: {describe(after)}.", rows)

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
            # A later cell deleted it: the model, mostly.
            gone = isinstance(error, NameError)
            hint = ". It is gone: run the cells from the top again." if gone else ""
            html = escape(f"{type(error).__name__}: {error}{hint}")
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
            at_shutdown(leave_panel)


def _make_slider(name: str, value: float) -> ipywidgets.Widget:
    low, high, step = _RANGES[name]
    kind = ipywidgets.IntSlider if isinstance(step, int) else ipywidgets.FloatSlider
    limits = {"value": value, "min": low, "max": high, "step": step}
    style, layout = {"description_width": "7em"}, {"width": "30em", "max_width": "98%"}
    return kind(**limits, description=name, style=style, layout=layout)


def _bars_panel(caption: str, rows: list[tuple[str, float, float]]) -> Panel:
    """Show tokens with their probabilities before and after, as bars."""
    widest = max(max(shares) for _, *shares in rows)
    table = []
    for label, *shares in rows:
        bars = "".join(
            f'<div aria-hidden="true" style="width:{18 * share / widest:.2f}em;'
            f'max-width:100%;height:0.45em;background:{colour}"></div>'
            for share, colour in zip(shares, _BARS.values(), strict=True)
        )
        percent = [f"{share:.1%}" for share in shares]
        row = {"token": Panel(f"<code>{escape(label)}</code>", label)}
        row |= dict(zip(_HEADS, percent, strict=True))
        table.append(row | {"compared": Panel(bars, "#" * round(30 * shares[1]))})
    return show_table(table, caption=caption)
