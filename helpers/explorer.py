"""Look at what sampling parameters make of answers, and of one next-token distribution.

`reshape` computes what vLLM's sampler computes, so that a picture shows what the engine
will do; a test holds it against vLLM's own code and against transformers'.
"""

import itertools
from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from .display import show_thinking
from .tables import Chart, Panel, html_table
from .thinking import ThinkingResult
from .widgets import action_button, control_rows, parameter_controls, show_controls

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
_BEFORE, _AFTER = "#999999", "#1F84C4"


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


class SamplingExplorer:
    """Sampling parameters side by side, with sliders where JavaScript runs.

    `generate(parameters)` gets a dict such as {"temperature": 0.6, "top_p": 0.95} and
    returns a `ThinkingResult`. The presets that it is opened with are generated at
    once and stay in the saved notebook; each press of the button adds one more.
    """

    def __init__(
        self,
        generate: Callable[[dict[str, float]], ThinkingResult],
        presets: Mapping[str, Mapping[str, float]],
        *,
        prompt: str | None = None,
    ) -> None:
        self.generate = generate
        self.prompt = prompt
        self.results: dict[str, ThinkingResult] = {}
        for name, values in presets.items():
            self.run(dict(values), title=name)

    def run(self, values: dict[str, float], title: str | None = None) -> ThinkingResult:
        """Generate with `values`, keep the result under `title` (numbered if taken)."""
        name = title or ", ".join(f"{key} {value:g}" for key, value in values.items())
        names = itertools.chain([name], (f"{name} ({n})" for n in itertools.count(2)))
        name = next(name for name in names if name not in self.results)
        self.results[name] = self.generate(values)
        return self.results[name]

    def panel(self) -> Panel:
        """All results so far beside each other."""
        return show_thinking(
            self.results.values(), prompt=self.prompt, titles=list(self.results)
        )

    def box(self) -> Any:
        """The controls, the button that adds an answer, and all answers below."""
        import ipywidgets

        controls = parameter_controls({"temperature": 0.6, "top_p": 0.95, "top_k": 20})
        answers = ipywidgets.HTML(self.panel().html)

        def generate() -> str:
            self.run({name: box.value for name, (box, _) in controls.items()})
            answers.value = self.panel().html
            return ""

        button, status = action_button(
            "Generate", "Add an answer with these parameters", generate
        )
        return ipywidgets.VBox([*control_rows(controls), button, status, answers])

    def _ipython_display_(self) -> None:
        show_controls(self.box(), self.panel)


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

        self.controls = parameter_controls({**NEUTRAL, **(parameters or {})})
        self.numbers = {name: box for name, (box, _) in self.controls.items()}
        self.sliders = {name: slider for name, (_, slider) in self.controls.items()}
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

        rows = control_rows(self.controls)
        return ipywidgets.VBox([*rows, self.chart, self.button, self.output])

    def _redraw(self, _: object = None) -> None:
        self.chart.value = self.panel().html

    def _sample(self) -> str:
        result = self.sample(self.parameters)
        return result.html if isinstance(result, Panel) else escape(str(result))

    def _ipython_display_(self) -> None:
        show_controls(self.box(), self.panel)


def _html_bars(caption: str, rows: list[tuple[str, float, float]]) -> str:
    widest = max(max(before, after) for _, before, after in rows) or 1.0
    cells = [
        (
            f"<code>{escape(label)}</code>",
            f"{before:.1%}",
            f"{after:.1%}",
            _bar(before / widest, _BEFORE) + _bar(after / widest, _AFTER),
        )
        for label, before, after in rows
    ]
    key = f"{_swatch(_BEFORE)} the model's, {_swatch(_AFTER)} drawn from"
    heads = ["token", "the model's", "drawn from", key]
    right = [False, True, True, False]
    return html_table(heads, cells, right=right, caption=escape(caption))


def _bar(share: float, colour: str) -> str:
    return (
        f'<div aria-hidden="true" style="width:{18 * share:.2f}em;'
        f"min-width:{int(share > 0)}px;max-width:100%;height:0.45em;"
        f'background:{colour}"></div>'
    )


def _swatch(colour: str) -> str:
    return (
        f'<span aria-hidden="true" style="display:inline-block;width:1.2em;'
        f'height:0.45em;background:{colour}"></span>'
    )


def _text_bars(caption: str, rows: list[tuple[str, float, float]]) -> str:
    width = max(len(label) for label, _, _ in rows)
    lines = [
        f"{label:{width}}  {before:6.1%} -> {after:6.1%}  {'#' * round(30 * after)}"
        for label, before, after in rows
    ]
    return "\n".join([caption, *(line.rstrip() for line in lines)])
