"""Look at one next-token distribution, and at what sampling parameters make of it.

`reshape` computes what vLLM's sampler computes, so that a picture shows what the engine
will do; a test holds it against vLLM's own code and against transformers'.
"""

from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from .display import action_button, parameter_controls
from .tables import Chart, Panel

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
_BEFORE, _AFTER = "#999999", "#0072B2"


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


def token_label(text: str) -> str:
    """A token's text with its spaces and line ends visible; bytes that are no text."""
    return text.replace(" ", "␣").replace("\n", "⏎") or "(empty)"


def plot_distributions(
    logprobs: "ndarray",
    decode: Callable[[list[int]], str],
    settings: Mapping[str, Mapping[str, float]],
    *,
    tokens: int = 12,
    title: str = "",
) -> Chart:
    """One picture per setting: its probabilities as bars, the model's own as outlines.

    `settings` has the arguments of `reshape` under the name of each picture; `decode`
    is the tokenizer's. Shown are the model's most likely `tokens`.
    """
    import numpy as np
    from matplotlib.figure import Figure

    before = reshape(logprobs)
    shown = np.argsort(-before, kind="stable")[:tokens]
    labels = [token_label(decode([int(token)])) for token in shown]
    height = 0.9 + 0.24 * len(shown)
    figure = Figure(
        figsize=(1.2 + 2.5 * len(settings), height),
        facecolor="white",
        layout="constrained",
    )
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    places = np.arange(len(shown))
    facts = []
    all_axes = figure.subplots(
        1, len(settings), sharex=True, sharey=True, squeeze=False
    )
    for axes, (name, parameters) in zip(all_axes.flat, settings.items(), strict=True):
        after = reshape(logprobs, **parameters)
        facts.append(f"{name}: {describe(after)}.")
        axes.barh(places, after[shown], color=_AFTER, label="drawn from")
        axes.barh(
            places, before[shown], fill=False, edgecolor=_BEFORE, label="the model's"
        )
        axes.set_title(name, fontsize=10)
        axes.set_yticks(places, labels, fontsize=9, parse_math=False)
        axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0, 0].invert_yaxis()  # Shared: the likeliest on top of each.
    all_axes[0, -1].legend(frameon=False, fontsize=8, loc="lower right")
    return Chart(figure, "\n".join([title, *facts] if title else facts))


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
        import ipywidgets

        controls = parameter_controls({**NEUTRAL, **(parameters or {})})
        self.numbers = {name: box for name, (box, _) in controls.items()}
        self.sliders = {name: slider for name, (_, slider) in controls.items()}
        for box in self.numbers.values():
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
        return {name: box.value for name, box in self.numbers.items()}

    def panel(self) -> Panel:
        """The distribution under the present parameters: a table with bars."""
        import numpy as np

        before = reshape(self.logprobs)
        after = reshape(self.logprobs, **self.parameters)
        shown = np.argsort(-before, kind="stable")[: self.tokens]
        rows = [
            (token_label(self.decode([int(i)])), float(before[i]), float(after[i]))
            for i in shown
        ]
        rest = max(0.0, 1 - before[shown].sum()), max(0.0, 1 - after[shown].sum())
        rows.append((f"{before.size - len(shown):,} others", *rest))
        values = ", ".join(f"{k} {v:g}" for k, v in self.parameters.items())
        caption = f"{self.title}. {values}: {describe(after)}."
        return Panel(_html_bars(caption, rows), _text_bars(caption, rows))

    def box(self) -> Any:
        """The controls, the chart, the button and what it gave, as one widget."""
        import ipywidgets

        pairs = [
            ipywidgets.HBox([self.numbers[name], self.sliders[name]])
            for name in self.numbers
        ]
        return ipywidgets.VBox([*pairs, self.chart, self.button, self.output])

    def _redraw(self, _: object = None) -> None:
        self.chart.value = self.panel().html

    def _sample(self) -> str:
        result = self.sample(self.parameters)
        return result.html if isinstance(result, Panel) else escape(str(result))

    def _ipython_display_(self) -> None:
        from IPython.display import display

        panel = self.panel()
        fallback = {"text/html": panel.html, "text/plain": panel.text}
        display({**self.box()._repr_mimebundle_(), **fallback}, raw=True)


def _html_bars(caption: str, rows: list[tuple[str, float, float]]) -> str:
    widest = max(max(before, after) for _, before, after in rows) or 1.0
    lines = []
    for label, before, after in rows:
        bars = "".join(
            f'<div style="width:{value / widest:.1%};min-width:{int(value > 0)}px;'
            f'height:0.45em;background:{colour}"></div>'
            for value, colour in ((before, _BEFORE), (after, _AFTER))
        )
        lines.append(
            f'<tr><th scope="row" style="text-align:left"><code>{escape(label)}</code>'
            f'</th><td style="text-align:right">{before:.1%}</td>'
            f'<td style="text-align:right">{after:.1%}</td>'
            f'<td aria-hidden="true" style="width:22em">{bars}</td></tr>'
        )
    heads = "".join(
        f'<th scope="col" style="text-align:{side}">{head}</th>'
        for head, side in (
            ("token", "left"),
            ("the model's", "right"),
            ("drawn from", "right"),
        )
    )
    return (
        f'<table><caption style="text-align:left">{escape(caption)}</caption><thead>'
        f"<tr>{heads}<td></td></tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )


def _text_bars(caption: str, rows: list[tuple[str, float, float]]) -> str:
    width = max(len(label) for label, _, _ in rows)
    lines = [
        f"{label:{width}}  {before:6.1%} -> {after:6.1%}  {'#' * round(30 * after)}"
        for label, before, after in rows
    ]
    return "\n".join([caption, *(line.rstrip() for line in lines)])
