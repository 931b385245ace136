"""Tables and charts that say the same as a page, as text and as a picture.

In go rows, measurements or what a model answered; out comes a `Panel` or a `Chart`,
which a notebook shows as HTML and a terminal as text. It knows no engine or widget.
"""

import base64
import io
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
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

BySize = Mapping[int, Sequence[float]]  # one or more values of each size


@dataclass(eq=False, repr=False)
class Panel:
    """HTML in a notebook, plain text everywhere else."""

    html: str
    text: str
    is_number: bool = False  # So its column of a table goes to the right.

    def _repr_html_(self) -> str:
        # Or JupyterLab takes text between two dollar signs for a formula.
        return f'<div class="mathjax_ignore">{self.html}</div>'

    def __repr__(self) -> str:
        return self.text


def show_table(rows: Any, *, caption: str | None = None) -> Panel:
    """Make a table of dicts that share their keys; numbers go to the right.

    `rows` may be a DataFrame or Series of pandas as well. What is missing (None, NaN,
    pandas.NA) is "-", a `Panel` its HTML. `ValueError`: no rows, or different keys.
    """
    if hasattr(rows, "reset_index"):  # Rows of a Series or a groupby have labels.
        plain = hasattr(rows, "columns") and rows.index.inferred_type == "integer"
        rows = rows if plain and not any(rows.index.names) else rows.reset_index()
    rows = rows.to_dict("records") if hasattr(rows, "to_dict") else list(rows)
    alike = (isinstance(one, Mapping) and one.keys() == rows[0].keys() for one in rows)
    if not rows or not all(alike):
        raise ValueError("a table needs at least one row: dicts that share their keys")
    cells = [[_as_cell(row[name]) for name in rows[0]] for row in rows]
    right = [any(c.is_number for c in column) for column in zip(*cells, strict=True)]
    sides = ["right" if is_number else "left" for is_number in right]
    heads = list(map(_as_cell, rows[0]))

    def html_row(row: list[Panel], first: str, other: str) -> str:
        parts = zip([first, *[other] * (len(row) - 1)], sides, row, strict=True)
        html = (f'<{t} style="{_CELL}{s}">{c.html}</{t[:2]}>' for t, s, c in parts)
        return f"<tr>{''.join(html)}</tr>"

    head = html_row(heads, 'th scope="col"', 'th scope="col"')
    # The first cell of a row is its heading, for readers who hear the table.
    body = "".join(html_row(row, 'th scope="row"', "td") for row in cells)
    title = f'<caption style="text-align:left">{escape(caption or "")}</caption>'
    html = f'<table style="border-collapse:collapse">{title}<thead>{head}</thead>'
    text = tabulate(cells, heads, "plain", colalign=sides, disable_numparse=True)
    text = f"{caption}\n{text}" if caption else text
    return Panel(f"{html}<tbody>{body}</tbody></table>", text)


def _as_cell(value: Any) -> Panel:
    """Write a value of Python, NumPy or torch."""
    if isinstance(value, Panel):
        return value
    value = value.tolist() if callable(getattr(value, "tolist", None)) else value
    text = "-" if str(value) in ("None", "nan", "NaT", "<NA>") else str(value)
    is_number = isinstance(value, int | float) and text != "-"
    if is_number and not isinstance(value, bool):
        whole = isinstance(value, int) or abs(value) >= 10
        text = f"{value:,.0f}" if whole else f"{value:,.2f}"
    return Panel(escape(text), text, is_number or text.endswith("%"))


def show_thinking(results: Any, *, prompt: Any = "", titles: Any = ()) -> Panel:
    """Show answers beside each other, each with its thinking folded away.

    `results` is what `parse_thinking_response` or `run_batch` returns, one or several,
    else `TypeError` is raised; `titles` names each, else `ValueError`.
    """
    # A ThinkingResult unpacks as a pair itself.
    several = [results] if hasattr(results, "thinking") else list(results)
    if not all(hasattr(one, "thinking") for one in several):
        raise TypeError("show_thinking takes results, as parse_thinking_response makes")
    names = [str(title) for title in titles or ()] or [""] * len(several)
    cards = [_result_card(*pair) for pair in zip(several, names, strict=True)]
    html = "".join(f'<div style="{_CARD}">{card.html}</div>' for card in cards)
    html = f'<div style="display:flex;flex-wrap:wrap;gap:0.8em">{html}</div>'
    text = "\n\n".join(card.text for card in cards)
    if prompt and not isinstance(prompt, str):  # A chat.
        prompt = "\n".join(f"{one['role']}: {one.get('content')}" for one in prompt)
    if prompt:
        html, text = f"<p><b>{escape(prompt)}</b></p>{html}", f"{prompt}\n\n{text}"
    return Panel(html, text)


