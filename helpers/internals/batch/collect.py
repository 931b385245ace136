"""Collect a batch's results: in a list, or in a file that the same call goes on with.

In go a batch that can answer prompts and a `PromptSource`. Out come its results in the
prompts' order, or a file with a record for each. It knows nothing of engines.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from .journal import Journal, as_record, claim
from .progress import with_bar
from .prompts import Prompt, larger_budget, with_budget


class Answering(Protocol):
    """An engine, or many, that can answer prompts; see `Batch`."""

    job: Mapping[str, Any]
    room: int

    def run(self, prompts: Iterable[Prompt]) -> Iterator[Any]: ...


def answer_in_memory(batch: Answering, source: Any, shown: bool) -> list[Any]:
    """Answer all prompts; an exception on the way has what was `finished`."""
    finished: dict[int, Any] = {}
    try:
        with contextlib.closing(batch.run(source)) as results:
            for result in with_bar(results, len(source), 0, shown):
                finished[result.index] = result
    except BaseException as error:
        error.finished = [finished[index] for index in sorted(finished)]
        raise
    return [finished[index] for index in sorted(finished)]


def answer_into(
    path: Path, batch: Answering, source: Any, retries: int, shown: bool
) -> None:
    """Answer the prompts whose records are not in the file at `path` yet."""
    with (
        claim(path, {**batch.job, **source.job}) as note_start,
        contextlib.closing(Journal(path, len(source))) as journal,
    ):
        again: dict[int, tuple[int, int]] = {}
        for record in journal.load():
            again.pop(record["index"], None)  # Of two records the later one counts.
            if budget := larger_budget(record, batch.room, retries):
                again[record["index"]] = record["tries"], budget

        def still_open() -> Iterator[Prompt]:
            for prompt in source:
                if prompt.index in again:
                    yield with_budget(prompt, *again[prompt.index])
                elif prompt.index not in journal:
                    yield prompt

        done = len(journal) - len(again)
        if done < len(source):
            note_start()
            with contextlib.closing(batch.run(still_open())) as results:
                for result in with_bar(results, len(source), done, shown):
                    journal.append(as_record(result))
        journal.finish()
