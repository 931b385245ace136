"""A batch summed up: what is counted, and what a page shows of it."""

import json
import re
from pathlib import Path

import pytest

from helpers.internals.batch.journal import COLUMNS
from helpers.internals.batch.summary import summarise

STOPPED = {"response": "12", "complete": True, "finish_reason": "stop"}
UNFINISHED = {"response": None, "complete": False, "finish_reason": "length"}
CUT = {"response": "The", "complete": True, "finish_reason": "length"}
ERROR = {"error": "the prompt is empty", "complete": False}


def write(path: Path, *ends: dict) -> Path:
    records = [
        dict.fromkeys(COLUMNS)
        | {name: 0 for name in COLUMNS if name.endswith("_tokens")}
        | {"index": index, "tries": 1 + index % 2, "time": 1000.0 + index, **end}
        for index, end in enumerate(ends)
    ]
    for record in records:
        if record["error"] is None:
            record |= {"thinking_tokens": 30, "completion_tokens": 40}
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_each_record_counts_by_how_it_ended(tmp_path: Path) -> None:
    ends = [STOPPED, STOPPED, UNFINISHED, CUT, ERROR]
    summary = summarise(write(tmp_path / "a.jsonl", *ends))
    assert summary.prompts == 5 and summary.answered == 2 and summary.retried == 2
    assert summary.unfinished == summary.cut_short == summary.errors == 1
    assert summary.finish_reasons == {"stop": 2, "length": 2, "error": 1}
    assert summary.seconds == pytest.approx(4)
    assert summary.tokens_per_second == pytest.approx(160 / 4)


def test_a_stop_of_a_night_is_no_work(tmp_path: Path) -> None:
    late = {"time": 1000.0 + 8 * 3600}
    path = write(tmp_path / "a.jsonl", STOPPED, STOPPED, STOPPED | late)
    assert summarise(path).seconds == pytest.approx(1)


def test_text_and_page_have_the_figures_and_the_picture_its_words(
    tmp_path: Path,
) -> None:
    summary = summarise(write(tmp_path / "a.jsonl", STOPPED, STOPPED, CUT))
    assert re.search(r"answered +2\n", repr(summary))
    page = summary._repr_html_()
    assert "<table" in page and "data:image/png;base64," in page
    (words,) = re.findall(r'alt="([^"]+)"', page)
    assert words.startswith("3 prompts: 2 stop, 1 length; at most 30 tokens")
    assert str(tmp_path) not in page + repr(summary)


@pytest.mark.parametrize("ends", [(), (STOPPED,), (ERROR,)])
def test_there_may_be_next_to_nothing(tmp_path: Path, ends: tuple) -> None:
    summary = summarise(write(tmp_path / "a.jsonl", *ends))
    assert summary.prompts == len(ends) and summary.tokens_per_second == 0
    assert "<table" in summary._repr_html_()
