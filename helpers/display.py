"""Draw what the other modules return: thinking, live text, tables and charts.

Everything here is also readable where no JavaScript runs: a page of a gallery, a
notebook on a code host, a terminal.
"""

import io
import itertools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from helpers.speed import EngineFigures
from helpers.thinking import INCOMPLETE_HINT, ThinkingResult, ThinkingStream

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
# Lowest, highest and step of each sampling parameter's control; vLLM refuses top_p = 0.
_RANGES = {
    "temperature": (0.0, 2.0, 0.05),
    "top_k": (0, 100, 1),
    "top_p": (0.05, 1.0, 0.05),
    "min_p": (0.0, 0.5, 0.01),
}
_CARD = "flex:1 1 16em;border:1px solid #8888;border-radius:6px;padding:0.6em 0.9em"
_TEXT = "white-space:pre-wrap;overflow-wrap:anywhere"


class Panel:
    """HTML in a notebook, plain text everywhere else."""

    def __init__(self, html: str, text: str) -> None:
        self.html = html
        self.text = text

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


class Chart:
    """A matplotlib figure as a picture, with the same facts as text.

    It draws itself, so it does not depend on a notebook's plotting backend.
    """

    def __init__(self, figure: "Figure", text: str) -> None:
        self.figure = figure
        self.text = text

    def _repr_png_(self) -> bytes:
        picture = io.BytesIO()
        self.figure.savefig(picture, format="png", dpi=110, bbox_inches="tight")
        return picture.getvalue()

    def __repr__(self) -> str:
        return self.text


def show_table(
    rows: Sequence[Mapping[str, object]], *, caption: str | None = None
) -> Panel:
    """A table of rows that share their keys; numbers go to the right.

    Raises `ValueError` for no rows and `KeyError` for a row that lacks a column.
    """
    if not rows:
        raise ValueError("a table needs at least one row")
    columns = list(rows[0])
    cells = [[_cell(row[column]) for column in columns] for row in rows]
    numeric = [isinstance(rows[0][column], int | float) for column in columns]
    widths = [
        max(len(column), *(len(line[i]) for line in cells))
        for i, column in enumerate(columns)
    ]

    def text_line(values: Sequence[str]) -> str:
        padded = [
            value.rjust(width) if right else value.ljust(width)
            for value, width, right in zip(values, widths, numeric, strict=True)
        ]
        return "  ".join(padded).rstrip()

    def html_line(values: Sequence[str], tag: str) -> str:
        return "".join(
            f'<{tag} style="text-align:{"right" if right else "left"}">'
            f"{escape(value)}</{tag}>"
            for value, right in zip(values, numeric, strict=True)
        )

    body = "".join(f"<tr>{html_line(line, 'td')}</tr>" for line in cells)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    html = (
        f"<table>{title}<thead><tr>{html_line(columns, 'th')}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )
    lines = [caption] if caption else []
    lines += [text_line(columns), *(text_line(line) for line in cells)]
    return Panel(html, "\n".join(lines))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) < 10 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def show_thinking(
    results: ThinkingResult | Iterable[ThinkingResult],
    *,
    prompt: str | None = None,
    titles: Sequence[str] | None = None,
    unfold: bool = False,
) -> Panel:
    """Parsed completions beside each other, each with its thinking folded away.

    `results` is one `ThinkingResult` or several of them; `titles` names each.
    `unfold=True` opens the thinking. Raises `ValueError` if the titles are not as many
    as the results.
    """
    # A ThinkingResult is a tuple itself.
    several = [results] if isinstance(results, ThinkingResult) else list(results)
    names = [""] * len(several) if titles is None else list(titles)
    if len(names) != len(several):
        raise ValueError(f"{len(names)} titles for {len(several)} results")
    cards = [
        _html_card(result, name, unfold)
        for result, name in zip(several, names, strict=True)
    ]
    texts = [
        _text_card(result, name) for result, name in zip(several, names, strict=True)
    ]
    question = f"<p><b>{escape(prompt)}</b></p>" if prompt else ""
    html = f'{question}<div style="display:flex;flex-wrap:wrap;gap:0.8em">'
    text = [prompt] if prompt else []
    return Panel(html + "".join(cards) + "</div>", "\n\n".join(text + texts))


