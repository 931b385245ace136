"""What a batch was like: how its answers ended, how long they are, and how fast."""

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike

from ...charts import COLOURS, Chart, Panel, new_axes, show_table
from .journal import read_records

_PAUSE = 60.0  # A gap of more seconds than this is a stop between two runs.
_BINS = 30  # of a histogram, at most
# The fields of the table with their labels: counted, and computed from that.
_COUNTED = {
    "prompts": "prompts",
    "answered": "answered",
    "unfinished": "thinking unfinished",
    "cut_short": "answer cut short",
    "errors": "errors",
    "retried": "asked more than once",
    "prompt_tokens": "prompt tokens",
    "completion_tokens": "completion tokens",
}
_COMPUTED = {"seconds": "seconds", "tokens_per_second": "tokens per second"}


@dataclass(frozen=True, repr=False)
class BatchSummary:
    """The records of a batch in figures; in a notebook a table and a chart.

    `output` is the file that holds them. Of the `prompts`, `answered` have a complete
    answer; `unfinished` ran out of tokens while thinking, `cut_short` in the answer,
    and `errors` could not be answered. `retried` were asked more than once. `seconds`
    go from the first record to the last one, without the stops between.
    """

    output: str
    prompts: int
    answered: int
    unfinished: int
    cut_short: int
    errors: int
    retried: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    finish_reasons: Mapping[str, int]
    _thinking: array = field(compare=False)
    _response: array = field(compare=False)
    _speeds: tuple[list[float], list[float]] = field(compare=False)

    @property
    def tokens_per_second(self) -> float:
        """New tokens per second over the whole batch."""
        return self.completion_tokens / self.seconds if self.seconds else 0.0

    def __repr__(self) -> str:
        return self._table().text

    def _repr_html_(self) -> str:
        return self._table()._repr_html_() + self.plot()._repr_html_()

    def _table(self) -> Panel:
        rows = [
            {"of the batch": words, "": getattr(self, name)}
            for name, words in {**_COUNTED, **_COMPUTED}.items()
        ]
        return show_table(rows, caption=self.output.rpartition("/")[2])

    def plot(self) -> Chart:
        """Draw lengths of thinking and answer, how they ended, and speed over time."""
        lengths, ends, speed = new_axes(10, 2.8, columns=3)
        parts = {"thinking": self._thinking, "answer": self._response}
        lengths.hist(list(parts.values()), _BINS, label=list(parts))
        lengths.set(xlabel="tokens", ylabel="prompts", title="Length")
        lengths.legend()
        reasons = self.finish_reasons
        ends.bar(list(reasons), list(reasons.values()), color=COLOURS[2])
        ends.set(ylabel="prompts", title="finish_reason")
        speed.step(*self._speeds, where="mid")
        speed.set(xlabel="seconds", ylabel="tokens per second", title="Speed")
        speed.set_ylim(bottom=0)
        how = ", ".join(f"{n:,} {name}" for name, n in self.finish_reasons.items())
        return Chart(
            speed.figure,
            f"{self.prompts:,} prompts: {how}; at most {max(self._thinking, default=0)}"
            f" tokens of thinking and {max(self._response, default=0)} of answer; "
            f"{self.tokens_per_second:,.0f} tokens per second.",
        )


def summarise(output: str | PathLike) -> BatchSummary:
    """Sum up what `run_batch` wrote to `output`, finished or not.

    Raises `OSError` where there is no such file.
    """
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    thinking, response, times, tokens = (array(kind) for kind in "lldl")
    for record in read_records(output):
        reason = record["finish_reason"]
        counts["prompts"] += 1
        counts["answered"] += record["complete"] and reason != "length"
        counts["unfinished"] += reason == "length" and record["response"] is None
        counts["cut_short"] += reason == "length" and record["response"] is not None
        counts["errors"] += record["error"] is not None
        counts["retried"] += record["tries"] > 1
        counts["prompt_tokens"] += record["prompt_tokens"]
        counts["completion_tokens"] += record["completion_tokens"]
        reasons[reason or "error"] += 1
        if record["error"] is None:
            thinking.append(record["thinking_tokens"])
            response.append(record["response_tokens"])
        times.append(record["time"])
        tokens.append(record["completion_tokens"])
    seconds, speeds = _speeds(times, tokens)
    return BatchSummary(
        output=str(output),
        **{name: counts[name] for name in _COUNTED},
        seconds=seconds,
        finish_reasons=dict(reasons.most_common()),
        _thinking=thinking,
        _response=response,
        _speeds=speeds,
    )


def _speeds(
    times: Iterable[float], tokens: Iterable[int]
) -> tuple[float, tuple[list[float], list[float]]]:
    """Seconds of work, and the speed in each part of them: middles and tokens/s."""
    import numpy as np

    times = np.asarray(times, float)
    order = np.argsort(times)
    steps = np.diff(times[order], prepend=times[order][:1])
    steps[steps > _PAUSE] = 0.0
    elapsed = np.cumsum(steps)
    seconds = float(elapsed[-1]) if len(elapsed) else 0.0
    if not seconds:
        return 0.0, ([], [])
    made = np.asarray(tokens, float)[order]
    bins = min(_BINS, 1 + int(len(times) ** 0.5))
    sums, edges = np.histogram(elapsed, bins, weights=made)
    width = seconds / bins
    return seconds, ((edges[:-1] + width / 2).tolist(), (sums / width).tolist())
