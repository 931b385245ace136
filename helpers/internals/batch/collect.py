"""Collect a batch's results: in a list, or in a file that the same call goes on with.

In go a `Batch`, or another that has its `job`, `room` and `run`, and a `PromptSource`.
Out come the results in the prompts' order, or a file with a record for each. A bar
shows prompts, new tokens per second, and how many were cut short.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from operator import attrgetter
from pathlib import Path
from typing import Any

from .journal import as_record, open_journal
from .prompts import Prompt, larger_budget, with_budget


def answer_in_memory(batch: Any, source: Any, shown: bool) -> list[Any]:
    """Answer all prompts; an exception on the way has what was `finished`."""
    finished: list[Any] = []
    try:
        _answer(batch, source, finished.append, shown, total=len(source))
    except BaseException as error:
        error.finished = sorted(finished, key=attrgetter("index"))
        raise
    return sorted(finished, key=attrgetter("index"))


def answer_into(path: Path, batch: Any, source: Any, retries: int, shown: bool) -> None:
    """Answer the prompts whose records are not in the file at `path` yet."""
    started = round(time.time(), 3)
    with open_journal(path, {**batch.job, **source.job}, len(source)) as journal:
        again: dict[int, tuple[int, int]] = {}
        for record in journal.load():
            again.pop(record["index"], None)  # Of two records the later one counts.
            if budget := larger_budget(record, batch.room, retries):
                again[record["index"]] = record["tries"], budget

        def still_open() -> Iterator[Prompt]:
            for prompt in source:
                if prompt.index in again:
                    yield with_budget(prompt, *again[prompt.index])
                elif journal.offsets[prompt.index] < 0:
                    yield prompt

        def keep(result: Any) -> None:
            journal.append(as_record(result, started))

        bar = {"total": len(source), "initial": len(journal) - len(again)}
        if bar["initial"] < bar["total"]:
            _answer(batch, still_open(), keep, shown, **bar)
        journal.finish()


def _answer(
    batch: Any, prompts: Iterable[Prompt], keep: Callable, shown: bool, **bar: int
) -> None:
    """Answer prompts, and show a bar of new tokens per second."""
    from tqdm import tqdm

    tokens = truncated = 0
    bar = tqdm(**bar, desc="batch", unit=" prompts", disable=not shown)
    with bar, closing(batch.run(prompts)) as results:
        for result in results:
            keep(result)
            tokens, truncated = tokens + result.tokens, truncated + result.truncated
            speed = tokens / max(bar.format_dict["elapsed"], 1e-9)
            now = f"{speed:,.0f} tokens/s, {truncated} truncated"
            bar.set_postfix_str(now, refresh=False)
            bar.update()