def _answer(result: ThinkingResult) -> str:
    if result.response is None:
        return f"(no answer) {INCOMPLETE_HINT}"
    return result.response


def _html_card(result: ThinkingResult, title: str, unfold: bool) -> str:
    heading = f"<b>{escape(title)}</b>" if title else ""
    opened = " open" if unfold or result.response is None else ""
    state = "" if result.complete else ", unfinished"
    thinking = (
        f'<details{opened}><summary style="cursor:pointer;opacity:0.75">Thinking '
        f"({result.thinking_tokens} tokens{state})</summary>"
        f'<div style="{_TEXT};opacity:0.75;font-size:0.9em">'
        f"{escape(result.thinking)}</div></details>"
    )
    answer = f'<div style="{_TEXT};margin-top:0.5em">{escape(_answer(result))}</div>'
    return f'<div style="{_CARD}">{heading}{thinking}{answer}</div>'


def _text_card(result: ThinkingResult, title: str) -> str:
    lines = [f"[{title}]"] if title else []
    lines += [f"Thinking ({result.thinking_tokens} tokens):", result.thinking]
    return "\n".join([*lines, "Answer:", _answer(result)])


class LiveResponse:
    """Watch a model write: pass it to `model.generate(..., streamer=LiveResponse(t))`.

    It has the two methods that transformers asks of a streamer, `put` and `end`. What
    it has drawn last stays in the notebook, so the saved page shows the whole answer.
    Only for one prompt at a time, as transformers' own streamers.
    """

    # Drawing costs more than a token of a small model; the eye needs no more.
    DRAW_EVERY = 8

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.result: ThinkingResult | None = None  # Once `end` was called.
        self._stream: ThinkingStream | None = None
        self._texts = ["", ""]  # The thinking, the answer.
        self._tokens = [0, 0]
        self._handle: Any = None

    def put(self, token_ids: Any) -> None:
        """Take the prompt at the first call, new tokens at all later ones.

        Raises `ValueError` for a batch of more than one prompt.
        """
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else list(token_ids)
        if ids and isinstance(ids[0], list):
            if len(ids) > 1:
                raise ValueError("LiveResponse shows one prompt at a time")
            ids = ids[0]
        if self._stream is None:
            self._stream = ThinkingStream(self.tokenizer, prompt_token_ids=ids)
            return
        delta = self._stream.feed(ids)
        if delta.moved:  # What looked like the answer was thinking.
            self._texts, self._tokens = (
                ["".join(self._texts), ""],
                [sum(self._tokens), 0],
            )
        self._texts[0] += delta.thinking
        self._texts[1] += delta.response
        self._tokens[0 if self._stream.is_thinking else 1] += len(ids)
        if sum(self._tokens) % self.DRAW_EVERY == 0:
            response = None if self._stream.is_thinking else self._texts[1]
            self._draw(ThinkingResult(self._texts[0], response, *self._tokens))

    def end(self) -> None:
        """Draw the finished response, and keep it as `result`."""
        if self._stream is not None:
            self.result = self._stream.finish()
            self._draw(self.result)

    def _draw(self, result: ThinkingResult) -> None:
        from IPython.display import display

        panel = show_thinking(result, unfold=True)
        if self._handle is None:
            self._handle = display(panel, display_id=True)
        elif self._handle:
            self._handle.update(panel)


def parameter_controls(start: Mapping[str, float]) -> dict[str, tuple[Any, Any]]:
    """For each sampling parameter a number box and a slider that move together.

    Tab goes from one to the next, the arrow keys change a value. The box carries the
    name, since a slider of ipywidgets has no label that a screen reader finds. `start`
    has the values to begin with; raises `ValueError` for one that has no control.
    """
    import ipywidgets

    if unknown := sorted(set(start) - set(_RANGES)):
        raise ValueError(
            f"no control for {', '.join(unknown)}; there are {', '.join(_RANGES)}"
        )
    controls = {}
    for name, value in start.items():
        low, high, step = _RANGES[name]
        whole = isinstance(step, int)
        box_class = ipywidgets.BoundedIntText if whole else ipywidgets.BoundedFloatText
        slider_class = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
        limits = {"value": value, "min": low, "max": high, "step": step}
        box = box_class(
            **limits,
            description=name,
            style={"description_width": "6.5em"},
            layout={"width": "13em"},
        )
        slider = slider_class(
            **limits, readout=False, tooltip=name, layout={"width": "20em"}
        )
        # A slider adds up steps from its lowest value: 0.95 is 0.9500000000000001.
        ipywidgets.link((slider, "value"), (box, "value"), transform=(_tidy, _tidy))
        controls[name] = box, slider
    return controls


