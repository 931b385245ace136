"""Tables and charts that say the same as a page, in a terminal and as a picture."""

import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
