"""What a batch was like: how its answers ended, how long they are, and how fast.

In goes the file that `run_batch` wrote, finished or not; out comes a summary of it.
"""

import os
from array import array
from collections import Counter
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from ...charts import Chart, Panel, new_axes, show_table
from .journal import read_records

_MOST_BARS, _FEWEST_WINDOWS = 30, 4
_LENGTHS = ("thinking_tokens", "response_tokens", "completion_tokens")


@dataclass(frozen=True, repr=False)
class BatchSummary:
    """The records of a batch in figures; in a notebook a table and a chart.

    Prompts neither `answered` nor `errors` have no whole answer. `seconds` go from the
    start of each run to its last record; they and the speed are 0 without a start.
    """

    output: str
    prompts: int = 0
    answered: int = 0
    thinking_unfinished: int = 0
    answer_cut_short: int = 0
    errors: int = 0
    asked_more_than_once: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    tokens_per_second: float = 0.0
    _series: Any = field(default=None, compare=False)  # what `plot` draws

    def __repr__(self) -> str:
        return self._table().text

    def _repr_html_(self) -> str:
        return self._table()._repr_html_() + self.plot()._repr_html_()

    def _table(self) -> Panel:
        facts = {k: v for k, v in vars(self).items() if isinstance(v, int | float)}
        rows = [{"of the batch": k.replace("_", " "), "": v} for k, v in facts.items()]
        return show_table(rows, caption=self.output.rpartition("/")[2])

    def plot(self) -> Chart:
        """Draw lengths of thinking and answer, and the speed over the time of work.

        Tokens count where their answer ends, so a window is twice the longest wait.
        """
        import numpy as np

        *lengths, tokens, worked = self._series
        lengths = [part[tokens > 0] for part in lengths]  # Errors have no tokens.
        longest = np.diff(np.sort(worked), prepend=0).max(initial=0)
        windows = min(_MOST_BARS, int(self.seconds / (2 * longest))) if longest else 0
        panels = 1 + (windows >= _FEWEST_WINDOWS)
        axes = new_axes(10 * panels / 3, 2.8, columns=panels, squeeze=False)[0]
        axes[0].hist(lengths, _MOST_BARS, label=["thinking", "answer"])
        axes[0].set(xlabel="tokens", ylabel="prompts", title="Length")
        axes[0].legend()
        for speed in axes[1:]:
            sums, edges = np.histogram(worked, windows, (0, self.seconds), None, tokens)
            speed.stairs(sums / np.diff(edges), edges, linewidth=1.5)
            speed.set(xlabel="seconds", ylabel="tokens per second", title="Speed")
            speed.set_ylim(bottom=0)
        thinking, answer = (part.max(initial=0) for part in lengths)
        words = f"{self.prompts:,} prompts, {self.answered:,} answered; at most "
        words += f"{thinking:.0f} tokens of thinking and {answer:.0f} of answer; "
        words += f"{self.tokens_per_second:,.0f} tokens per second."
        return Chart(axes[0].figure, words)


def summarise(output: str | PathLike) -> BatchSummary:
    """Sum up what `run_batch` wrote to `output`. Raises `OSError` without that file."""
    unfinished = os.path.expanduser(f"{output}.jsonl")  # Parquet can't be appended to.
    import numpy as np

    counts, numbers = Counter[str](), array("d")
    for record in read_records(unfinished if os.path.exists(unfinished) else output):
        cut = record["finish_reason"] == "length"
        answers = record["response"] is not None
        found = {"prompts": 1, "asked_more_than_once": record["tries"] > 1}
        found |= {"answered": answers and not cut, "answer_cut_short": answers and cut}
        found |= {"errors": bool(record["error"])}
        found |= {k: record[k] for k in ("prompt_tokens", "completion_tokens")}
        counts.update(found, thinking_unfinished=cut and not answers)
        numbers.extend(record[name] for name in (*_LENGTHS, "started", "time"))
    *lengths, starts, times = np.reshape(numbers, (-1, 5)).T
    starts = np.where(starts, starts, times)
    since = np.maximum(times - starts, 0)
    runs, run = np.unique(starts, return_inverse=True)
    lasted = np.zeros(len(runs) + 1)
    np.maximum.at(lasted, run + 1, since)
    worked = since + np.cumsum(lasted)[run]  # Without the pauses between runs.
    seconds = float(worked.max(initial=0))
    speed = counts["completion_tokens"] / seconds if seconds else 0.0
    figures = {name: int(count) for name, count in counts.items()}
    figures |= {"seconds": seconds, "tokens_per_second": speed}
    return BatchSummary(str(output), **figures, _series=(*lengths, worked))
