"""Tables and charts that say the same as a page, as text and as a picture.

In go rows, measurements or what a model answered; out comes a `Panel` or a `Chart`,
which a notebook shows as HTML and a terminal as text. This module knows nothing of
engines, tokenizers or widgets: what it draws it takes by its attributes.
"""

import base64
import io
import itertools
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A grey that both white paper and a dark page's black leave readable (4.5 and 4.2 : 1).
_INK = "#777777"
# Okabe and Ito's, which colour-blind readers tell apart as well.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
TEXT_STYLE = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.4"
_CELL = "padding:0.3em 0.5em;vertical-align:top;text-align:"
_CARD = "flex:1 1 16em;border:1px solid #8888;border-radius:6px;padding:0.6em 0.9em"


class Panel:
    """HTML in a notebook, plain text everywhere else."""

    def __init__(self, html: str, text: str) -> None:
        self.html = html
        self.text = text

    def _repr_html_(self) -> str:
        # Or JupyterLab takes text between two dollar signs for a formula.
        return f'<div class="mathjax_ignore">{self.html}</div>'

    def __repr__(self) -> str:
        return self.text


# --- Tables ---------------------------------------------------------------------------


def show_table(
    rows: Iterable[Mapping[str, object]], *, caption: str | None = None
) -> Panel:
    """Make a table of rows that share their keys; numbers go to the right.

    `rows` may be a DataFrame of pandas as well. What is missing (None, NaN, pandas.NA)
    is shown as "-". Raises `ValueError` for no rows and `KeyError` for a row that lacks
    a column.
    """
    rows = rows.to_dict("records") if hasattr(rows, "to_dict") else list(rows)
    if not rows:
        raise ValueError("a table needs at least one row")
    heads = list(map(str, rows[0]))
    values = [[_plain_value(row[name]) for name in rows[0]] for row in rows]
    columns = zip(*values, strict=True)
    are_numbers = [any(isinstance(one, Real) for one in column) for column in columns]
    sides = ["right" if one else "left" for one in are_numbers]
    cells = [list(map(_cell_text, row)) for row in values]
    escaped = [list(map(escape, row)) for row in [heads, *cells]]
    html = html_table(*escaped, sides=sides, caption=escape(caption or ""))
    text = tabulate(cells, heads, "plain", colalign=sides, disable_numparse=True)
    return Panel(html, f"{caption}\n{text}" if caption else text)


def html_table(
    heads: Sequence[str],
    *rows: Sequence[str],
    sides: Sequence[str] | None = None,
    caption: str = "",
) -> str:
    """Make an HTML table; heads, cells and caption are HTML already.

    `sides` has "left" or "right" for each column. The first cell of a row is its
    heading, for readers who hear the table.
    """

    def html_row(cells: Sequence[str], first: str, other: str) -> str:
        row = ""
        for place, cell in enumerate(cells):
            tag, side = other if place else first, sides[place] if sides else "left"
            row += f'<{tag} style="{_CELL}{side}">{cell}</{tag[:2]}>'
        return f"<tr>{row}</tr>"

    column = 'th scope="col"'
    head = html_row(heads, column, column)
    body = "".join(html_row(row, 'th scope="row"', "td") for row in rows)
    title = f'<caption style="text-align:left">{caption}</caption>' if caption else ""
    return (
        f'<table style="border-collapse:collapse">{title}'
        f"<thead>{head}</thead><tbody>{body}</tbody></table>"
    )


def _plain_value(value: Any) -> Any:
    """Turn numbers and arrays of NumPy or torch into Python's own."""
    value = value.tolist() if callable(getattr(value, "tolist", None)) else value
    is_missing = value is None or str(value) in ("nan", "NaT", "<NA>")
    return None if is_missing else value


def _cell_text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, Real):
        return str(value)
    whole = isinstance(value, Integral) or abs(value) >= 10
    return f"{value:,.0f}" if whole else f"{value:,.2f}"


# --- Thinking and answers -------------------------------------------------------------


def show_thinking(
    results: Any, *, prompt: str | None = None, titles: Sequence[str] | None = None
) -> Panel:
    """Show answers beside each other, each with its thinking folded away.

    `results` is what `parse_thinking_response` or `run_batch` returns, one or several;
    `titles` names each. Raises `ValueError` for more or fewer titles than results.
    """
    # A ThinkingResult is a tuple itself.
    several = [results] if hasattr(results, "thinking") else list(results)
    names = [""] * len(several) if titles is None else list(titles)
    if len(names) != len(several):
        raise ValueError(f"{len(names)} titles for {len(several)} results")
    cards = [_card(one, name) for one, name in zip(several, names, strict=True)]
    html = '<div style="display:flex;flex-wrap:wrap;gap:0.8em">'
    html += f"{''.join(card.html for card in cards)}</div>"
    texts = [card.text for card in cards]
    if prompt:
        html, texts = f"<p><b>{escape(prompt)}</b></p>{html}", [prompt, *texts]
    return Panel(html, "\n\n".join(texts))


