"""What a batch that is called again asks, with an engine that answers at once."""

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from helpers.batch import BatchResult
from helpers.internals.batch.collect import answer_into
from helpers.internals.batch.prompts import Prompt, PromptSource


class AtOnce:
    """Answers as a `Batch` does; the thinking of "long" ends with the second try."""

    job, room = {"model": "none"}, 512

    def __init__(self, tries: int = 1, failing: str = "") -> None:
        self.tries, self.failing, self.asked = tries, failing, []

    def run(self, prompts: Iterator[Prompt]) -> Iterator[BatchResult]:
        for prompt in prompts:
            self.asked.append(prompt.given)
            cut = prompt.given == "long" and self.tries < 2
            yield BatchResult(
                index=prompt.index,
                prompt=prompt.given,
                id=prompt.id,
                error=prompt.refused or ("a" if prompt.id == self.failing else None),
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


def asked_again(output: Path, prompts: list, failing: str = "") -> list:
    batch = AtOnce(failing=failing)
    answer_into(output, batch, PromptSource(prompts), 0, shown=False)
    return [prompt["id"] for prompt in batch.asked]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_what_failed_is_asked_again_and_what_is_refused_is_not(
    tmp_path: Path, name: str
) -> None:
    prompts = [{"id": one, "prompt": "?"} for one in ("001", "002", "003")]
    prompts.append({"id": "004", "prompt": ""})
    output = tmp_path / name
    assert asked_again(output, prompts, "002") == ["001", "002", "003", "004"]
    assert asked_again(output, prompts, "002") == ["002"]
    assert asked_again(output, prompts) == ["002"]
    assert asked_again(output, prompts) == []


def test_a_record_of_another_prompt_is_asked_again(tmp_path: Path) -> None:
    """As in a table that lost a row, and whose rows were numbered again."""
    prompts = [{"id": one, "prompt": "?"} for one in ("001", "002", "003")]
    output = tmp_path / "a.jsonl"
    asked_again(output, prompts)
    first, _, last = map(json.loads, output.read_text().splitlines())
    rows = first, last | {"index": 1}
    output.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert asked_again(output, prompts) == ["002", "003"]
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["index"], row["id"]) for row in rows] == [
        *((0, "001"), (1, "002"), (2, "003"))
    ]


def test_a_table_whose_gaps_were_filled_is_asked_nothing_again(tmp_path: Path) -> None:
    prompts = [{"prompt": "?"}, {"id": 0, "prompt": "?"}, {"id": "", "prompt": "?"}]
    output, source = tmp_path / "a.jsonl", PromptSource(prompts)
    answer_into(output, AtOnce(), source, 0, shown=False)
    frame = pd.read_json(output, lines=True).astype(object).fillna("")
    frame.to_json(output, orient="records", lines=True)
    answer_into(output, again := AtOnce(), source, 0, shown=False)
    assert again.asked == []
