"""A batch summed up: what is counted, and what a page shows of it."""

import json
import re
from pathlib import Path

import pytest

from helpers.internals.batch.journal import COLUMNS
from helpers.internals.batch.summary import BatchSummary, summarise

STOPPED = {"response": "12", "complete": True, "finish_reason": "stop"}
UNFINISHED = {"response": None, "complete": False, "finish_reason": "length"}
CUT = {"response": "The", "complete": True, "finish_reason": "length"}
ERROR = {"error": "the prompt is empty", "complete": False}


def write(path: Path, *ends: dict) -> Path:
    records = [
        dict.fromkeys(COLUMNS)
        | {name: 0 for name in COLUMNS if name.endswith("_tokens")}
        | {"index": index, "tries": 1 + index % 2}
        | {"started": 999.0, "time": 1000.0 + index, **end}
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
    assert (
        summary.prompts == 5
        and summary.answered == 2
        and summary.asked_more_than_once == 2
    )
    assert summary.thinking_unfinished == summary.answer_cut_short == 1
    assert summary.errors == 1
    assert summary.seconds == pytest.approx(5)
    assert summary.tokens_per_second == pytest.approx(160 / 5)


def test_the_time_begins_with_the_job_and_with_each_resumption(tmp_path: Path) -> None:
    path, night = tmp_path / "a.jsonl", 8 * 3600
    began = STOPPED | {"started": 1000.0}
    together = [began | {"time": 1300 + n / 1000} for n in range(256)]
    summary = summarise(write(path, *together))
    assert summary.seconds == pytest.approx(300.255)
    assert summary.tokens_per_second == pytest.approx(256 * 40 / 300.255)
    first = [began | {"time": 1010.0}, began | {"time": 1090.0}]
    # The second run took 5 s until its answer.
    second = STOPPED | {"started": 1095.0 + night, "time": 1100.0 + night}
    assert summarise(write(path, second, *first)).seconds == 95


def test_without_a_known_start_there_is_no_speed(tmp_path: Path) -> None:
    ends = [STOPPED | {"started": None}] * 2
    summary = summarise(write(tmp_path / "a.jsonl", *ends))
    assert (summary.seconds, summary.tokens_per_second) == (0, 0)


def panels(summary: BatchSummary) -> list[str]:
    return [axes.get_title() for axes in summary.plot().figure.axes]


def test_the_picture_has_no_panel_that_shows_nothing(tmp_path: Path) -> None:
    """Windows are as wide as two of the longest waits: none falls to 0 by chance."""
    path = tmp_path / "a.jsonl"
    assert panels(summarise(write(path, *[STOPPED] * 3))) == ["Length"]
    bursts = [STOPPED | {"time": 1000.0 + n // 50} for n in range(1000)]
    summary = summarise(write(path, *bursts))
    assert panels(summary) == ["Length", "Speed"]
    speed = summary.plot().figure.axes[1].patches[0].get_data().values
    assert len(speed) == 10 and min(speed) > 0 and max(speed) <= 3 * min(speed)


def test_a_torn_or_edited_line_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", STOPPED, STOPPED)
    with path.open("a") as file:
        file.write('{"index": 2, "thin')
    assert summarise(path).prompts == 2


def test_a_gap_that_was_filled_is_no_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", STOPPED, ERROR)
    path.write_text(path.read_text().replace('"error": null', '"error": ""'))
    summary = summarise(path)
    assert (summary.answered, summary.errors) == (1, 1)


def test_a_parquet_that_is_not_finished_is_summed_up_as_far_as_it_is(
    tmp_path: Path,
) -> None:
    write(tmp_path / "a.parquet.jsonl", STOPPED, CUT)
    summary = summarise(tmp_path / "a.parquet")
    assert summary.prompts == 2 and summary.output.endswith("a.parquet")


def test_text_and_page_have_the_figures_and_the_picture_its_words(
    tmp_path: Path,
) -> None:
    summary = summarise(write(tmp_path / "a.jsonl", STOPPED, STOPPED, CUT))
    assert re.search(r"answered +2\n", repr(summary))
    page = summary._repr_html_()
    assert "<table" in page and "data:image/png;base64," in page
    (words,) = re.findall(r'alt="([^"]+)"', page)
    assert words.startswith("3 prompts, 2 answered; at most 30 tokens of thinking")
    assert str(tmp_path) not in page + repr(summary)


@pytest.mark.parametrize(("ends", "speed"), [((), 0), ((STOPPED,), 40), ((ERROR,), 0)])
def test_there_may_be_next_to_nothing(tmp_path: Path, ends: tuple, speed: int) -> None:
    summary = summarise(write(tmp_path / "a.jsonl", *ends))
    assert summary.prompts == len(ends) and summary.tokens_per_second == speed
    assert "<table" in summary._repr_html_()
