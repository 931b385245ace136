"""Measure an engine's speed, and show it beside that of others.

The rules: the same prompts and the same number of new tokens for everyone, a warm-up
that is not counted, several repeats of which the spread is kept.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from .charts import Panel, show_table

# What `python -m tools.compare_engines` recorded lies beside the notebooks.
RECORDED = Path(__file__).resolve().parent.parent / "notebooks" / "figures"
_WORKLOAD = "{prompt_tokens} prompt and {max_tokens} new tokens; of different lengths: "
_WORKLOAD += "{mixed_prompt[0]:,} to {mixed_prompt[1]:,} and {mixed_answer[0]:,} to "
_WORKLOAD += "{mixed_answer[1]:,}"
Repeats = Mapping[int, Sequence[float]]  # By batch size; a value for each repeat.


@dataclass(frozen=True)
class EngineFigures:
    """What one engine did on one device; None or empty is what was not measured.

    `tokens_per_second` are new tokens of the whole batch, `ttft_seconds` seconds to the
    first token of all its prompts. `mixed` is tokens per second by number of prompts of
    different lengths, and `limit` if reading weights and KV cache from the device's
    memory were all that takes time. The load took `load_seconds` and `memory_mib`.
    """

    engine: str
    device: str
    tokens_per_second: Repeats
    ttft_seconds: Repeats
    load_seconds: float | None = None
    memory_mib: float | None = None
    precision: str = ""  # Of the weights, such as "16-bit"; "" where all have the same.
    mixed: Repeats = field(default_factory=dict)
    limit: Mapping[int, float] = field(default_factory=dict)
    workload: str = ""  # The lengths of prompts and answers, in words.

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
    generate: Callable[[Sequence[Any], int], Sequence[Sequence[int]]],
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

    `generate(prompts, max_tokens)` has to return exactly `max_tokens` new token ids of
    each prompt, or answers of different length would be compared. A batch larger than
    `prompts` takes them in turn again. Each batch runs once more with one new token,
    for the time to the first. Raises `ValueError` for another number of tokens, for no
    prompts, and for `repeats` or a batch size below 1.
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
                asked = f"{engine} was asked for {len(batch)} x {tokens} tokens"
                found = f"returned {lengths}: switch off its end-of-text token"
                raise ValueError(f"{asked} and {found}")
        return seconds[1:]  # The first one is the warm-up.

    throughput, ttft = {}, {}
    for size in batch_sizes:
        batch = list(islice(cycle(prompts), size))
        throughput[size] = [size * max_tokens / one for one in timed(batch, max_tokens)]
        ttft[size] = timed(batch, 1)
    return EngineFigures(engine, device, throughput, ttft, load_seconds, memory_mib)


def load_figures(name: str, directory: Path = RECORDED) -> list[EngineFigures]:
    """Read a recorded comparison; `device` says where, when and with what it was made.

    Raises `FileNotFoundError` unless `directory` has a JSON file of this `name`.
    """

    def numbered(read: dict[str, Any]) -> dict[Any, Any]:
        """Sort by batch size, and make numbers of the sizes: JSON has them as texts."""
        sizes = sorted(map(int, read)) if all(map(str.isdigit, read)) else ()
        return {size: read[str(size)] for size in sizes} or read

    text = (directory / f"{name}.json").read_text("utf-8")
    recorded = json.loads(text, object_hook=numbered)
    versions = ", ".join(f"{key} {v}" for key, v in recorded["versions"].items())
    made = ", ".join(recorded[key] for key in ("device", "date", "model"))
    same = {"device": f"{made}; {versions}"}
    same["workload"] = _WORKLOAD.format(**recorded["job"])
    known = {one.name for one in fields(EngineFigures)}
    return [
        EngineFigures(**same | {key: v for key, v in record.items() if key in known})
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
    mixed = "{} prompts of different lengths"
    for key, label in (("tokens_per_second", "batch {}"), ("mixed", mixed)):
        found = [getattr(one, key) for one in engines]
        for size in sorted(set().union(*found)):
            runs = [by_size.get(size) for by_size in found]
            measured["tokens/s, " + label.format(size)] = list(map(_with_spread, runs))
    measured["memory (MiB)"] = [one.memory_mib for one in engines]
    names = [one.name for one in engines]
    rows = [{"": k} | dict(zip(names, v, strict=True)) for k, v in measured.items()]
    devices = " and ".join(dict.fromkeys(one.device for one in engines))
    workloads = dict.fromkeys(one.workload for one in engines if one.workload)
    caption = "; ".join([*workloads, f"measured on {devices}"])
    return show_table(rows, caption=caption[0].upper() + caption[1:])


def _with_spread(values: Sequence[float] | None) -> str | None:
    if values is None:
        return None
    spread = f"{min(values):,.0f} to {max(values):,.0f}" if values[1:] else "one run"
    return f"{statistics.median(values):,.0f} ({spread})"