def _tidy(value: float) -> float:
    return round(value, 4)


def action_button(
    description: str, tooltip: str, action: Callable[[], str]
) -> tuple[Any, Any]:
    """A button, and the place for the HTML that `action` returns at each press.

    While it runs the button is disabled. What it raises is shown in that place too: a
    widget's error ends in a log that nobody reads.
    """
    import ipywidgets

    button = ipywidgets.Button(description=description, tooltip=tooltip)
    output = ipywidgets.HTML()

    def press(_: object) -> None:
        button.disabled = True
        output.value = f'<p role="status">{escape(description)} ...</p>'
        try:
            html = action()
        except Exception as error:
            html = escape(f"{type(error).__name__}: {error}")
        finally:
            button.disabled = False
        output.value = f'<div role="status">{html}</div>'

    button.on_click(press)
    return button, output


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
        self._handle: Any = None

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

    def controls(self) -> Any:
        """The controls, and the button that adds an answer with their values."""
        import ipywidgets

        start = {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
        controls = parameter_controls(start)

        def generate() -> str:
            self.run({name: box.value for name, (box, _) in controls.items()})
            if self._handle:
                self._handle.update(self.panel())
            return ""

        button, status = action_button(
            "Generate", "Add an answer with these parameters", generate
        )
        rows = [ipywidgets.HBox(pair) for pair in controls.values()]
        return ipywidgets.VBox([*rows, button, status])

    def _ipython_display_(self) -> None:
        from IPython.display import display

        bundle = self.controls()._repr_mimebundle_()
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        hint = "Sliders appear here while the notebook runs in JupyterLab."
        display({**data, "text/plain": hint}, raw=True)
        self._handle = display(self.panel(), display_id=True)


def engine_table(*engines: EngineFigures) -> Panel:
    """Load, first token, throughput and memory, with a column for each engine.

    Tokens/s are medians, with the slowest and the fastest of the repeats; "-" is what
    was not measured. Engines are told apart by their names.
    """
    measured: dict[str, list[str]] = {
        "load (s)": [_rounded(one.load_seconds, 1) for one in engines],
        "first token (ms)": [_figure(1000 * one.ttft) for one in engines],
    }
    for size in sorted({size for one in engines for size in one.tokens_per_second}):
        measured[f"tokens/s, batch {size}"] = [
            _median_and_spread(one.tokens_per_second.get(size)) for one in engines
        ]
    measured["memory (MiB)"] = [_rounded(one.memory_mib, 0) for one in engines]
    names = [one.engine for one in engines]
    rows = [
        {"": what, **dict(zip(names, values, strict=True))}
        for what, values in measured.items()
    ]
    devices = dict.fromkeys(one.device for one in engines)
    return show_table(rows, caption=f"Measured on {' and '.join(devices)}")


def _median_and_spread(values: Sequence[float] | None) -> str:
    if values is None:
        return "-"
    median = statistics.median(values)
    return f"{median:,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def _rounded(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def plot_engines(*engines: EngineFigures) -> Chart:
    """The same figures as `engine_table`, drawn: an engine keeps its colour throughout.

    Throughput over batch size, with the spread of the repeats as bars. With several
    engines the load, the first token and the memory stand beside it, each where it was
    measured for all of them; alone, a bar would compare nothing.
    """
    from matplotlib.figure import Figure

    compared = {
        "load (s)": [figures.load_seconds for figures in engines],
        "first token (ms)": [1000 * figures.ttft for figures in engines],
        "memory (MiB)": [figures.memory_mib for figures in engines],
    }
    bars = {
        title: values
        for title, values in compared.items()
        if len(engines) > 1 and None not in values
    }
    width = 5.2 + 1.6 * len(bars)
    figure = Figure(figsize=(width, 3.6), facecolor="white", layout="constrained")
    figure.suptitle(f"Measured on {engines[0].device}", x=0.01, ha="left", fontsize=11)
    ratios = [3, *(1 for _ in bars)]
    first, *others = figure.subplots(
        1, len(ratios), squeeze=False, width_ratios=ratios
    ).flat
    facts = []
    for figures, colour in zip(engines, itertools.cycle(_COLOURS), strict=False):
        _draw_throughput(first, figures, colour)
        best = max(figures.throughput(size) for size in figures.tokens_per_second)
        facts.append(f"{figures.engine}: {best:,.0f} tokens/s at best")
    first.set_title("new tokens per second", fontsize=10)
    first.set_xlabel("prompts at once (batch size)")
    first.set_ylim(bottom=0)
    first.yaxis.set_major_formatter("{x:,.0f}")
    first.grid(alpha=0.3)
    first.legend(frameon=False, fontsize=9)
    for axes, (title, values) in zip(others, bars.items(), strict=True):
        drawn = axes.bar(
            range(len(values)),
            values,
            color=_COLOURS,
        )
        axes.bar_label(drawn, [_figure(value) for value in values], fontsize=9)
        axes.set_title(title, fontsize=10)
        axes.set_xlim(-0.8, len(values) - 0.2)
        axes.margins(y=0.15)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[["top", "right", "left"]].set_visible(False)
    return Chart(figure, "Throughput by batch size. " + "; ".join(facts) + ".")


def plot_benchmark(
    rows: Sequence[Mapping[str, Any]], title: str
) -> tuple[Chart, Chart]:
    """Two pictures of `benchmarks.rows`: the speeds, and their share of the limit.

    Both over the batch size; an engine keeps its colour, 4-bit weights are dashed, and
    what the memory's bandwidth allows is grey.
    """
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    colours = dict(zip(engines, itertools.cycle(_COLOURS), strict=False))
    return (
        _plot_rows(rows, colours, title, "tokens/s", "new tokens per second", "limit"),
        _plot_rows(rows, colours, title, "of limit", "share of the bandwidth limit"),
    )


def _plot_rows(
    rows: Sequence[Mapping[str, Any]],
    colours: Mapping[str, str],
    title: str,
    value: str,
    label: str,
    limit: str = "",
) -> Chart:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), facecolor="white", layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    axes = figure.subplots()
    facts = []
    styles = {"16bit": "-", "4bit": "--"}
    shown = "{:,.0f}" if limit else "{:.0%}"
    for weights, style in styles.items():
        some = [row for row in rows if row["weights"] == weights and row[value]]
        for engine, colour in colours.items():
            line = [row for row in some if row["engine"] == engine]
            if not line:
                continue
            name = f"{engine}, {weights.replace('bit', '-bit')}"
            sizes, values = zip(*((r["batch"], r[value]) for r in line), strict=True)
            axes.plot(sizes, values, style, color=colour, marker="o", label=name)
            facts.append(f"{name}: {shown.format(max(values))} at best")
        if limit and some:
            bound = sorted({(row["batch"], row[limit]) for row in some})
            name = f"bandwidth allows, {weights.replace('bit', '-bit')}"
            axes.plot(*zip(*bound, strict=True), style, color="#999999", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({row["batch"] for row in rows}))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("prompts at once (batch size)")
    axes.set_ylabel(label)
    if limit:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:,.0f}")
    else:
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return Chart(figure, f"{title}. {label}: " + "; ".join(facts) + ".")


def _draw_throughput(axes: Any, figures: EngineFigures, colour: str) -> None:
    sizes = list(figures.tokens_per_second)
    medians = [figures.throughput(size) for size in sizes]
    values = figures.tokens_per_second.values()
    spread = [
        [m - min(v) for m, v in zip(medians, values, strict=True)],
        [max(v) - m for m, v in zip(medians, values, strict=True)],
    ]
    axes.errorbar(
        sizes,
        medians,
        yerr=spread,
        label=figures.engine,
        color=colour,
        marker="o",
        capsize=3,
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])


def _figure(value: float) -> str:
    return f"{value:,.1f}" if value < 10 else f"{value:,.0f}"
