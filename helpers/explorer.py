"""Look at what sampling parameters make of a next-token distribution.

`reshape` computes what vLLM's sampler computes, so that a picture shows what the engine
will do; a test holds it against vLLM's own code and against transformers'.
"""

from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

import ipywidgets

from .charts import COLOURS, Panel, html_table
from .widgets import action_button, parameter_controls, show_controls

if TYPE_CHECKING:
    from numpy import ndarray

# Each parameter's value that leaves the distribution as the model gave it.
NEUTRAL: Mapping[str, float] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
}
_GREEDY_BELOW = 1e-5  # _SAMPLING_EPS in vllm/v1/sample/sampler.py
# The colours and names of the two bars of each token.
_BARS = {"the model's": "#999999", "drawn from": COLOURS[0]}


def reshape(
    logprobs: "ndarray",
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> "ndarray":
    """The probabilities from which vLLM draws the next token: they sum to 1.

    `logprobs` are the model's own, natural logarithms, shape (vocabulary,). The order
    is that of vllm/v1/sample/sampler.py: temperature, min_p, top_k, top_p, each on what
    the one before left. (transformers applies min_p last.) A `temperature` of 0 is
    greedy and ignores the rest; `top_k` of 0 or -1 is off.

    Raises `ValueError` for a parameter out of its range.
    """
    import numpy as np

    if temperature < 0 or top_k < -1 or not 0 < top_p <= 1 or not 0 <= min_p <= 1:
        raise ValueError(
            "temperature must be at least 0, top_k at least -1, top_p above 0 and at "
            "most 1, min_p from 0 to 1"
        )
    logits = np.asarray(logprobs, dtype=np.float64)
    if temperature < _GREEDY_BELOW:
        greedy = np.zeros_like(logits)
        greedy[logits.argmax()] = 1.0
        return greedy
    logits = logits / temperature
    probabilities = _softmax(logits)
    if min_p > 0:
        logits = np.where(probabilities < min_p * probabilities.max(), -np.inf, logits)
    if 0 < top_k < logits.size:
        smallest = np.partition(logits, -top_k)[-top_k]
        logits = np.where(logits < smallest, -np.inf, logits)  # Ties all stay.
    if top_p < 1:
        order = np.argsort(logits, kind="stable")
        below = np.cumsum(_softmax(logits)[order]) <= 1 - top_p
        below[-1] = False  # The most likely token is never lost.
        logits[order[below]] = -np.inf
    return _softmax(logits)


def _softmax(logits: "ndarray") -> "ndarray":
    import numpy as np

    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def entropy(probabilities: "ndarray") -> float:
    """How unsure a distribution is, in bits: n equally likely tokens have log2(n)."""
    import numpy as np

    some = probabilities[probabilities > 0]
    return float(-(some * np.log2(some)).sum()) + 0.0  # Not -0.0 for certainty.


def describe(probabilities: "ndarray") -> str:
    """How many tokens can be drawn, the chance of the likeliest, and the entropy."""
    count = int((probabilities > 0).sum())
    can = "token" if count == 1 else "tokens"
    return (
        f"{count:,} {can} can be drawn, the likeliest with {probabilities.max():.1%}; "
        f"{entropy(probabilities):.2f} bits"
    )


class DistributionExplorer:
    """A next-token distribution under the reader's hands.

    Four parameters, each with a slider and a number box, redraw the distribution as
    they move; a button calls `sample(parameters)` and shows the `Panel` or text that it
    gives. All of it works by keyboard: Tab goes from control to control, the arrow keys
    change a value, Space presses the button.

    Where no widgets run (a saved page, a test runner) the cell shows `panel()`.
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
        """`parameters` to begin with; those of `reshape`, else neutral.

        Raises `ValueError` for a parameter that there is no control for.
        """
        self.controls = parameter_controls({**NEUTRAL, **(parameters or {})})
        for box, _ in self.controls.values():
            box.observe(self._redraw, "value")
        self.logprobs = logprobs
        self.decode = decode
        self.sample = sample
        self.tokens = tokens
        self.title = title
        self.chart = ipywidgets.HTML()
        self.button, self.output = action_button(
            "Sample", "Generate with these parameters", self._sample
        )
        self._redraw()

    @property
    def parameters(self) -> dict[str, float]:
        """The values of the controls, as `reshape` and `SamplingParams` name them."""
        return {name: box.value for name, (box, _) in self.controls.items()}

    def panel(self) -> Panel:
        """The distribution under the present parameters: a table with bars."""
        import numpy as np

        before = reshape(self.logprobs)
        after = reshape(self.logprobs, **self.parameters)
        shown = np.argsort(-before, kind="stable")[: self.tokens]
        rows = [(repr(self.decode([int(i)])), before[i], after[i]) for i in shown]
        rest = [max(0.0, 1 - some[shown].sum()) for some in (before, after)]
        rows.append((f"{before.size - len(shown):,} others", *rest))
        values = ", ".join(f"{k} {v:g}" for k, v in self.parameters.items())
        caption = f"{self.title}. {values}: {describe(after)}."
        return Panel(_html_bars(caption, rows), _text_bars(caption, rows))

    def box(self) -> ipywidgets.Widget:
        """The controls, the chart, the button and what it gave, as one widget."""
        wrapped = {"flex_flow": "row wrap"}  # Below each other where it is narrow.
        pairs = self.controls.values()
        rows = [ipywidgets.HBox(pair, layout=wrapped) for pair in pairs]
        return ipywidgets.VBox([*rows, self.chart, self.button, self.output])

    def _redraw(self, _: object = None) -> None:
        self.chart.value = self.panel().html

    def _sample(self) -> str:
        result = self.sample(self.parameters)
        return result.html if isinstance(result, Panel) else escape(str(result))

    def _ipython_display_(self) -> None:
        show_controls(self.box(), self.panel)


def _html_bars(caption: str, rows: list[tuple[str, float, float]]) -> str:
    widest = max(max(shares) for _, *shares in rows)
    bar = (
        '<div aria-hidden="true" style="width:{:.2f}em;min-width:{}px;max-width:100%;'
        'height:0.45em;background:{}"></div>'
    )
    cells = [
        (
            f"<code>{escape(label)}</code>",
            *(f"{share:.1%}" for share in shares),
            "".join(
                bar.format(18 * share / widest, int(share > 0), colour)
                for share, colour in zip(shares, _BARS.values(), strict=True)
            ),
        )
        for label, *shares in rows
    ]
    key = ", ".join(
        f'{place} bar <span aria-hidden="true" style="color:{colour}">■</span> {name}'
        for place, (name, colour) in zip(("upper", "lower"), _BARS.items(), strict=True)
    )
    return html_table(
        ["token", *_BARS, "compared"],
        cells,
        right=[False, True, True, False],
        caption=f"{escape(caption)}<br>Key: {key}",
    )


def _text_bars(caption: str, rows: list[tuple[str, float, float]]) -> str:
    width = max(len(label) for label, _, _ in rows)
    lines = [
        f"{label:{width}}  {before:6.1%} -> {after:6.1%}  {'#' * round(30 * after)}"
        for label, before, after in rows
    ]
    return "\n".join([caption, *(line.rstrip() for line in lines)])
