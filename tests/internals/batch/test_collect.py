"""What a batch that is called again asks, with an engine that answers at once."""

import json
from collections.abc import Iterator
from pathlib import Path

from helpers.batch import BatchResult
from helpers.internals.batch.collect import answer_into
from helpers.internals.batch.prompts import Prompt, PromptSource


class AtOnce:
    """Answers as a `Batch` does; the thinking of "long" ends with the second try."""

    job, room = {"model": "none"}, 512

    def __init__(self, tries: int) -> None:
        self.tries, self.asked = tries, []

    def run(self, prompts: Iterator[Prompt]) -> Iterator[BatchResult]:
        for prompt in prompts:
            self.asked.append(prompt.given)
            cut = prompt.given == "long" and self.tries < 2
            yield BatchResult(
                index=prompt.index,
                prompt=prompt.given,
                response=None if cut else "1",
                finish_reason="length" if cut else "stop",
                tokens=9,
                tries=self.tries,
            )


def test_more_retries_ask_only_the_thinking_that_ran_out(tmp_path: Path) -> None:
    source, output = PromptSource(["short", "long", "brief"]), tmp_path / "a.jsonl"
    asked = []
    for retries, batch in ((0, AtOnce(1)), (0, AtOnce(1)), (1, AtOnce(2))):
        answer_into(output, batch, source, retries, shown=False)
        asked.append(batch.asked)
    assert asked == [["short", "long", "brief"], [], ["long"]]
    answer_into(output, again := AtOnce(2), source, 1, shown=False)
    assert again.asked == []
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["index"] for row in rows] == [0, 1, 2]
    assert [row["tries"] for row in rows] == [1, 2, 1]
    assert [row["response"] for row in rows] == ["1"] * 3