def _result_card(result: Any, title: str) -> Panel:
    """Show one result: its title, its thinking and its answer, error or hint."""
    if error := getattr(result, "error", None):
        answer = f"(failed) {error}"
    elif result.response is None:
        answer = f"(no answer) {result.hint}"
    else:
        notes = {"abort": " (stopped)", "length": " (cut off: raise max_tokens)"}
        answer = result.response + notes.get(result.finish_reason, "")
    html, text = (f"<b>{escape(title)}</b>", f"[{title}]\n") if title else ("", "")
    if result.thinking is not None:
        opened, state = ("", "") if result.complete else (" open", ", unfinished")
        head = f"Thinking ({result.thinking_tokens} tokens{state})"
        text += f"{head}:\n{result.thinking}\n"
        html += f'<details{opened}><summary style="cursor:pointer;opacity:0.75">{head}'
        html += f'</summary><div style="{TEXT_STYLE};opacity:0.75;font-size:0.9em">'
        html += f"{escape(result.thinking)}</div></details>"
    html += f'<div style="{TEXT_STYLE};margin-top:0.5em">{escape(answer)}</div>'
    return Panel(html, f"{text}Answer:\n{answer}")


def new_axes(width: float, height: float, columns: int = 1, **grid: Any) -> Any:
    """Make axes for a `Chart`, sized in inches; an array of them for more `columns`."""
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
    """A matplotlib figure for light pages and dark ones, with its facts as text."""

    def __init__(self, figure: Any, text: str) -> None:
        self.figure, self.text = figure, text

    @property
    def html(self) -> str:
        """The picture as HTML, since only there it can have an alternative text."""
        style, png = "max-width:100%;height:auto", base64.b64encode(self.png()).decode()
        # This class keeps Sphinx's dark themes from adding a white background.
        html = f'<img class="dark-light" alt="{escape(self.text)}" style="{style}"'
        return f'{html} src="data:image/png;base64,{png}">'

    def png(self) -> bytes:
        """Draw the picture as a PNG file; a dollar sign in a text begins no formula."""
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


def plot_lines(lines: Mapping[str, BySize], *, x: str, y: str) -> Chart:
    """Draw measurements over sizes, on logarithmic axes: a line for each name.

    Bars show the spread about the median. `x` and `y` name the axes, with units.
    """
    axes, facts = new_axes(7, 3.6), []
    for name, by_size in lines.items():
        medians = _draw_line(axes, by_size, label=name).items()
        at = [f"{_as_cell(median)} at {n:,}" for n, median in medians]
        facts.append(f"{name}: {', '.join(at)}")
    axes.set(xlabel=x, ylabel=y, xticks=sorted(set().union(*lines.values())))
    axes.legend()
    return Chart(axes.figure, f"{y} by {x}. {'; '.join(facts)}.")


def plot_throughput(*engines: Any) -> Chart:
    """Draw throughput and time to the first token by batch size, on logarithmic axes.

    Each device of these `EngineFigures` has a row. The grey lines are limits: as many
    times the fastest single prompt as there are prompts, and `EngineFigures.limit`.
    """
    devices = dict.fromkeys(one.device for one in engines)
    names = dict.fromkeys(one.engine for one in engines)
    colours = dict(zip(names, COLOURS * len(names), strict=False))
    grid = {"nrows": len(devices), "squeeze": False, "width_ratios": [3, 2]}
    height, shared = 0.9 + 3.8 * len(devices), {"sharex": "all", "sharey": "col"}
    rows = new_axes(10, height, columns=2, **grid, **shared)
    facts, legend = [], {}
    for device, (speed, first) in zip(devices, rows, strict=True):
        here = [one for one in engines if one.device == device]
        for one in here:
            style = {"color": colours[one.engine], "label": one.name}
            style["linestyle"] = _DASHES.get(one.precision, "-")
            best = max(_draw_line(speed, one.tokens_per_second, **style).values())
            waits = {n: [1000 * s for s in v] for n, v in one.ttft_seconds.items()}
            _draw_line(first, waits, **style)
            wait = f"first token after {_as_cell(1000 * one.ttft)} ms"
            facts.append(f"{one.name}: {best:,.0f} tokens/s at best, {wait}")
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
    n, grey = sizes[0], {"color": "#999999"}
    single = max(e.throughput(n) for e in engines if n in e.tokens_per_second) / n
    label = "ideal: twice the prompts, twice the tokens"
    axes.plot(sizes, [single * n for n in sizes], ":", label=label, **grey)
    for precision, limit in {e.precision: e.limit for e in engines if e.limit}.items():
        label = f"the memory's bandwidth allows, {precision}".removesuffix(", ")
        points, dash = zip(*limit.items(), strict=True), _DASHES.get(precision, "-")
        axes.plot(*points, dash, label=label, **grey)


def _draw_line(axes: Any, by_size: BySize, **style: Any) -> dict[int, float]:
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


def svg_line(points: Sequence[tuple], marks: Sequence[float], label: str) -> str:
    """Draw a line over places from 0 as SVG, with an upright at each of `marks`."""
    right, top = points[-1][0] or 1, max(y for _, y in points) or 1
    # It is drawn often, and the eye sees no more than some 400 points.
    thinned = [*points[:: len(points) // 400 + 1], points[-1]]
    line = " ".join(f"{x:.2f},{-y}" for x, y in thinned)
    uprights = "".join(f"M{x:.2f},0V{-top}" for x in marks)
    pen = 'vector-effect="non-scaling-stroke" stroke'
    html = f'<svg role="img" aria-label="{escape(label)}" preserveAspectRatio="none" '
    html += f'viewBox="0 {-top} {right:.2f} {top}" fill="none" style="height:10em;'
    html += f'width:40em;max-width:100%;overflow:visible"><path d="{uprights}" '
    return f'{html}{pen}="#777"/><polyline points="{line}" {pen}="#1F84C4"/></svg>'
