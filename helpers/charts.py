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
    is shown as "-".

    Raises `ValueError` for no rows and `KeyError` for a row that lacks a column.
    """
    rows = rows.to_dict("records") if hasattr(rows, "to_dict") else list(rows)
    if not rows:
        raise ValueError("a table needs at least one row")
    columns = [[_plain_value(row[name]) for row in rows] for name in rows[0]]
    is_number = [any(isinstance(one, Real) for one in column) for column in columns]
    sides = ["right" if one else "left" for one in is_number]
    heads = [str(name) for name in rows[0]]
    cells = [[_cell_text(value) for value in row] for row in zip(*columns, strict=True)]
    html = html_table(
        [escape(head) for head in heads],
        [[escape(cell) for cell in line] for line in cells],
        sides=sides,
        caption=escape(caption or ""),
    )
    text = tabulate(cells, heads, "plain", colalign=sides, disable_numparse=True)
    return Panel(html, f"{caption}\n{text}" if caption else text)


def html_table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    sides: Sequence[str] | None = None,
    caption: str = "",
) -> str:
    """Make an HTML table; heads, cells and caption are HTML already.

    `sides` has "left" or "right" for each column. The first cell of a row is its
    heading, for readers who hear the table.
    """
    style = "padding:0.3em 0.5em;vertical-align:top;text-align:"
    sides = sides or ["left"] * len(heads)

    def html_row(cells: Sequence[str], first: str, other: str) -> str:
        tags = [first] + [other] * (len(cells) - 1)
        marked = [
            f'<{tag} style="{style}{side}">{cell}</{tag[:2]}>'
            for tag, cell, side in zip(tags, cells, sides, strict=True)
        ]
        return f"<tr>{''.join(marked)}</tr>"

    column = 'th scope="col"'
    body = "".join(html_row(row, 'th scope="row"', "td") for row in rows)
    title = f'<caption style="text-align:left">{caption}</caption>' if caption else ""
    return (
        f'<table style="border-collapse:collapse">{title}<thead>'
        f"{html_row(heads, column, column)}</thead><tbody>{body}</tbody></table>"
    )


def _plain_value(value: Any) -> Any:
    """Turn numbers and arrays of NumPy or torch into Python's own."""
    value = value.tolist() if callable(getattr(value, "tolist", None)) else value
    is_missing = value is None or str(value) in ("nan", "NaT", "<NA>")
    return None if is_missing else value


