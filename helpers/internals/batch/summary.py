"""What a batch was like: how its answers ended, how long they are, and how fast.

In goes the file that `run_batch` wrote, finished or not, with its job. Out comes a
summary that shows itself as a table and a chart. This module knows nothing of engines.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING

from ...charts import COLOURS, Chart, Panel, new_axes, show_table
from .journal import read_records, read_starts

if TYPE_CHECKING:
    import numpy as np

_BINS = 30  # of a histogram, at most
_FEWEST_WINDOWS = 4  # that make a curve
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
    go from each start of the job to the last record before the next one; they are 0
    where no start is known.
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
        """New tokens per second over the whole batch; 0 where no start is known."""
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
        """Draw lengths of thinking and answer, speed over time, and how they ended.

        Speed is left out where too few answers were finished one after the other, the
        ends where all are the same.
        """
        reasons, (edges, speeds) = self.finish_reasons, self._speeds
        panels = 1 + (len(reasons) > 1) + (len(speeds) >= _FEWEST_WINDOWS)
        axes = new_axes(10 * panels / 3, 2.8, columns=panels, squeeze=False)
        lengths, *others = axes[0]
        parts = {"thinking": self._thinking, "answer": self._response}
        lengths.hist(list(parts.values()), _BINS, label=list(parts))
        lengths.set(xlabel="tokens", ylabel="prompts", title="Length")
        lengths.legend()
        if len(reasons) > 1:
            ends = others.pop(0)
            ends.bar(list(reasons), list(reasons.values()), color=COLOURS[2])
            ends.set(ylabel="prompts", title="finish_reason")
        for speed in others:
            speed.stairs(speeds, edges, linewidth=1.5)
            speed.set(xlabel="seconds", ylabel="tokens per second", title="Speed")
            speed.set_ylim(bottom=0)
        how = ", ".join(f"{n:,} {name}" for name, n in reasons.items())
        return Chart(
            lengths.figure,
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
        counts["answered"] += bool(record["complete"]) and reason != "length"
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
    worked = _worked(times, read_starts(output))
    return BatchSummary(
        output=str(output),
        **{name: counts[name] for name in _COUNTED},
        seconds=float(max(worked, default=0.0)),
        finish_reasons=dict(reasons.most_common()),
        _thinking=thinking,
        _response=response,
        _speeds=_speeds(worked, tokens),
    )


def _worked(times: Iterable[float], starts: list[float]) -> "np.ndarray":
    """Return the seconds of work until each time, without the pauses between runs.

    A run goes from its start to the last record before the next start. Without
    `starts` there is no time that is known, and all are 0.
    """
    import numpy as np

    times = np.asarray(times, float)
    if not starts:
        return np.zeros(len(times))
    starts = np.sort(starts)
    run = np.searchsorted(starts, times, side="right").clip(1) - 1
    since = np.maximum(times - starts[run], 0)
    lasted = [since[run == number].max(initial=0) for number in range(len(starts))]
    return since + np.concatenate([[0], np.cumsum(lasted)])[run]


def _speeds(
    worked: "np.ndarray", tokens: Iterable[int]
) -> tuple[list[float], list[float]]:
    """Return the edges of windows, in seconds of work, and the tokens/s in each.

    Tokens count where their answer ends, so a window is twice as long as the longest
    wait for one.
    """
    import numpy as np

    waits = np.diff(np.sort(worked), prepend=0)
    longest = waits.max(initial=0)
    windows = min(_BINS, int(worked.max(initial=0) / (2 * longest))) if longest else 0
    if windows < 1:
        return [], []
    edges = np.linspace(0, worked.max(), windows + 1)
    sums = np.bincount(np.searchsorted(edges[1:], worked), tokens, windows)
    return edges.tolist(), (sums / np.diff(edges)).tolist()
