"""Tables and charts that say the same as a page, as text and as a picture.

In go rows, measurements or what a model answered; out comes a `Panel` or a `Chart`,
which a notebook shows as HTML and a terminal as text. This module knows nothing of
engines, tokenizers or widgets: what it draws it takes by its attributes.
"""

import base64
import io
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle
from numbers import Integral, Real
from typing import Any

from tabulate import tabulate

# A grey that both white paper and a dark page's black leave readable (4.5 and 4.2 : 1).
_INK = "#777777"
_DASHES = {"4-bit": "--"}  # Lines of all other weights are solid.
# Okabe and Ito's, which colour-blind readers tell apart as well.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
TEXT_STYLE = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.4"
_CELL = "padding:0.3em 0.5em;vertical-align:top;white-space:pre-line;text-align:"
_CARD = "flex:1 1 16em;border:1px solid #8888;border-radius:6px;padding:0.6em 0.9em"


@dataclass(eq=False, repr=False)
class Panel:
    """HTML in a notebook, plain text everywhere else."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        # Or JupyterLab takes text between two dollar signs for a formula.
        return f'<div class="mathjax_ignore">{self.html}</div>'

    def __repr__(self) -> str:
        return self.text


def show_table(
    rows: Iterable[Mapping[Any, object]], *, caption: str | None = None
) -> Panel:
    """Make a table of rows that share their keys; numbers go to the right.

    `rows` may be a DataFrame of pandas as well. What is missing (None, NaN, pandas.NA)
    is shown as "-", and a `Panel`, as key or value, as its HTML. Raises `ValueError`
    for no rows and `KeyError` for a row that lacks a column.
    """
    rows = rows.to_dict("records") if hasattr(rows, "to_dict") else list(rows)
    if not rows:
        raise ValueError("a table needs at least one row")
    values = [[_plain_value(row[name]) for name in rows[0]] for row in rows]
    columns = zip(*values, strict=True)
    sides = ["right" if any(map(_is_number, one)) else "left" for one in columns]
    heads, *cells = [list(map(_as_cell, row)) for row in (rows[0], *values)]

    def html_row(row: Sequence[Panel], first: str, other: str) -> str:
        html = ""
        for tag, side, cell in zip(
            [first, *[other] * len(row)], sides, row, strict=False
        ):
            html += f'<{tag} style="{_CELL}{side}">{cell.html}</{tag[:2]}>'
        return f"<tr>{html}</tr>"

    head = html_row(heads, 'th scope="col"', 'th scope="col"')
    # The first cell of a row is its heading, for readers who hear the table.
    body = "".join(html_row(row, 'th scope="row"', "td") for row in cells)
    title = f'<caption style="text-align:left">{escape(caption or "")}</caption>'
    html = f'<table style="border-collapse:collapse">{title}<thead>{head}</thead>'
    text = tabulate(cells, heads, "plain", colalign=sides, disable_numparse=True)
    text = f"{caption}\n{text}" if caption else text
    return Panel(f"{html}<tbody>{body}</tbody></table>", text)


def _plain_value(value: Any) -> Any:
    """Turn numbers and arrays of NumPy or torch into Python's own."""
    value = value.tolist() if callable(getattr(value, "tolist", None)) else value
    return "-" if str(value) in ("None", "nan", "NaT", "<NA>") else value


def _is_number(value: object) -> bool:
    return isinstance(value, Real) or str(value).endswith("%")


def _as_cell(value: Any) -> Panel:
    if isinstance(value, Panel):
        return value
    text = str(value)
    if isinstance(value, Real) and not isinstance(value, bool):
        whole = isinstance(value, Integral) or abs(value) >= 10
        text = f"{value:,.0f}" if whole else f"{value:,.2f}"
    return Panel(escape(text), text)


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
    cards = list(map(_result_card, several, names))
    html = "".join(f'<div style="{_CARD}">{card.html}</div>' for card in cards)
    html = f'<div style="display:flex;flex-wrap:wrap;gap:0.8em">{html}</div>'
    text = "\n\n".join(card.text for card in cards)
    if prompt:
        html, text = f"<p><b>{escape(prompt)}</b></p>{html}", f"{prompt}\n\n{text}"
    return Panel(html, text)


