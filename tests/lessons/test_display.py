import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.display import show_thinking
from helpers.thinking import INCOMPLETE_HINT, ThinkingResult

DONE = ThinkingResult("5 + 7 = 12", "It is <b>42</b>.", 9, 4)
CUT = ThinkingResult("5 + 7", None, 3, 0)


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


def test_a_dollar_sign_is_no_formula() -> None:
    html = show_thinking(ThinkingResult("$1$", "$2$", 3, 3))._repr_html_()
    assert html.startswith('<div class="mathjax_ignore">') and "$2$" in html


def test_results_stand_beside_each_other_under_their_titles() -> None:
    panel = show_thinking([DONE, CUT], titles=["first", "second"])
    assert panel._repr_html_().count("<details") == 2
    assert repr(panel).index("[first]") < repr(panel).index("[second]")
    with pytest.raises(ValueError, match="1 titles for 2 results"):
        show_thinking([DONE, CUT], titles=["first"])


def test_importing_it_imports_nothing_heavy() -> None:
    code = "import sys, json, helpers.display; print(json.dumps(list(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    heavy = {"torch", "transformers", "unsloth", "vllm", "matplotlib", "ipywidgets"}
    assert not heavy & set(json.loads(run.stdout))
