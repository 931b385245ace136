"""Tables and charts: what a page shows and what a terminal prints."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas
import pytest
import torch
from matplotlib.figure import Figure

from helpers.batch import BatchResult
from helpers.charts import (
    Chart,
    Panel,
    plot_lines,
    plot_throughput,
    show_table,
    show_thinking,
)
from helpers.speed import EngineFigures
from helpers.thinking import INCOMPLETE_HINT, ThinkingResult

DONE = ThinkingResult("5 + 7 = 12", "It is <b>42</b>.", 9, 4)
CUT = ThinkingResult("5 + 7", None, 3, 0)


def test_a_table_is_html_and_text_and_escapes_what_it_shows() -> None:
    table = show_table([{"n": 1234, "who": "<x>"}, {"n": 0.5, "who": None}])
    assert "&lt;x&gt;" in table._repr_html_()
    assert "<x>" not in table._repr_html_()
    lines = [line.rstrip() for line in repr(table).splitlines()]
    assert lines == ["    n  who", "1,234  <x>", " 0.50  -"]


def test_a_table_has_a_caption_and_needs_rows_that_match() -> None:
    table = show_table([{"a": 1}], caption="One & only")
    assert ">One &amp; only</caption>" in table._repr_html_()
    assert repr(table).startswith("One & only\n")
    with pytest.raises(ValueError, match="at least one row"):
        show_table([])
    for uneven in ([{"a": 1}, {"b": 1}], [{"a": 1}, {"a": 1, "b": 2}], [[1], [1]]):
        with pytest.raises(ValueError, match="dicts that share their keys"):
            show_table(uneven)


def test_rows_come_from_a_generator_or_a_data_frame() -> None:
    rows = [{"name": "a", "n": 1}, {"name": "b", "n": 2000}]
    shown = repr(show_table(rows))
    assert repr(show_table(row for row in rows)) == shown
    assert repr(show_table(pandas.DataFrame(rows))) == shown
    assert repr(show_table(pandas.DataFrame([[1, 2.5]]))).split() == [
        "0",
        "1",
        "1",
        "2.50",
    ]


def test_a_series_is_shown_with_its_index() -> None:
    series = pandas.Series({"mean": 1.5, "sum": 3000.0}, name="n")
    text = repr(show_table(series)).split()
    assert text == ["index", "n", "mean", "1.50", "sum", "3,000"]


def test_the_rows_of_a_groupby_keep_their_labels() -> None:
    frame = pandas.DataFrame({"model": ["b", "a"], "n": [1, 2]})
    assert repr(show_table(frame.groupby("model").mean())).split() == [
        *("model", "n", "a", "2.00", "b", "1.00")
    ]
    assert repr(show_table(frame.describe())).split()[0] == "index"
    assert repr(show_table(frame[frame.n > 1])).split() == ["model", "n", "a", "2"]


def test_numbers_of_numpy_are_numbers() -> None:
    row = {"a": np.float32(1234.5), "b": np.int64(1234), "c": np.nan, "d": np.bool_(1)}
    table = show_table([row])
    assert repr(table).splitlines()[1].split() == ["1,234", "1,234", "-", "True"]
    assert table.html.count("text-align:right") == 6  # Heads and cells.


def test_arrays_tensors_and_what_is_missing_are_shown() -> None:
    row = {"array": np.arange(3), "tensor": torch.tensor([0.5]), "na": pandas.NA}
    row |= {"nat": pandas.NaT, "none": None, "number": torch.tensor(1234)}
    cells = repr(show_table([row])).splitlines()[1].split("  ")
    assert [cell.strip() for cell in cells if cell.strip()] == [
        *("[0, 1, 2]", "[0.5]", "-", "-", "-", "1,234")
    ]
    frame = pandas.DataFrame({"n": pandas.array([1, None], dtype="Int64")})
    assert repr(show_table(frame)).split() == ["n", "1", "-"]


def test_a_dollar_sign_is_no_formula() -> None:
    table = show_table([{"$a": "$b$"}], caption="$c$")
    assert table._repr_html_().startswith('<div class="mathjax_ignore">')
    figure = Figure()
    axes = figure.subplots()
    axes.set_title("It costs $5 and {")
    axes.annotate("$\\bad{$", (0.5, 0.5))
    assert (
        show_thinking(ThinkingResult("$1$", "$2$"))
        ._repr_html_()
        .startswith('<div class="mathjax_ignore">')
    )
    assert Chart(figure, "words").png().startswith(b"\x89PNG")


def test_a_chart_suits_any_page_and_says_in_words_what_it_shows() -> None:
    figure = Figure(facecolor="white")
    figure.suptitle("Title")
    axes = figure.subplots()
    axes.plot([1, 2], label="rise")
    axes.legend()
    chart = Chart(figure, 'Rises from "1" to 2')
    html = chart._repr_html_()
    assert 'alt="Rises from &quot;1&quot; to 2"' in html
    assert "data:image/png;base64,iVBOR" in html
    corner = plt.imread(io.BytesIO(chart.png()))[0, 0]
    assert corner[3] == 0  # Nothing hides the page.
    assert figure.texts[0].get_color() != "black"
    assert not axes.get_legend().get_frame_on()


def test_a_table_names_its_columns_and_rows_to_those_who_hear_it() -> None:
    row = {"a": Panel("<b>1</b>", "1"), "b": 2}
    table = show_table([row])
    assert table.html.count('<th scope="col"') == 2
    assert table.html.count('<th scope="row"') == 1
    assert 'text-align:right">2</td>' in table.html and "<b>1</b></th>" in table.html
    assert repr(table).split() == ["a", "b", "1", "2"]


def test_numbers_and_percentages_go_to_the_right() -> None:
    html = show_table([{"way": "a", "n": 1, "right": "50%"}]).html
    assert html.count("text-align:right") == 4


def test_thinking_is_folded_and_escaped() -> None:
    html = show_thinking(DONE, prompt="What?")._repr_html_()
    assert "<details><summary" in html
    assert "It is &lt;b&gt;42&lt;/b&gt;." in html
    assert "9 tokens" in html


def test_cut_thinking_stands_open_with_the_hint() -> None:
    panel = show_thinking(CUT)
    assert "<details open>" in panel._repr_html_()
    assert "unfinished" in panel._repr_html_()
    assert INCOMPLETE_HINT in panel._repr_html_()
    assert INCOMPLETE_HINT in repr(panel)


def test_thinking_that_the_model_ended_itself_gets_no_advice_on_tokens() -> None:
    ended = ThinkingResult("One,", None, 2, 0, "stop")
    assert ended.hint and ended.hint in repr(ended)
    assert ended.hint in show_thinking(ended)._repr_html_()
    assert "max_tokens" not in show_thinking(ended)._repr_html_()


def test_what_was_stopped_says_so() -> None:
    for response in (None, "It is"):
        stopped = ThinkingResult("5 + 7", response, 3, 2, "abort")
        assert "stopped" in show_thinking(stopped)._repr_html_()
        assert "stopped" in repr(show_thinking(stopped))
        assert "max_tokens" not in repr(show_thinking(stopped))


def test_what_a_batch_returns_is_shown_done_cut_off_or_failed() -> None:
    at = {"index": 0, "prompt": "?"}
    done = BatchResult(**at, thinking="5 + 7", response="12")
    short = BatchResult(**at, id="1", response="It is", finish_reason="length")
    open_ended = BatchResult(**at, thinking="5 +", finish_reason="length")
    failed = BatchResult(**at, error="an empty prompt.", finish_reason="error")
    text = repr(show_thinking([done, short, open_ended, failed]))
    cards = [card.split("Answer:\n")[1] for card in text.split("\n\n")]
    assert cards[0] == "12"
    assert cards[1] == "It is (cut off: raise max_tokens)"
    assert cards[2] == f"(no answer) {INCOMPLETE_HINT}"
    assert cards[3] == "(failed) an empty prompt."
    assert repr(show_thinking(failed)) == "Answer:\n(failed) an empty prompt."
    assert "<details" not in show_thinking(failed)._repr_html_()


def test_results_stand_beside_each_other_under_their_titles() -> None:
    panel = show_thinking([DONE, CUT], titles=["first", "second"])
    assert panel._repr_html_().count("<details") == 2
    assert repr(panel).index("[first]") < repr(panel).index("[second]")
    with pytest.raises(ValueError, match="shorter"):
        show_thinking([DONE, CUT], titles=["first"])


def test_a_chat_is_a_prompt_and_a_number_a_title() -> None:
    chat = [{"role": "user", "content": "7 + 5?"}, {"role": "assistant"}]
    panel = show_thinking([DONE, CUT], prompt=chat, titles=range(2))
    assert repr(panel).startswith("user: 7 + 5?\nassistant: None\n\n[0]\n")
    assert "<b>1</b>" in panel._repr_html_()


@pytest.mark.parametrize("given", ["It is 12.", ("5 + 7 = 12", "It is 12.")])
def test_thinking_that_nobody_parsed_is_refused(given) -> None:
    with pytest.raises(TypeError, match="parse_thinking_response"):
        show_thinking(given)


def test_importing_it_imports_nothing_heavy() -> None:
    code = "import sys, json, helpers.charts; print(json.dumps(list(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    heavy = {"torch", "transformers", "unsloth", "vllm", "matplotlib", "ipywidgets"}
    assert not heavy & set(json.loads(run.stdout))


FIGURES = EngineFigures(
    "engine",
    "CPU",
    {1: (90.0, 100.0, 120.0), 4: (300.0,) * 3},
    {1: (0.01, 0.03, 0.02), 4: (0.05,)},
    2.5,
)


def test_the_chart_is_a_picture_and_says_the_same_in_words() -> None:
    chart = plot_throughput(FIGURES, replace(FIGURES, engine="other", limit={1: 500.0}))
    assert chart.png().startswith(b"\x89PNG")
    speed, first = chart.figure.axes
    names = [text.get_text() for text in speed.figure.legends[0].get_texts()]
    assert [name.split()[0] for name in names] == ["ideal:", "the", "engine", "other"]
    assert speed.get_yscale() == first.get_yscale() == "log"
    assert "engine: 300 tokens/s at best, first token after 20 ms" in repr(chart)


def test_each_device_has_a_row_with_the_same_axes() -> None:
    other = replace(FIGURES, device="GPU, 2026", tokens_per_second={64: (9000.0,)})
    axes = plot_throughput(FIGURES, other).figure.axes
    assert len(axes) == 4
    for above, below in zip(axes[:2], axes[2:], strict=True):
        assert above.get_xlim() == below.get_xlim()
        assert above.get_ylim() == below.get_ylim()
    assert [one.get_title().rpartition(": ")[2] for one in axes[::2]] == ["CPU", "GPU"]


def test_lines_go_through_the_medians() -> None:
    lines = {"one": {1: (1.0, 2.0, 9.0), 64: (3.0,)}, "other": {64: (0.5, 0.7)}}
    chart = plot_lines(lines, x="tokens", y="ms")
    (axes,) = chart.figure.axes
    drawn = {tuple(line[0].get_ydata()) for line in axes.containers}
    assert drawn == {(2.0, 3.0), (0.6,)}
    assert "one: 2.00 at 1, 3.00 at 64; other: 0.60 at 64." in chart.text
