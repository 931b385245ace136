"""Draw the README's first picture, and write the tables of README and RESULTS.md.

    python -m tools.figures

They come from notebooks/figures/h100.json, as `tools.compare_engines` wrote it, and
replace what lies between two comments of each page.
"""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from helpers.charts import plot_throughput
from helpers.speed import EngineFigures, load_figures

from . import cards

ROOT = Path(__file__).resolve().parent.parent
RECORDED = "h100"
PICTURE = ".github/throughput.png"
BEGIN, END = "<!-- `make figures` writes this {}: -->", "<!-- Up to here. -->"


def table(figures: Sequence[EngineFigures]) -> list[str]:
    """Median tokens per second as Markdown: a row for each engine."""
    sizes = sorted({size for one in figures for size in one.tokens_per_second})
    counts = sorted({count for one in figures for count in one.mixed})
    columns = [str(size) for size in sizes] + [f"{count} mixed" for count in counts]
    lines = [
        f"| tokens per second, prompts at once: | {' | '.join(columns)} |",
        f"|---|{'---:|' * len(columns)}",
    ]
    for one in figures:
        measured = [one.tokens_per_second.get(size) for size in sizes]
        measured += [one.mixed.get(count) for count in counts]
        cells = [f"{statistics.median(m):,.0f}" if m else "-" for m in measured]
        lines.append(f"| {one.name} | {' | '.join(cells)} |")
    return lines


def picture(figures: Sequence[EngineFigures]) -> list[str]:
    """Return the picture as Markdown, with its figures as the text in its place."""
    return [f"![{plot_throughput(*_drawn(figures))}]({PICTURE})"]


def speeds(figures: Sequence[EngineFigures]) -> list[str]:
    """Return the table of speeds, and where they were measured."""
    return [*table(figures), "", f"Measured on {figures[0].device}."]


# Which lines belong where, by page and by the word in the comment.
SECTIONS = {
    ("README.md", "picture"): picture,
    ("README.md", "table"): cards.table,
    ("RESULTS.md", "table"): speeds,
}


def _drawn(figures: Sequence[EngineFigures]) -> list[EngineFigures]:
    return [one for one in figures if one.precision == "16-bit"]


def between(page: str, word: str) -> tuple[str, str, str]:
    """Return the page before, within and after a section; ValueError if it has none."""
    start = BEGIN.format(word)
    before, begin, rest = page.partition(f"{start}\n")
    within, end, after = rest.partition(f"\n{END}")
    if not begin or not end:
        raise ValueError(f"the page has no lines {start!r} and {END!r}")
    return before + begin, within, end + after


def main() -> int:
    figures = load_figures(RECORDED)
    for (name, word), write in SECTIONS.items():
        page = ROOT / name
        before, _, after = between(page.read_text("utf-8"), word)
        page.write_text(before + "\n".join(write(figures)) + after, "utf-8")
    (ROOT / PICTURE).write_bytes(plot_throughput(*_drawn(figures)).png())
    return 0


if __name__ == "__main__":
    sys.exit(main())
