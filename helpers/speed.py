"""Measure an engine's speed, and show it beside that of others.

The rules: the same prompts and the same number of new tokens for everyone, a warm-up
that is not counted, several repeats of which the spread is kept.
"""

import itertools
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .charts import Panel, show_table

# Takes prompts and a number of new tokens, returns the new token ids of each prompt.
Generate = Callable[[Sequence[Any], int], Sequence[Sequence[int]]]
# What `python -m tools.compare_engines` recorded lies beside the notebooks.
RECORDED = Path(__file__).resolve().parent.parent / "notebooks" / "figures"
_BY_SIZE = ("tokens_per_second", "ttft_seconds", "mixed", "limit")
_WORKLOAD = (
    "{prompt_tokens} prompt and {max_tokens} new tokens; of different lengths: "
    "{mixed_prompt[0]:,} to {mixed_prompt[1]:,} and {mixed_answer[0]:,} to "
    "{mixed_answer[1]:,}"
)


@dataclass(frozen=True)
class EngineFigures:
    """What one engine did on one device.

    By batch size (prompts at once): `tokens_per_second`, new tokens of the whole batch,
    and `ttft_seconds`, seconds to the first token of all its prompts, one value per
    repeat; `limit`, tokens per second if reading weights and KV cache from the device's
    memory were all that takes time. `mixed` has tokens per second by number of prompts,
    where prompts and answers have different lengths.
    `load_seconds`, `memory_mib`: what the load took and added; None if not measured.
    `precision`: of the weights, such as "16-bit"; empty where all have the same.
    `workload`: the lengths of prompts and answers, in words.
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
    workload: str = ""

    @property
    def name(self) -> str:
        """The engine, with the precision of its weights where that is known."""
        return f"{self.engine}, {self.precision}" if self.precision else self.engine

    @property
    def ttft(self) -> float:
        """Median seconds to the first token, at the smallest batch."""
        return statistics.median(self.ttft_seconds[min(self.ttft_seconds)])

    def throughput(self, batch_size: int) -> float:
        """Return the median tokens per second; KeyError if it was not measured."""
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
            lengths = list(map(len, generate(batch, tokens)))
            seconds.append(time.perf_counter() - start)
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
    """Read a recorded comparison; `device` says where, when and with what it was made.

    `name` is that of a JSON file in `directory`, without its ending. Raises
    `FileNotFoundError` for another name.
    """
    recorded = json.loads((directory / f"{name}.json").read_text("utf-8"))
    versions = ", ".join(f"{key} {v}" for key, v in recorded["versions"].items())
    made = ", ".join(recorded[key] for key in ("device", "date", "model"))

    def by_size(record: Mapping[str, Any], key: str) -> dict[int, Any]:
        values = sorted((int(n), value) for n, value in record.get(key, {}).items())
        return {n: tuple(v) if isinstance(v, list) else v for n, v in values}

    return [
        EngineFigures(
            engine=record["engine"],
            device=f"{made}; {versions}",
            load_seconds=record.get("load_seconds"),
            memory_mib=record.get("memory_mib"),
            precision=record["precision"],
            workload=_WORKLOAD.format(**recorded["job"]),
            **{key: by_size(record, key) for key in _BY_SIZE},
        )
        for record in recorded["engines"]
        if record.get("tokens_per_second")
    ]


def engine_table(*engines: EngineFigures) -> Panel:
    """Show load, first token, throughput and memory, with a column for each engine.

    Tokens/s are medians, with the slowest and the fastest repeat, or "one run"; "-" is
    what was not measured. Engines are told apart by their names.
    """
    measured: dict[str, list[Any]] = {
        "load (s)": [one.load_seconds for one in engines],
        "first token (ms)": [1000 * one.ttft for one in engines],
    }
    for label, key in (
        ("tokens/s, batch {}", "tokens_per_second"),
        ("tokens/s, {} prompts of different lengths", "mixed"),
    ):
        found = [getattr(one, key) for one in engines]
        for size in sorted(set().union(*found)):
            runs = [by_size.get(size) for by_size in found]
            measured[label.format(size)] = list(map(_median_and_spread, runs))
    measured["memory (MiB)"] = [one.memory_mib for one in engines]
    names = [one.name for one in engines]
    rows = [
        {"": what, **dict(zip(names, v, strict=True))} for what, v in measured.items()
    ]
    devices = " and ".join(dict.fromkeys(one.device for one in engines))
    workloads = dict.fromkeys(one.workload for one in engines if one.workload)
    caption = "; ".join([*workloads, f"measured on {devices}"])
    return show_table(rows, caption=caption[0].upper() + caption[1:])


def _median_and_spread(values: Sequence[float] | None) -> str | None:
    if values is None:
        return None
    several = f"{min(values):,.0f} to {max(values):,.0f}"
    spread = several if len(values) > 1 else "one run"
    return f"{statistics.median(values):,.0f} ({spread})"