def _card(result: Any, title: str) -> Panel:
    """Show one result: its title, its thinking and its answer, error or hint."""
    notes = {"abort": " (stopped)", "length": " (cut off: raise max_tokens)"}
    if error := getattr(result, "error", None):
        answer = f"(failed) {error}"
    elif result.response is None:
        answer = f"(no answer) {result.hint}"
    else:
        answer = result.response + notes.get(result.finish_reason, "")
    html, lines = "", []
    if title:
        html, lines = f"<b>{escape(title)}</b>", [f"[{title}]"]
    if result.thinking is not None:
        opened, state = ("", "") if result.complete else (" open", ", unfinished")
        count = f"{result.thinking_tokens} tokens"
        lines += [f"Thinking ({count}):", result.thinking]
        html += (
            f'<details{opened}><summary style="cursor:pointer;opacity:0.75">'
            f"Thinking ({count}{state})</summary>"
            f'<div style="{TEXT_STYLE};opacity:0.75;font-size:0.9em">'
            f"{escape(result.thinking)}</div></details>"
        )
    html += f'<div style="{TEXT_STYLE};margin-top:0.5em">{escape(answer)}</div>'
    text = "\n".join([*lines, "Answer:", answer])
    return Panel(f'<div style="{_CARD}">{html}</div>', text)


# --- Charts ---------------------------------------------------------------------------


