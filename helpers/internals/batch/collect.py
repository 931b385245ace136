"""Collect a batch's results: in a list, or in a file that the same call goes on with.

In go a `Batch`, or another that has its `job`, `room` and `run`, and a `PromptSource`.
Out come the results in the prompts' order, or a file with a record for each.
"""

import time
from array import array
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from .journal import as_record, larger_budget, open_journal


def answer_in_memory(batch: Any, source: Any, shown: bool) -> list[Any]:
    """Answer all prompts; an exception on the way has what was `finished`."""
    finished: list[Any] = []
    try:
        with closing(batch.run(source)) as results:
            for result in _with_bar(results, source.job["prompts"], 0, shown):
                finished.append(result)
    except BaseException as error:
        error.finished = finished
        raise
    finally:
        finished.sort(key=lambda result: result.index)
    return finished


def answer_into(path: Path, batch: Any, source: Any, retries: int, shown: bool) -> None:
    """Answer the prompts whose records are not in the file at `path` yet."""
    started, count = round(time.time(), 3), source.job["prompts"]
    with open_journal(path, {**batch.job, **source.job}, count) as journal:
        there = array("q", [0]) * count  # Digests of what the records are for.
        for record in journal.load():
            there[record["index"]] = hash((record["id"] or None, bool(record["error"])))
            if larger_budget(record, batch.room, retries):  # More retries than before.
                journal.offsets[record["index"]] = -1
        for prompt in source if len(journal) else ():
            # A failure is tried again; and somebody may have edited the records.
            if there[prompt.index] != hash((prompt.id or None, bool(prompt.refused))):
                journal.offsets[prompt.index] = -1
        still_open = (prompt for prompt in source if journal.offsets[prompt.index] < 0)
        if (done := len(journal)) < count:
            with closing(batch.run(still_open)) as results:
                for result in _with_bar(results, count, done, shown):
                    journal.append(as_record(result, started))
        journal.finish()


def _with_bar(results: Any, count: int, done: int, shown: bool) -> Iterator[Any]:
    from tqdm import tqdm

    tokens, truncated, look = 0, 0, {"desc": "batch", "unit": " prompts"}
    with tqdm(total=count, initial=done, disable=not shown, **look) as bar:
        for result in results:
            tokens, truncated = tokens + result.tokens, truncated + result.truncated
            speed = tokens / max(bar.format_dict["elapsed"], 1e-9)
            now = f"{speed:,.0f} tokens/s, {truncated} truncated"
            bar.set_postfix_str(now, refresh=False)
            bar.update()
            yield result
