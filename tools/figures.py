"""Draw the README's first picture; write its tables, RESULTS.md's, the start page.

    python -m tools.figures

The first picture and the tables come from a recorded comparison; they replace what lies
between two comments of each page. The start page, which JupyterLab opens with, has the
README's table of notebooks. `tools.screenshots` takes the other pictures.
"""

import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from helpers.charts import plot_throughput
from helpers.speed import EngineFigures, load_figures

from . import cards

ROOT = Path(__file__).resolve().parent.parent
RECORDED = "h200"
PICTURE = ".github/throughput.png"
# At most five lines, of which none hides another.
DRAWN = (
    "transformers generate, 16-bit",
    "transformers generate_batch, 16-bit",
    "Unsloth fast_generate, 16-bit",
    "Unsloth fast_generate, 4-bit",
    "vLLM, bare, FP8",
)
START_PAGE = ROOT / "notebooks" / "00_start_here.md"
BEGIN, END = "<!-- `make figures` writes this {}: -->", "<!-- Up to here. -->"


_TEXT = """\
# Start here

Click a notebook. It opens beside this page; **Run > Run All Cells** runs it from the
top. The kernel then stays for the exercises. It ends ten minutes after the last cell,
at once when you run the last cell again, or when the next notebook needs its memory.
The square button in the toolbar stops what is running. The contents are on the right.

{table}

[01](01_environment_verification.ipynb) says what this machine can do and what to fix.
The [glossary](glossary.md) explains the words of the field. The rest is in the
[README](../README.md): choosing a model, recipes to copy, and what to do when something
goes wrong. `make notebooks` makes web pages of all that is here: `_build/index.html`.
"""


def table(figures: Sequence[EngineFigures]) -> list[str]:
    """Write median tokens per second as Markdown, with a row for each engine."""
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
    """Return the picture as Markdown, its figures as its text, and the workload."""
    device = figures[0].device.partition(";")[0]
    return [
        f"![{plot_throughput(*_drawn(figures))}]({PICTURE})",
        "",
        f"{figures[0].workload.partition(';')[0]}, on {device}.",
    ]


def speeds(figures: Sequence[EngineFigures]) -> list[str]:
    """Return the table of speeds, and where they were measured."""
    one = figures[0]
    return [*table(figures), "", f"{one.workload}. Measured on {one.device}."]


def your_card(_: Sequence[EngineFigures]) -> list[str]:
    """Return the table of cards, from their own recorded figures."""
    return cards.table()


# Which lines belong where, by page and by the word in the comment.
SECTIONS = {
    ("README.md", "picture"): picture,
    ("README.md", "table"): your_card,
    ("RESULTS.md", "table"): speeds,
}


def _drawn(figures: Sequence[EngineFigures]) -> list[EngineFigures]:
    """Choose the lines of the picture, with one limit for all of them."""
    chosen = [one for one in figures if one.name in DRAWN]
    return [
        one if one.precision == "16-bit" else replace(one, limit={}) for one in chosen
    ]


def between(page: str, word: str) -> tuple[str, str, str]:
    """Return the page before, within and after a section; ValueError if it has none."""
    start = BEGIN.format(word)
    before, begin, rest = page.partition(f"{start}\n")
    within, end, after = rest.partition(f"\n{END}")
    if not begin or not end:
        raise ValueError(f"the page has no lines {start!r} and {END!r}")
    return before + begin, within, end + after


def start_page(readme: str) -> str:
    """Make the start page: a README's table of notebooks, linked from their folder.

    Raises:
        ValueError: the README has no table whose first row is a link to a notebook.
    """
    table = re.search(r"^\| notebook \|.*\n(?:\|.*\n)+", readme, re.MULTILINE)
    if table is None:
        raise ValueError("the README has no table that begins with | notebook |")
    return _TEXT.format(table=table[0].replace("](notebooks/", "](").rstrip())


def main() -> int:
    figures = load_figures(RECORDED)
    for (name, word), write in SECTIONS.items():
        page = ROOT / name
        before, _, after = between(page.read_text("utf-8"), word)
        page.write_text(before + "\n".join(write(figures)) + after, "utf-8")
    (ROOT / PICTURE).write_bytes(plot_throughput(*_drawn(figures)).png())
    START_PAGE.write_text(start_page((ROOT / "README.md").read_text("utf-8")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
