"""Tables and charts that say the same as a page, in a terminal and as a picture."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A grey that both white paper and a dark page's black leave readable (4.5 and 4.2 : 1).
_INK = "#777777"
# Okabe and Ito's, which colour-blind readers tell apart as well.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")


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


def new_axes(width: float, height: float, columns: int = 1, **grid: Any) -> Any:
    """Empty axes for a `Chart`, all in one style; an array of them for `columns`.

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
    sign in a title or a label is one, and begins no formula.
    """

    def __init__(self, figure: "Figure", text: str) -> None:
        self.figure = figure
        self.text = text

    def png(self) -> bytes:
        """The picture, as a PNG file's bytes."""
        _suit_any_page(self.figure)
        picture = io.BytesIO()
        self.figure.savefig(picture, format="png", dpi=110, bbox_inches="tight")
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

    figure.patch.set_alpha(0)
    ticks: set[Any] = set()
    for axes in figure.axes:
        axes.patch.set_alpha(0)
        if legend := axes.get_legend():
            legend.set_frame_on(False)
        axes.tick_params(which="both", colors=_INK)
        axes.spines[:].set_edgecolor(_INK)
        ticks.update(axes.get_xticklabels(which="both"))
        ticks.update(axes.get_yticklabels(which="both"))
    for text in figure.findobj(Text):
        if text.get_color() == "black":
            text.set_color(_INK)
        if text not in ticks:  # Matplotlib writes powers as formulas.
            text.set_parse_math(False)


def show_table(
    rows: Iterable[Mapping[str, object]], *, caption: str | None = None
) -> Panel:
    """A table of rows that share their keys; numbers go to the right.

    `rows` may be a DataFrame of pandas as well.

    Raises `ValueError` for no rows and `KeyError` for a row that lacks a column.
    """
    if hasattr(rows, "to_dict"):
        rows = rows.to_dict("records")
    rows = list(rows)
    if not rows:
        raise ValueError("a table needs at least one row")
    columns = list(rows[0])
    values = [[_plain(row[column]) for column in columns] for row in rows]
    right = [
        any(isinstance(value, Real) for value in column)
        for column in zip(*values, strict=True)
    ]
    cells = [[_cell(value) for value in line] for line in values]
    heads = [str(column) for column in columns]
    html = html_table(
        [escape(head) for head in heads],
        [[escape(cell) for cell in line] for line in cells],
        right=right,
        caption=escape(caption or ""),
    )
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    lines = [caption] if caption else []
    for line in [heads, *cells]:
        padded = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(line, widths, right, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return Panel(html, "\n".join(lines))


def html_table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Sequence[bool] | None = None,
    caption: str = "",
) -> str:
    """An HTML table; heads, cells and caption are HTML already.

    The columns that `right` says go to the right. The first cell of a row is its
    heading, for readers who hear the table.
    """
    sides = ["right" if one else "left" for one in right or [False] * len(heads)]
    style = "padding:0.3em 0.5em;vertical-align:top;text-align:"

    def line(cells: Sequence[str], tag: str, first: str) -> str:
        tags = [first] + [tag] * (len(cells) - 1)
        return "".join(
            f'<{tag} style="{style}{side}">{cell}</{tag[:2]}>'
            for tag, cell, side in zip(tags, cells, sides, strict=True)
        )

    column, row_head = 'th scope="col"', 'th scope="row"'
    body = "".join(f"<tr>{line(row, 'td', row_head)}</tr>" for row in rows)
    title = f'<caption style="text-align:left">{caption}</caption>' if caption else ""
    return (
        f'<table style="border-collapse:collapse">{title}'
        f"<thead><tr>{line(heads, column, column)}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def _plain(value: Any) -> Any:
    """A number of NumPy or a tensor as Python's own."""
    return value.item() if callable(getattr(value, "item", None)) else value


def _cell(value: object) -> str:
    if value is None or value != value:  # NaN: what a DataFrame has for None.
        return "-"
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, Integral):
        return f"{value:,}"
    if isinstance(value, Real):
        return f"{value:,.2f}" if abs(value) < 10 else f"{value:,.0f}"
    return str(value)