def _result_card(result: Any, title: str) -> Panel:
    """Show one result: its title, its thinking and its answer, error or hint."""
    notes = {"abort": " (stopped)", "length": " (cut off: raise max_tokens)"}
    if error := getattr(result, "error", None):
        answer = f"(failed) {error}"
    elif result.response is None:
        answer = f"(no answer) {result.hint}"
    else:
        answer = result.response + notes.get(result.finish_reason, "")
    html = f"<b>{escape(title)}</b>" if title else ""
    text = f"[{title}]\n" if title else ""
    if result.thinking is not None:
        opened, state = ("", "") if result.complete else (" open", ", unfinished")
        head = f"Thinking ({result.thinking_tokens} tokens"
        text += f"{head}):\n{result.thinking}\n"
        html += (
            f'<details{opened}><summary style="cursor:pointer;opacity:0.75">'
            f'{head}{state})</summary><div style="{TEXT_STYLE};opacity:0.75;'
            f'font-size:0.9em">{escape(result.thinking)}</div></details>'
        )
    html += f'<div style="{TEXT_STYLE};margin-top:0.5em">{escape(answer)}</div>'
    return Panel(html, f"{text}Answer:\n{answer}")


def new_axes(width: float, height: float, columns: int = 1, **grid: Any) -> Any:
    """Make empty axes for a `Chart`, all in one style; an array of them for `columns`.

    The size of the whole picture is in inches; `grid` goes to `Figure.subplots`.
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


class Chart(Panel):
    """A matplotlib figure as a picture, with the same facts as text.

    It suits light pages and dark ones: it has a grey ink and no background. A dollar
    sign in a title or a label is a dollar sign, and begins no formula.
    """

    def __init__(self, figure: Any, text: str) -> None:
        self.figure = figure
        self.text = text

    @property
    def html(self) -> str:
        """The picture as HTML, since only there it can have an alternative text."""
        data = base64.b64encode(self.png()).decode()
        # This class keeps Sphinx's dark themes from adding a white background.
        return (
            f'<img class="dark-light" alt="{escape(self.text)}" '
            f'style="max-width:100%;height:auto" src="data:image/png;base64,{data}">'
        )

    def png(self) -> bytes:
        """Draw the picture; return the bytes of a PNG file."""
        from matplotlib.legend import Legend
        from matplotlib.text import Text

        for axes in self.figure.axes:
            axes.tick_params(which="both", colors=_INK)
            axes.spines[:].set_edgecolor(_INK)
        for legend in self.figure.findobj(Legend):
            legend.set_frame_on(False)
        for text in self.figure.findobj(Text):
            if text.get_color() == "black":
                text.set_color(_INK)
            # Ticks get their texts later, where matplotlib writes powers as formulas.
            if text.get_text() and "\\mathdefault" not in text.get_text():
                text.set_parse_math(False)
        picture = io.BytesIO()
        self.figure.savefig(picture, dpi=110, bbox_inches="tight", transparent=True)
        return picture.getvalue()


def plot_lines(
    lines: Mapping[str, Mapping[int, Sequence[float]]], *, x: str, y: str
) -> Chart:
    """Draw measurements over sizes, on logarithmic axes: a line for each name.

    Each size has one or more values: the line goes through the medians, bars show the
    spread. `x` and `y` name the axes, with units.
    """
    axes, facts = new_axes(7, 3.6), []
    for name, by_size in lines.items():
        medians = _draw_line(axes, by_size, label=name).items()
        at = ", ".join(f"{_short_number(median)} at {n:,}" for n, median in medians)
        facts.append(f"{name}: {at}")
    axes.set(xlabel=x, ylabel=y, xticks=sorted(set().union(*lines.values())))
    axes.legend()
    return Chart(axes.figure, f"{y} by {x}. {'; '.join(facts)}.")


def plot_throughput(*engines: Any) -> Chart:
    """Draw throughput and time to the first token by batch size, on logarithmic axes.

    `engines` are `EngineFigures`. Each device has a row, each engine a colour; 4-bit
    weights are dashed, bars show the spread of the repeats. The grey lines are limits:
    as many times the fastest single prompt as there are prompts, and the known
    `EngineFigures.limit`.
    """
    devices = dict.fromkeys(one.device for one in engines)
    names = dict.fromkeys(one.engine for one in engines)
    colours = dict(zip(names, cycle(COLOURS), strict=False))
    grid = {"nrows": len(devices), "squeeze": False, "width_ratios": [3, 2]}
    shared = {"sharex": "all", "sharey": "col"}
    rows = new_axes(10, 0.9 + 3.8 * len(devices), columns=2, **grid, **shared)
    facts, legend = [], {}
    for device, (speed, first) in zip(devices, rows, strict=True):
        here = [one for one in engines if one.device == device]
        for one in here:
            style = {"color": colours[one.engine], "label": one.name}
            style["linestyle"] = _DASHES.get(one.precision, "-")
            best = max(_draw_line(speed, one.tokens_per_second, **style).values())
            waits = {n: [1000 * s for s in v] for n, v in one.ttft_seconds.items()}
            wait = _short_number(min(_draw_line(first, waits, **style).items())[1])
            fact = f"{best:,.0f} tokens/s at best, first token after {wait} ms"
            facts.append(f"{one.name}: {fact}")
        _draw_limits(speed, here)
        where = f": {device.partition(',')[0]}" if len(devices) > 1 else ""
        speed.set_title(f"new tokens per second{where}", fontsize=10)
        first.set_title(f"time to the first token (ms){where}", fontsize=10)
        handles, labels = speed.get_legend_handles_labels()
        legend |= dict(zip(labels, handles, strict=True))
    sizes = set().union(*(one.tokens_per_second for one in engines))
    for axes in rows.flat:
        axes.set(xlabel="prompts at once (batch size)", xticks=sorted(sizes))
    title = "\n".join(textwrap.fill(f"Measured on {one}", 120) for one in devices)
    axes.figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    below = {"loc": "outside lower center", "ncols": 3, "fontsize": 8}
    axes.figure.legend(legend.values(), legend, **below)
    return Chart(axes.figure, f"Throughput by batch size. {'; '.join(facts)}.")


def _draw_limits(axes: Any, engines: Sequence[Any]) -> None:
    sizes = sorted(set().union(*(one.tokens_per_second for one in engines)))
    measured = [one for one in engines if sizes[0] in one.tokens_per_second]
    single = max(one.throughput(sizes[0]) for one in measured) / sizes[0]
    label, grey = "ideal: twice the prompts, twice the tokens", {"color": "#999999"}
    axes.plot(sizes, [single * n for n in sizes], ":", label=label, **grey)
    for precision, limit in {e.precision: e.limit for e in engines if e.limit}.items():
        label = f"the memory's bandwidth allows, {precision}".removesuffix(", ")
        line = list(limit), list(limit.values()), _DASHES.get(precision, "-")
        axes.plot(*line, label=label, **grey)


def _draw_line(
    axes: Any, by_size: Mapping[int, Sequence[float]], **style: Any
) -> dict[int, float]:
    """Draw a line through the medians, with bars from lowest to highest; return it."""
    from matplotlib.ticker import LogLocator

    medians = {n: statistics.median(values) for n, values in by_size.items()}
    below = [medians[n] - min(values) for n, values in by_size.items()]
    above = [max(values) - medians[n] for n, values in by_size.items()]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,g}")
        axis.set_minor_formatter("")
    style |= {"yerr": [below, above], "marker": "o", "capsize": 3}
    axes.errorbar(list(medians), list(medians.values()), **style)
    return medians


def svg_line(
    points: Sequence[tuple[float, float]], marks: Sequence[float], label: str
) -> str:
    """Draw a line from 0 to the highest point as SVG, which is cheap to draw often.

    Each of `marks`, places on the horizontal axis, has its number.
    """
    across, up = 480 / (points[-1][0] or 1), 126 / (max(y for _, y in points) or 1)
    # The eye sees no more than some 400 points.
    thinned = [*points[:: len(points) // 400 + 1], points[-1]]
    line = " ".join(f"{x * across:.1f},{-y * up:.1f}" for x, y in thinned)
    numbered = "".join(
        f'<text x="{x * across:.1f}" y="-129">{number}</text>'
        f'<path d="M{x * across:.1f},0v-126" stroke="#777"/>'
        for number, x in enumerate(marks, start=1)
    )
    return (
        f'<svg role="img" aria-label="{escape(label)}" style="max-width:40em" '
        'viewBox="-5 -140 490 142" font-size="12" fill="currentColor" '
        f'text-anchor="middle">{numbered}'
        f'<path d="M0,0L{line}V0z" fill="#1F84C4" fill-opacity="0.3"/>'
        f'<polyline points="{line}" fill="none" stroke="#1F84C4" stroke-width="2"/>'
        "</svg>"
    )


def _short_number(value: float) -> str:
    return f"{value:,.1f}" if value < 10 else f"{value:,.0f}"
