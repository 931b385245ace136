"""Draw the README's first picture and its table of speeds from a recorded comparison.

    python -m tools.figures

The comparison is notebooks/figures/h100.json, as `tools.compare_engines` wrote it.
"""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from helpers.charts import plot_throughput
from helpers.speed import EngineFigures, load_figures

ROOT = Path(__file__).resolve().parent.parent
RECORDED = "h100"
PICTURE = ".github/throughput.png"
BEGIN, END = "<!-- Written by `make figures`: -->", "<!-- Up to here. -->"


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


def section(figures: Sequence[EngineFigures]) -> str:
    """What the README says between `BEGIN` and `END`."""
    chart = plot_throughput(*_drawn(figures))
    lines = [f"![{chart}]({PICTURE})", "", *table(figures), ""]
    lines.append(f"Measured on {figures[0].device}.")
    return "\n".join(lines)


def _drawn(figures: Sequence[EngineFigures]) -> list[EngineFigures]:
    return [one for one in figures if one.precision == "16-bit"]


def between(readme: str) -> tuple[str, str, str]:
    """The README before, within and after the section; ValueError if it has none."""
    before, begin, rest = readme.partition(f"{BEGIN}\n")
    within, end, after = rest.partition(f"\n{END}")
    if not begin or not end:
        raise ValueError(f"README.md has no lines {BEGIN!r} and {END!r}")
    return before + begin, within, end + after


def main() -> int:
    figures = load_figures(RECORDED)
    readme = ROOT / "README.md"
    before, _, after = between(readme.read_text("utf-8"))
    readme.write_text(before + section(figures) + after, "utf-8")
    picture = plot_throughput(*_drawn(figures)).png()
    (ROOT / PICTURE).write_bytes(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