def new_axes(width: float, height: float, columns: int = 1, **grid: Any) -> Any:
    """Make empty axes for a `Chart`, all in one style; an array of them for `columns`.

    The size in inches is that of the whole picture, which is `axes.figure`; `grid` goes
    to `Figure.subplots`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(ncols=columns, **grid)
    for one in figure.axes:
        one.set_prop_cycle(color=COLOURS)
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.3)
        one.set_axisbelow(True)
    return axes


class Chart:
    """A matplotlib figure as a picture, with the same facts as text.

    It draws itself, so it does not depend on a notebook's plotting backend; without a
    background and in a grey ink, so that it suits light pages and dark ones. A dollar
    sign in a title or a label is a dollar sign, and begins no formula.
    """

    def __init__(self, figure: "Figure", text: str) -> None:
        self.figure = figure
        self.text = text

    def png(self) -> bytes:
        """Draw the picture; return the bytes of a PNG file."""
        from matplotlib.text import Text

        ticks: set[Text] = set()
        for axes in self.figure.axes:
            axes.tick_params(which="both", colors=_INK)
            axes.spines[:].set_edgecolor(_INK)
            if legend := axes.get_legend():
                legend.set_frame_on(False)
            for axis in (axes.xaxis, axes.yaxis):
                ticks.update(axis.get_ticklabels(which="both"))
        for text in self.figure.findobj(Text):
            if text.get_color() == "black":
                text.set_color(_INK)
            if text not in ticks:  # Matplotlib writes powers as formulas.
                text.set_parse_math(False)
        picture = io.BytesIO()
        options = {"dpi": 110, "bbox_inches": "tight", "transparent": True}
        self.figure.savefig(picture, format="png", **options)
        return picture.getvalue()

    def _repr_html_(self) -> str:
        # As HTML, since a notebook has no place for a picture's alternative text.
        data = base64.b64encode(self.png()).decode()
        # This class keeps Sphinx's dark themes from adding a white background.
        return (
            f'<img class="dark-light" alt="{escape(self.text)}" '
            f'style="max-width:100%;height:auto" src="data:image/png;base64,{data}">'
        )

    def __repr__(self) -> str:
        return self.text


def plot_lines(
    lines: Mapping[str, Mapping[int, Sequence[float]]], *, x: str, y: str
) -> Chart:
    """Draw measurements over sizes, on logarithmic axes: a line for each name.

    Each size has one or more values: the line goes through the medians, bars show the
    spread. `x` and `y` name the axes, with units.
    """
    axes, facts = new_axes(7, 3.6), []
    for name, by_size in lines.items():
        medians = _draw_line(axes, by_size, label=name)
        at = ", ".join(f"{short_number(m)} at {n:,}" for n, m in medians.items())
        facts.append(f"{name}: {at}")
    _label_axes(axes, "", x, sorted(set().union(*lines.values())))
    axes.set_ylabel(y)
    axes.legend()
    return Chart(axes.figure, f"{y} by {x}. {'; '.join(facts)}.")


def plot_throughput(*engines: Any) -> Chart:
    """Draw throughput and time to the first token by batch size, on logarithmic axes.

    `engines` are `EngineFigures`. An engine keeps its colour, 4-bit weights are dashed,
    bars show the spread of the repeats. Two grey lines are limits: as many times the
    fastest single prompt as there are prompts, and `EngineFigures.limit` where it is
    known. Each device has a row of its own, with the same axes.
    """
    devices = dict.fromkeys(one.device for one in engines)
    grid = {"nrows": len(devices), "squeeze": False, "width_ratios": [3, 2]}
    shared = {"sharex": "all", "sharey": "col"}
    rows = new_axes(10, 0.9 + 3.8 * len(devices), columns=2, **grid, **shared)
    figure = rows[0, 0].figure
    title = "\n".join(textwrap.fill(f"Measured on {one}", 120) for one in devices)
    figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    names = dict.fromkeys(one.engine for one in engines)
    colours = dict(zip(names, itertools.cycle(COLOURS), strict=False))
    sizes = sorted(set().union(*(one.tokens_per_second for one in engines)))
    facts, legend = [], {}
    for device, (speed, first) in zip(devices, rows, strict=True):
        here = [one for one in engines if one.device == device]
        for one in here:
            style = {"color": colours[one.engine], "label": one.name}
            style["linestyle"] = "--" if one.precision == "4-bit" else "-"
            best = max(_draw_line(speed, one.tokens_per_second, **style).values())
            waits = {n: [1000 * s for s in v] for n, v in one.ttft_seconds.items()}
            soonest = min(_draw_line(first, waits, **style).items())[1]
            facts.append(
                f"{one.name}: {best:,.0f} tokens/s at best, first token after "
                f"{short_number(soonest)} ms"
            )
        _draw_limits(speed, here)
        where = f": {device.partition(',')[0]}" if len(devices) > 1 else ""
        batch = "prompts at once (batch size)"
        _label_axes(speed, f"new tokens per second{where}", batch, sizes)
        _label_axes(first, f"time to the first token (ms){where}", batch, sizes)
        handles, labels = speed.get_legend_handles_labels()
        legend |= dict(zip(labels, handles, strict=True))
    below = {"loc": "outside lower center", "ncols": 3, "frameon": False}
    figure.legend(legend.values(), legend, fontsize=8, **below)
    return Chart(figure, "Throughput by batch size. " + "; ".join(facts) + ".")


def svg_line(
    points: Sequence[tuple[float, float]], marks: Sequence[float], label: str
) -> str:
    """Draw a line from 0 to the highest point as SVG, which is cheap to draw often.

    Each of `marks`, places on the horizontal axis, has its number. At most some 400
    points are drawn: the eye sees no more.
    """
    width, height = 480, 140
    across = width / (points[-1][0] or 1)
    up = 0.9 * height / (max(y for _, y in points) or 1)
    thinned = [*points[:: len(points) // 400 + 1], points[-1]]
    line = " ".join(f"{x * across:.1f},{-y * up:.1f}" for x, y in thinned)
    numbered = "".join(
        f'<text x="{x * across:.1f}" y="{-0.92 * height}">{number}</text>'
        f'<path d="M{x * across:.1f},0v{-0.9 * height}" stroke="#777"/>'
        for number, x in enumerate(marks, start=1)
    )
    return (
        f'<svg role="img" aria-label="{escape(label)}" style="max-width:40em" '
        f'viewBox="-5 {-height} {width + 10} {height + 2}" font-size="12" '
        f'fill="currentColor" text-anchor="middle">{numbered}'
        f'<path d="M0,0L{line}V0z" fill="#1F84C4" fill-opacity="0.3"/>'
        f'<polyline points="{line}" fill="none" stroke="#1F84C4" stroke-width="2"/>'
        "</svg>"
    )


def short_number(value: float) -> str:
    """Write a number with one decimal below 10, else with none."""
    return f"{value:,.1f}" if value < 10 else f"{value:,.0f}"


def _label_axes(axes: Any, title: str, xlabel: str, sizes: Sequence[int]) -> None:
    """Make both axes logarithmic, with all sizes and numbers in full."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_title(title, fontsize=10)
    axes.set_xlabel(xlabel)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _draw_line(
    axes: Any, by_size: Mapping[int, Sequence[float]], **style: Any
) -> dict[int, float]:
    """Draw a line through the medians, with bars from lowest to highest; return it."""
    medians = {size: statistics.median(values) for size, values in by_size.items()}
    below = [medians[size] - min(values) for size, values in by_size.items()]
    above = [max(values) - medians[size] for size, values in by_size.items()]
    bars = {"yerr": [below, above], "marker": "o", "capsize": 3}
    axes.errorbar(list(medians), list(medians.values()), **bars, **style)
    return medians


def _draw_limits(axes: Any, engines: Sequence[Any]) -> None:
    sizes = sorted(set().union(*(one.tokens_per_second for one in engines)))
    measured = [one for one in engines if sizes[0] in one.tokens_per_second]
    single = max(one.throughput(sizes[0]) for one in measured) / sizes[0]
    label = "ideal: twice the prompts, twice the tokens"
    grey = {"color": "#999999"}
    axes.plot(sizes, [single * n for n in sizes], ":", label=label, **grey)
    for precision, limit in {e.precision: e.limit for e in engines if e.limit}.items():
        label = f"the memory's bandwidth allows, {precision}".removesuffix(", ")
        dashes = "--" if precision == "4-bit" else "-"
        axes.plot(list(limit), list(limit.values()), dashes, label=label, **grey)
