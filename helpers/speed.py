"""Measure an engine's speed, and show it beside that of others.

The rules: the same prompts and the same number of new tokens for everyone, a warm-up
that is not counted, several repeats of which the spread is kept.
"""

import itertools
import json
import statistics
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .charts import COLOURS, Chart, Panel, new_axes, show_table

# Takes prompts and a number of new tokens, returns the new token ids of each prompt.
Generate = Callable[[Sequence[Any], int], Sequence[Sequence[int]]]
# What `python -m tools.compare_engines` recorded lies beside the notebooks.
RECORDED = Path(__file__).resolve().parent.parent / "notebooks" / "figures"


@dataclass(frozen=True)
class EngineFigures:
    """What one engine did on one device.

    `tokens_per_second`: by batch size (prompts at once), new tokens of the whole batch
    per second, one value per repeat.
    `ttft_seconds`: by batch size, seconds to the first token of all its prompts.
    `load_seconds`: seconds of the load, or None where it was not measured.
    `memory_mib`: MiB that the load added, or None.
    `precision`: of the weights, "16-bit" or "4-bit"; empty where all have the same.
    `mixed`: by number of prompts, new tokens per second for prompts and answers of
    different lengths.
    `limit`: by batch size, tokens per second if reading weights and KV cache from the
    device's memory were all that takes time.
    """

    engine: str
    device: str
    tokens_per_second: Mapping[int, tuple[float, ...]]
    ttft_seconds: Mapping[int, tuple[float, ...]]
    load_seconds: float | None = None
    memory_mib: float | None = None
    precision: str = ""
    mixed: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    limit: Mapping[int, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The engine, with the precision of its weights where that is known."""
        return f"{self.engine}, {self.precision}" if self.precision else self.engine

    @property
    def ttft(self) -> float:
        """Median seconds to the first token, at the smallest batch."""
        return statistics.median(self.ttft_seconds[min(self.ttft_seconds)])

    def throughput(self, batch_size: int) -> float:
        """Median tokens per second at `batch_size`; KeyError if it was not measured."""
        return statistics.median(self.tokens_per_second[batch_size])


def measure_engine(
    engine: str,
    generate: Generate,
    prompts: Sequence[Any],
    *,
    device: str,
    batch_sizes: Sequence[int] = (1, 4, 16),
    max_tokens: int = 64,
    repeats: int = 3,
    load_seconds: float | None = None,
    memory_mib: float | None = None,
) -> EngineFigures:
    """Time `generate` on batches of each size, `repeats` times after a warm-up.

    `generate(prompts, max_tokens)` has to return each prompt's new token ids, and to
    go on for `max_tokens` of them whatever the model says, or answers of different
    length would be compared. A batch larger than `prompts` takes them in turn again.
    Each batch runs once more with one new token, for the time to the first.

    Raises `ValueError` for no prompts, for `repeats` or a batch size below 1, and for
    a `generate` that returns fewer tokens than it was asked for.
    """
    if not prompts or repeats < 1 or min(batch_sizes, default=0) < 1:
        raise ValueError("prompts, repeats and batch sizes must be at least one")

    def timed(batch: Sequence[Any], tokens: int) -> list[float]:
        seconds = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            completions = generate(batch, tokens)
            seconds.append(time.perf_counter() - start)
            lengths = [len(token_ids) for token_ids in completions]
            if lengths != [tokens] * len(batch):
                raise ValueError(
                    f"{engine} was asked for {len(batch)} x {tokens} tokens and "
                    f"returned {lengths}: switch off its end-of-text token"
                )
        return seconds[1:]  # The first one is the warm-up.

    throughput, ttft = {}, {}
    for size in batch_sizes:
        batch = list(itertools.islice(itertools.cycle(prompts), size))
        seconds = timed(batch, max_tokens)
        throughput[size] = tuple(size * max_tokens / one for one in seconds)
        ttft[size] = tuple(timed(batch, 1))
    return EngineFigures(engine, device, throughput, ttft, load_seconds, memory_mib)


def load_figures(name: str, directory: Path = RECORDED) -> list[EngineFigures]:
    """The engines of a recorded comparison; `device` says where, when and with what.

    `name` is that of a JSON file in `directory`, without its ending. Raises
    `FileNotFoundError`, which names those that are there.
    """
    try:
        recorded = json.loads((directory / f"{name}.json").read_text("utf-8"))
    except FileNotFoundError as error:
        there = ", ".join(sorted(path.stem for path in directory.glob("*.json")))
        raise FileNotFoundError(
            f"no {name}.json in {directory}, which has {there or 'none'}"
        ) from error
    versions = ", ".join(f"{key} {v}" for key, v in recorded["versions"].items())
    device = (
        f"{recorded['device']}, {recorded['date']}, {recorded['model']}; {versions}"
    )

    def by_size(record: Mapping[str, Any], key: str) -> dict[int, tuple[float, ...]]:
        return {int(n): tuple(values) for n, values in record.get(key, {}).items()}

    return [
        EngineFigures(
            engine=record["engine"],
            device=device,
            tokens_per_second=by_size(record, "tokens_per_second"),
            ttft_seconds=by_size(record, "ttft_seconds"),
            load_seconds=record.get("load_seconds"),
            memory_mib=record.get("memory_mib"),
            precision=record["precision"],
            mixed=by_size(record, "mixed"),
            limit={int(n): value for n, value in record.get("limit", {}).items()},
        )
        for record in recorded["engines"]
        if record.get("tokens_per_second")
    ]


def engine_table(*engines: EngineFigures) -> Panel:
    """Load, first token, throughput and memory, with a column for each engine.

    Tokens/s are medians, with the slowest and the fastest of the repeats; "-" is what
    was not measured. Engines are told apart by their names.
    """
    measured: dict[str, list[str]] = {
        "load (s)": [_rounded(one.load_seconds, 1) for one in engines],
        "first token (ms)": [_figure(1000 * one.ttft) for one in engines],
    }
    for size in _sizes(one.tokens_per_second for one in engines):
        measured[f"tokens/s, batch {size}"] = [
            _median_and_spread(one.tokens_per_second.get(size)) for one in engines
        ]
    for count in _sizes(one.mixed for one in engines):
        measured[f"tokens/s, {count} prompts of different lengths"] = [
            _median_and_spread(one.mixed.get(count)) for one in engines
        ]
    measured["memory (MiB)"] = [_rounded(one.memory_mib, 0) for one in engines]
    names = [one.name for one in engines]
    rows = [
        {"": what, **dict(zip(names, values, strict=True))}
        for what, values in measured.items()
    ]
    devices = dict.fromkeys(one.device for one in engines)
    return show_table(rows, caption=f"Measured on {' and '.join(devices)}")


def _sizes(measured: Any) -> list[int]:
    return sorted({size for by_size in measured for size in by_size})


def _median_and_spread(values: Sequence[float] | None) -> str:
    if values is None:
        return "-"
    median = statistics.median(values)
    return f"{median:,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def _rounded(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _figure(value: float) -> str:
    return f"{value:,.1f}" if value < 10 else f"{value:,.0f}"


def plot_lines(
    lines: Mapping[str, Mapping[int, Sequence[float]]], *, x: str, y: str
) -> Chart:
    """Measurements over sizes, on logarithmic axes: a line for each name.

    Each size has one or more values: the line goes through the medians, bars show the
    spread. `x` and `y` say what is drawn, with units.
    """
    axes = new_axes(7, 3.6)
    for name, by_size in lines.items():
        _draw(axes, by_size, label=name)
    _finish(axes, "", x, _sizes(lines.values()))
    axes.set_ylabel(y)
    axes.legend()
    facts = []
    for name, by_size in lines.items():
        medians = [_figure(statistics.median(values)) for values in by_size.values()]
        facts.append(f"{name}: {medians[0]} at {min(by_size)}, ")
        facts[-1] += f"{medians[-1]} at {max(by_size)}"
    return Chart(axes.figure, f"{y} by {x}. {'; '.join(facts)}.")


def plot_throughput(*engines: EngineFigures) -> Chart:
    """Throughput and time to the first token over batch size, on logarithmic axes.

    An engine keeps its colour, 4-bit weights are dashed, bars show the spread of the
    repeats. Two lines in grey stand for what can't be passed: as many times the fastest
    single prompt as there are prompts, and where it is known `EngineFigures.limit`.
    Each device has a row of its own, with the same axes.
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
    sizes = _sizes(one.tokens_per_second for one in engines)
    for device, (speed, first) in zip(devices, rows, strict=True):
        here = [one for one in engines if one.device == device]
        for one in here:
            style = {"color": colours[one.engine], "label": one.name}
            style["linestyle"] = "--" if one.precision == "4-bit" else "-"
            _draw(speed, one.tokens_per_second, **style)
            _draw(first, one.ttft_seconds, scale=1000, **style)
        _draw_bounds(speed, here)
        where = f": {device.partition(',')[0]}" if len(devices) > 1 else ""
        batch = "prompts at once (batch size)"
        _finish(speed, f"new tokens per second{where}", batch, sizes)
        _finish(first, f"time to the first token (ms){where}", batch, sizes)
        speed.legend(fontsize=8)
    facts = [
        f"{one.name}: {max(map(one.throughput, one.tokens_per_second)):,.0f} tokens/s "
        f"at best, first token after {_figure(1000 * one.ttft)} ms"
        for one in engines
    ]
    return Chart(figure, "Throughput by batch size. " + "; ".join(facts) + ".")


def _finish(axes: Any, title: str, xlabel: str, sizes: Sequence[int]) -> None:
    """Logarithmic axes with the sizes as they are, and the numbers in full."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_title(title, fontsize=10)
    axes.set_xlabel(xlabel)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _draw(
    axes: Any, by_size: Mapping[int, Sequence[float]], *, scale: float = 1, **style: Any
) -> None:
    """A line through the medians, with bars from the lowest to the highest value."""
    medians = [scale * statistics.median(values) for values in by_size.values()]
    spread = [
        [m - scale * min(v) for m, v in zip(medians, by_size.values(), strict=True)],
        [scale * max(v) - m for m, v in zip(medians, by_size.values(), strict=True)],
    ]
    axes.errorbar(list(by_size), medians, spread, marker="o", capsize=3, **style)


def _draw_bounds(axes: Any, engines: Sequence[EngineFigures]) -> None:
    sizes = _sizes(one.tokens_per_second for one in engines)
    single = max(
        one.throughput(sizes[0]) for one in engines if sizes[0] in one.tokens_per_second
    )
    ideal = [single * size / sizes[0] for size in sizes]
    label = "ideal: twice the prompts, twice the tokens"
    axes.plot(sizes, ideal, ":", color="#999999", label=label)
    for precision, limit in {
        one.precision: one.limit for one in engines if one.limit
    }.items():
        style = "--" if precision == "4-bit" else "-"
        label = f"the memory's bandwidth allows, {precision}".removesuffix(", ")
        axes.plot(
            list(limit), list(limit.values()), style, color="#999999", label=label
        )