def _cell_text(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return str(value)
        case Integral():
            return f"{value:,}"
        case Real():
            return f"{value:,.2f}" if abs(value) < 10 else f"{value:,.0f}"
    return str(value)


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
    cards = "".join(map(_html_card, several, names))
    question = f"<p><b>{escape(prompt)}</b></p>" if prompt else ""
    html = f'{question}<div style="display:flex;flex-wrap:wrap;gap:0.8em">{cards}</div>'
    texts = [prompt] if prompt else []
    return Panel(html, "\n\n".join([*texts, *map(_text_card, several, names)]))


def _answer(result: Any) -> str:
    if error := getattr(result, "error", None):
        return f"(failed) {error}"
    if result.response is None:
        return f"(no answer) {result.hint}"
    notes = {"abort": " (stopped)", "length": " (cut off: raise max_tokens)"}
    return result.response + notes.get(result.finish_reason, "")


def _html_card(result: Any, title: str) -> str:
    heading = f"<b>{escape(title)}</b>" if title else ""
    opened, state = ("", "") if result.complete else (" open", ", unfinished")
    thinking = (
        f'<details{opened}><summary style="cursor:pointer;opacity:0.75">Thinking '
        f"({result.thinking_tokens} tokens{state})</summary>"
        f'<div style="{TEXT_STYLE};opacity:0.75;font-size:0.9em">'
        f"{escape(result.thinking or '')}</div></details>"
    )
    answer = (
        f'<div style="{TEXT_STYLE};margin-top:0.5em">{escape(_answer(result))}</div>'
    )
    parts = [heading, "" if result.thinking is None else thinking, answer]
    return f'<div style="{_CARD}">{"".join(parts)}</div>'


def _text_card(result: Any, title: str) -> str:
    lines = [f"[{title}]"] if title else []
    if result.thinking is not None:
        lines += [f"Thinking ({result.thinking_tokens} tokens):", result.thinking]
    return "\n".join([*lines, "Answer:", _answer(result)])


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
        _suit_any_page(self.figure)
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


def _suit_any_page(figure: "Figure") -> None:
    from matplotlib.text import Text

    ticks: set[Text] = set()
    for axes in figure.axes:
        axes.tick_params(which="both", colors=_INK)
        axes.spines[:].set_edgecolor(_INK)
        if legend := axes.get_legend():
            legend.set_frame_on(False)
        ticks.update(axes.get_xticklabels(which="both"))
        ticks.update(axes.get_yticklabels(which="both"))
    for text in figure.findobj(Text):
        if text.get_color() == "black":
            text.set_color(_INK)
        if text not in ticks:  # Matplotlib writes powers as formulas.
            text.set_parse_math(False)


def plot_lines(
    lines: Mapping[str, Mapping[int, Sequence[float]]], *, x: str, y: str
) -> Chart:
    """Draw measurements over sizes, on logarithmic axes: a line for each name.

    Each size has one or more values: the line goes through the medians, bars show the
    spread. `x` and `y` name the axes, with units.
    """
    axes = new_axes(7, 3.6)
    for name, by_size in lines.items():
        _draw_line(axes, by_size, label=name)
    _label_axes(axes, "", x, sorted(set().union(*lines.values())))
    axes.set_ylabel(y)
    axes.legend()
    facts = []
    for name, by_size in lines.items():
        medians = {n: statistics.median(values) for n, values in by_size.items()}
        at = ", ".join(f"{short_number(m)} at {n:,}" for n, m in medians.items())
        facts.append(f"{name}: {at}")
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
    rows = new_axes(10, 0.4 + 3.8 * len(devices), columns=2, **grid, **shared)
    figure = rows[0, 0].figure
    title = "\n".join(textwrap.fill(f"Measured on {one}", 120) for one in devices)
    figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    names = dict.fromkeys(one.engine for one in engines)
    colours = dict(zip(names, itertools.cycle(COLOURS), strict=False))
    sizes = sorted(set().union(*(one.tokens_per_second for one in engines)))
    for device, (speed, first) in zip(devices, rows, strict=True):
        here = [one for one in engines if one.device == device]
        for one in here:
            style = {"color": colours[one.engine], "label": one.name}
            style["linestyle"] = "--" if one.precision == "4-bit" else "-"
            _draw_line(speed, one.tokens_per_second, **style)
            _draw_line(first, one.ttft_seconds, scale=1000, **style)
        _draw_limits(speed, here)
        where = f": {device.partition(',')[0]}" if len(devices) > 1 else ""
        batch = "prompts at once (batch size)"
        _label_axes(speed, f"new tokens per second{where}", batch, sizes)
        _label_axes(first, f"time to the first token (ms){where}", batch, sizes)
        speed.legend(fontsize=8)
    facts = [
        f"{one.name}: {max(map(one.throughput, one.tokens_per_second)):,.0f} tokens/s "
        f"at best, first token after {short_number(1000 * one.ttft)} ms"
        for one in engines
    ]
    return Chart(figure, "Throughput by batch size. " + "; ".join(facts) + ".")


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
    axes: Any, by_size: Mapping[int, Sequence[float]], *, scale: float = 1, **style: Any
) -> None:
    """Draw a line through the medians, with bars from the lowest to the highest."""
    values = [[scale * value for value in repeats] for repeats in by_size.values()]
    medians = [statistics.median(repeats) for repeats in values]
    below = [median - min(v) for median, v in zip(medians, values, strict=True)]
    above = [max(v) - median for median, v in zip(medians, values, strict=True)]
    spread = [below, above]
    axes.errorbar(list(by_size), medians, spread, marker="o", capsize=3, **style)


def _draw_limits(axes: Any, engines: Sequence[Any]) -> None:
    sizes = sorted(set().union(*(one.tokens_per_second for one in engines)))
    measured = [one for one in engines if sizes[0] in one.tokens_per_second]
    single = max(one.throughput(sizes[0]) for one in measured) / sizes[0]
    label = "ideal: twice the prompts, twice the tokens"
    axes.plot(sizes, [single * n for n in sizes], ":", color="#999999", label=label)
    for precision, limit in {e.precision: e.limit for e in engines if e.limit}.items():
        label = f"the memory's bandwidth allows, {precision}".removesuffix(", ")
        dashes = "--" if precision == "4-bit" else "-"
        axes.plot(
            *zip(*limit.items(), strict=True), dashes, color="#999999", label=label
        )
