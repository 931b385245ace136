"""What a batch was like: how its answers ended, how long they are, and how fast.

In goes the file that `run_batch` wrote, finished or not. Out comes a summary that shows
itself as a table and a chart. This module knows nothing of engines.
"""

from array import array
from collections import Counter
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from ...charts import Chart, Panel, new_axes, show_table
from .journal import read_records

_BINS = 30  # of a histogram, at most
_FEWEST_WINDOWS = 4  # that make a curve


@dataclass(frozen=True, repr=False)
class BatchSummary:
    """The records of a batch in figures; in a notebook a table and a chart.

    `output` is the file that holds them. Of the `prompts`, `answered` have a complete
    answer, others ran out of tokens in the thinking or in the answer, and `errors`
    could not be answered. `seconds` go from the start of each run to its last record;
    they and the speed are 0 where no start is known.
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
    _lengths: Any = field(default=None, compare=False)  # of thinking and of answer
    _ends: Any = field(default=None, compare=False)  # seconds until each, its tokens

    def __repr__(self) -> str:
        return self._table().text

    def _repr_html_(self) -> str:
        return self._table()._repr_html_() + self.plot()._repr_html_()

    def _table(self) -> Panel:
        rows = [
            {"of the batch": name.replace("_", " "), "": value}
            for name, value in vars(self).items()
            if isinstance(value, int | float)
        ]
        return show_table(rows, caption=self.output.rpartition("/")[2])

    def plot(self) -> Chart:
        """Draw lengths of thinking and answer, and the speed over the time of work.

        Tokens count where their answer ends, so that a window of the speed is twice as
        long as the longest wait for one. It is left out where there are few windows.
        """
        import numpy as np

        worked, tokens = self._ends
        longest = np.diff(np.sort(worked), prepend=0).max(initial=0)
        windows = min(_BINS, int(self.seconds / (2 * longest))) if longest else 0
        panels = 1 + (windows >= _FEWEST_WINDOWS)
        axes = new_axes(10 * panels / 3, 2.8, columns=panels, squeeze=False)
        lengths, *others = axes[0]
        lengths.hist(list(self._lengths.values()), _BINS, label=list(self._lengths))
        lengths.set(xlabel="tokens", ylabel="prompts", title="Length")
        lengths.legend()
        for speed in others:
            sums, edges = np.histogram(worked, windows, (0, self.seconds), None, tokens)
            speed.stairs(sums / np.diff(edges), edges, linewidth=1.5)
            speed.set(xlabel="seconds", ylabel="tokens per second", title="Speed")
            speed.set_ylim(bottom=0)
        most = [max(found, default=0) for found in self._lengths.values()]
        return Chart(
            lengths.figure,
            f"{self.prompts:,} prompts, {self.answered:,} answered; at most {most[0]} "
            f"tokens of thinking and {most[1]} of answer; "
            f"{self.tokens_per_second:,.0f} tokens per second.",
        )


def summarise(output: str | PathLike) -> BatchSummary:
    """Sum up what `run_batch` wrote to `output`, finished or not.

    Raises `OSError` where there is no such file.
    """
    counts: Counter[str] = Counter()
    thinking, answer, starts, times, tokens = (array(kind) for kind in "llddl")
    for record in read_records(output):
        cut, response = record["finish_reason"] == "length", record["response"]
        counts.update(
            prompts=1,
            answered=bool(record["complete"]) and not cut,
            thinking_unfinished=cut and response is None,
            answer_cut_short=cut and response is not None,
            errors=record["error"] is not None,
            asked_more_than_once=record["tries"] > 1,
            prompt_tokens=record["prompt_tokens"],
            completion_tokens=record["completion_tokens"],
        )
        if record["error"] is None:
            thinking.append(record["thinking_tokens"])
            answer.append(record["response_tokens"])
        starts.append(record["started"] or record["time"])
        times.append(record["time"])
        tokens.append(record["completion_tokens"])
    worked = _worked(starts, times)
    seconds = float(worked.max(initial=0))
    return BatchSummary(
        output=str(output),
        **{name: int(count) for name, count in counts.items()},
        seconds=seconds,
        tokens_per_second=counts["completion_tokens"] / seconds if seconds else 0.0,
        _lengths={"thinking": thinking, "answer": answer},
        _ends=(worked, tokens),
    )


def _worked(starts: array, times: array) -> Any:
    """Return the seconds of work until each time, without the pauses between runs."""
    import numpy as np

    since = np.maximum(np.asarray(times) - np.asarray(starts), 0)
    runs, run = np.unique(starts, return_inverse=True)
    lasted = np.zeros(len(runs) + 1)
    np.maximum.at(lasted, run + 1, since)
    return since + np.cumsum(lasted)[run]
