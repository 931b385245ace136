"""A batch as a job: what is still to be done, in as many rounds as it takes."""

import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from .journal import COLUMNS, Journal, claim
from .records import Prompts, prompt_hash

# Takes prompts when it needs them and yields a `BatchResult` when one is done, whose
# index counts these prompts.
Run = Callable[[Iterator[Any]], Iterator[Any]]


class Tries:
    """Which of `count` prompts are still to be answered, and with how many tokens.

    A completion whose thinking ran out of tokens gets up to `retries` further tries,
    each with twice the tokens of the one before, until it has filled the model's `room`
    (tokens of prompt and completion).
    """

    def __init__(self, count: int, retries: int, room: int) -> None:
        self._tries = array("H", [0]) * count
        self._budgets = array("l", [0]) * count  # of those to be tried again
        self._retries, self._room = retries, room
        self.count = self.open = count

    def is_open(self, index: int) -> bool:
        return not self._tries[index] or self._budgets[index] > 0

    def prepared(self, index: int, prompt: Any) -> Any:
        """The prompt, with room for more thinking where it needs that."""
        if not (budget := self._budgets[index]):
            return prompt
        if not isinstance(prompt, Mapping):
            prompt = {"prompt" if isinstance(prompt, str) else "messages": prompt}
        own = prompt.get("sampling_params") or {}
        if isinstance(own, Mapping):
            own = {**own, "max_tokens": budget}
        else:
            own = own.clone()
            own.max_tokens = budget
        return {**prompt, "sampling_params": own}

    def note(
        self, index: int, tries: int, ran_out: bool, tokens: tuple[int, int]
    ) -> None:
        """Take into account how a prompt's answer ended, after so many tries in all.

        `tokens` are those of the prompt and of its completion.
        """
        was_open = self.is_open(index)
        again = ran_out and sum(tokens) < self._room and tries <= self._retries
        self._tries[index] = tries
        self._budgets[index] = 2 * tokens[1] if again else 0
        self.open += again - was_open

    def asked(self, index: int) -> int:
        """How often a prompt has been asked by now."""
        return self._tries[index]


def answer_all(
    answer: Run, prompts: Iterable[Any], tries: Tries, keep: Callable[[Any], Any]
) -> Iterator[tuple[Any, Any]]:
    """Answer what is open, in as many rounds as it takes.

    Gives each `BatchResult` with its place among all prompts, and with what `keep`
    makes of the prompt, which is all that is held here meanwhile.
    """
    asked: dict[int, tuple[int, Any]] = {}

    def feed() -> Iterator[Any]:
        place = 0
        for index, prompt in enumerate(prompts):
            if tries.is_open(index):
                asked[place] = index, keep(prompt)
                place += 1
                yield tries.prepared(index, prompt)

    while tries.open:
        with closing(answer(feed())) as results:
            for result in results:
                index, kept = asked.pop(result.index)
                count = tries.asked(index) + result.tries
                cut = result.finish_reason == "length" and result.response is None
                tries.note(index, count, cut, (result.prompt_tokens, result.tokens))
                yield replace(result, index=index, tries=count), kept


def run_job(
    answer: Run,
    prompts: Prompts,
    tries: Tries,
    output: Path,
    job: Mapping[str, Any],
    progress: Any,
) -> None:
    """Answer all prompts of a job into a file, or those that are not in it yet.

    `job` tells what its records depend on, beside the prompts. Raises what `claim`
    does, and `OSError` where the file can't be written.
    """
    job = {**job, "prompts": len(prompts), "prompts_hash": prompts.digest}
    with claim(output, job), closing(Journal(output, len(prompts))) as journal:
        for record in journal.load():
            cut = record["finish_reason"] == "length" and record["response"] is None
            tokens = record["prompt_tokens"], record["completion_tokens"]
            tries.note(record["index"], record["tries"], cut, tokens)
        answers = answer_all(answer, prompts, tries, prompt_hash)
        with progress.over(tries) as bar, closing(answers):
            for result, hashed in answers:
                journal.append(as_record(result, hashed))
                bar.add(result)
        journal.finish()


def as_record(result: Any, hashed: str) -> dict[str, Any]:
    """What stands in the file for a result; `time` is in seconds since 1970."""
    record = {name: getattr(result, name, None) for name in COLUMNS}
    now = round(time.time(), 3)
    own = {"prompt_hash": hashed, "completion_tokens": result.tokens, "time": now}
    return record | own
