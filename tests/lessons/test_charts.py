"""Tables and charts: what a page shows and what a terminal prints."""

import numpy as np
import pandas
import pytest
from matplotlib.figure import Figure

from helpers.charts import Chart, html_table, show_table


def test_a_table_is_html_and_text_and_escapes_what_it_shows() -> None:
    table = show_table([{"n": 1234, "who": "<x>"}, {"n": 0.5, "who": None}])
    assert "&lt;x&gt;" in table._repr_html_()
    assert "<x>" not in table._repr_html_()
    assert repr(table).splitlines() == ["    n  who", "1,234  <x>", " 0.50  -"]


def test_a_table_has_a_caption_and_needs_rows_that_match() -> None:
    table = show_table([{"a": 1}], caption="One & only")
    assert ">One &amp; only</caption>" in table._repr_html_()
    assert repr(table).startswith("One & only\n")
    with pytest.raises(ValueError, match="at least one row"):
        show_table([])
    with pytest.raises(KeyError):
        show_table([{"a": 1}, {"b": 1}])


def test_rows_come_from_a_generator_or_a_data_frame() -> None:
    rows = [{"name": "a", "n": 1}, {"name": "b", "n": 2000}]
    shown = repr(show_table(rows))
    assert repr(show_table(row for row in rows)) == shown
    assert repr(show_table(pandas.DataFrame(rows))) == shown
    assert repr(show_table(pandas.DataFrame([[1, 2.5]]))).splitlines()[0] == "0     1"


def test_numbers_of_numpy_are_numbers() -> None:
    row = {"a": np.float32(1234.5), "b": np.int64(1234), "c": np.nan, "d": np.bool_(1)}
    table = show_table([row])
    assert repr(table).splitlines()[1].split() == ["1,234", "1,234", "-", "True"]
    assert table.html.count("text-align:right") == 8  # Heads and cells.


def test_a_dollar_sign_is_no_formula() -> None:
    table = show_table([{"$a": "$b$"}], caption="$c$")
    assert table._repr_html_().startswith('<div class="mathjax_ignore">')
    figure = Figure()
    axes = figure.subplots()
    axes.set_title("It costs $5 and {")
    axes.annotate("$\\bad{$", (0.5, 0.5))
    assert Chart(figure, "words").png().startswith(b"\x89PNG")


def test_a_chart_suits_any_page_and_says_in_words_what_it_shows() -> None:
    figure = Figure(facecolor="white")
    figure.suptitle("Title")
    axes = figure.subplots()
    axes.plot([1, 2], label="rise")
    axes.legend()
    html = Chart(figure, 'Rises from "1" to 2')._repr_html_()
    assert 'alt="Rises from &quot;1&quot; to 2"' in html
    assert "data:image/png;base64,iVBOR" in html
    assert figure.patch.get_alpha() == 0
    assert figure.texts[0].get_color() != "black"
    assert not axes.get_legend().get_frame_on()


def test_a_table_names_its_columns_and_rows_to_those_who_hear_it() -> None:
    html = html_table(["a", "b"], [["<b>1</b>", "2"]], right=[False, True])
    assert html.count('<th scope="col"') == 2 and html.count('<th scope="row"') == 1
    assert 'text-align:right">2</td>' in html and "<b>1</b></th>" in html
