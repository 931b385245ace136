import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from helpers.display import (
    LiveResponse,
    SamplingExplorer,
    action_button,
    parameter_controls,
    show_thinking,
)
from helpers.tables import show_table
from helpers.thinking import INCOMPLETE_HINT, ThinkingResult, parse_thinking_response

DONE = ThinkingResult("5 + 7 = 12", "It is <b>42</b>.", 9, 4)
CUT = ThinkingResult("5 + 7", None, 3, 0)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["</s>"])
    core.add_tokens(["<think>", "</think>"])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")


def test_a_table_is_html_and_text_and_escapes_what_it_shows() -> None:
    table = show_table([{"n": 1234, "who": "<x>"}, {"n": 0.5, "who": None}])
    assert "&lt;x&gt;" in table._repr_html_()
    assert "<x>" not in table._repr_html_()
    assert repr(table).splitlines() == ["    n  who", "1,234  <x>", " 0.50  -"]


def test_a_table_has_a_caption_and_needs_rows_that_match() -> None:
    table = show_table([{"a": 1}], caption="One & only")
    assert "<caption>One &amp; only</caption>" in table._repr_html_()
    assert repr(table).startswith("One & only\n")
    with pytest.raises(ValueError, match="at least one row"):
        show_table([])
    with pytest.raises(KeyError):
        show_table([{"a": 1}, {"b": 1}])


def test_thinking_is_folded_and_escaped() -> None:
    html = show_thinking(DONE, prompt="What?")._repr_html_()
    assert "<details><summary" in html
    assert "It is &lt;b&gt;42&lt;/b&gt;." in html
    assert "9 tokens" in html
    assert "<details open>" in show_thinking(DONE, unfold=True)._repr_html_()


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


def test_results_stand_beside_each_other_under_their_titles() -> None:
    panel = show_thinking([DONE, CUT], titles=["first", "second"])
    assert panel._repr_html_().count("<details") == 2
    assert repr(panel).index("[first]") < repr(panel).index("[second]")
    with pytest.raises(ValueError, match="1 titles for 2 results"):
        show_thinking([DONE, CUT], titles=["first"])


def test_a_live_response_ends_as_parsing_at_once_does(tokenizer, monkeypatch) -> None:
    drawn = []
    monkeypatch.setattr(
        LiveResponse, "_draw", lambda self, result: drawn.append(result)
    )
    prompt = tokenizer.encode("Hi<think>")
    completion = tokenizer.encode("one and two</think>three, four, five")
    live = LiveResponse(tokenizer)
    live.put([prompt])
    for token_id in completion:
        live.put([token_id])
    live.end()
    assert live.result == parse_thinking_response(
        completion, tokenizer, prompt_token_ids=prompt
    )
    assert live.result == ("one and two", "three, four, five")
    assert drawn[0].response == "(still thinking)"
    assert drawn[0].thinking.startswith("one")
    assert drawn[-1] is live.result
    assert len(drawn) == len(completion) // LiveResponse.DRAW_EVERY + 1


def test_a_live_response_tells_the_models_end_from_its_limit(tokenizer) -> None:
    for last, reason in ([], None), ([tokenizer.eos_token_id], "stop"):
        live = LiveResponse(tokenizer)
        live.put(tokenizer.encode("Hi<think>"))
        live.put([*tokenizer.encode("one"), *last])
        live.end()
        assert (live.result.response, live.result.finish_reason) == (None, reason)


def test_a_live_response_refuses_a_batch(tokenizer) -> None:
    with pytest.raises(ValueError, match="one prompt"):
        LiveResponse(tokenizer).put([[1], [2]])


def test_the_explorer_keeps_the_presets_and_adds_what_the_sliders_say() -> None:
    asked = []

    def generate(values: dict[str, float]) -> ThinkingResult:
        asked.append(values)
        return DONE

    explorer = SamplingExplorer(generate, {"balanced": {"temperature": 0.6}})
    *pairs, button, _ = explorer.controls().children
    pairs[0].children[1].value = 1.5  # The slider beside the temperature's number.
    button.click()
    assert asked == [
        {"temperature": 0.6},
        {"temperature": 1.5, "top_p": 0.95, "top_k": 20},
    ]
    assert list(explorer.results)[0] == "balanced"
    assert "temperature 1.5, top_p 0.95, top_k 20" in repr(explorer.panel())
    button.click()  # Chance may answer differently: both stay.
    assert list(explorer.results)[2] == "temperature 1.5, top_p 0.95, top_k 20 (2)"


def test_a_control_is_a_named_number_and_a_slider_that_move_together() -> None:
    controls = parameter_controls({"top_k": 20, "min_p": 0.1})
    assert list(controls) == ["top_k", "min_p"]
    for name, (box, slider) in controls.items():
        assert box.description == name and box.value == slider.value
        assert box.tabbable is not False and slider.tabbable is not False
    box, slider = controls["top_k"]
    slider.value = 5
    assert box.value == 5
    box.value = 500  # Beyond the highest.
    assert slider.value == box.value == slider.max
    box, slider = parameter_controls({"top_p": 0.95})["top_p"]
    slider.value = 0.9500000000000001  # As the page sends it.
    assert box.value == 0.95
    with pytest.raises(ValueError, match="no control for max_tokens"):
        parameter_controls({"max_tokens": 5})


def test_a_button_shows_what_its_action_gave_or_why_it_failed() -> None:
    seen = []

    def action() -> str:
        seen.append((button.disabled, output.value))
        if len(seen) == 2:
            raise ValueError("no <engine>")
        return "<b>done</b>"

    button, output = action_button("Sample", "Draw", action)
    button.click()
    assert seen == [(True, '<p role="status">Sample ...</p>')]
    assert "<b>done</b>" in output.value and not button.disabled
    button.click()
    assert "ValueError: no &lt;engine&gt;" in output.value and not button.disabled


def test_importing_it_imports_nothing_heavy() -> None:
    code = "import sys, json, helpers.display; print(json.dumps(list(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    heavy = {"torch", "transformers", "unsloth", "vllm", "matplotlib", "ipywidgets"}
    assert not heavy & set(json.loads(run.stdout))
