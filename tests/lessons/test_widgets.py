"""Widgets without a page; on one: tests/browser/test_jupyterlab.py."""

from pathlib import Path

import ipywidgets
import nbformat
import numpy as np
import pytest
from child import find_child
from ipywidgets.widgets.widget import _instances
from jupyter_client.manager import start_new_kernel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from helpers.charts import Panel
from helpers.sampling import NEUTRAL
from helpers.thinking import parse_thinking_response
from helpers.widgets import DistributionExplorer, LiveResponse, close_widget

ROOT = Path(__file__).resolve().parents[2]
VIEW = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["</s>"])
    core.add_tokens(["<think>", "</think>"])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")


def test_a_live_response_ends_as_parsing_at_once_does(tokenizer, capsys) -> None:
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
    assert tuple(live.result) == ("one and two", "three, four, five")
    # Outside a notebook it is printed, once.
    assert capsys.readouterr().out.count("three, four, five") == 1


def test_a_live_response_tells_the_models_end_from_its_limit(tokenizer) -> None:
    for last, reason in ([], None), ([tokenizer.eos_token_id], "stop"):
        live = LiveResponse(tokenizer)
        live.put(tokenizer.encode("Hi<think>"))
        live.put([*tokenizer.encode("one"), *last])
        live.end()
        assert (live.result.response, live.result.finish_reason) == (None, reason)


def test_a_live_response_refuses_a_batch(tokenizer) -> None:
    with pytest.raises(TypeError, match="of one completion or prompt"):
        LiveResponse(tokenizer).put([[1], [2]])


def test_the_next_token_after_the_stop_button_is_an_interrupt(tokenizer) -> None:
    live = LiveResponse(tokenizer)
    live.put(tokenizer.encode("Hi<think>"))
    live.put(tokenizer.encode("one"))
    live._stop.set()  # As the button does.
    with pytest.raises(KeyboardInterrupt):
        live.put(tokenizer.encode(" two"))
    assert live.result.finish_reason == "abort"
    assert tuple(live.result) == ("one", None)


def small() -> np.ndarray:
    return np.log([0.5, 0.25, 0.15, 0.1])


def decode(token_ids: list[int]) -> str:
    return ["<b>", " two", "\n", ""][token_ids[0]]


def explorer(sample=lambda parameters: "text", **kwargs) -> DistributionExplorer:
    return DistributionExplorer(small(), decode, sample, tokens=2, **kwargs)


def test_moving_a_slider_redraws_the_chart() -> None:
    it = explorer()
    before = it.chart.value
    it.controls["top_k"].value = 1
    assert it.parameters["top_k"] == 1
    assert it.chart.value != before
    assert "1 token can be drawn" in it.chart.value
    it.controls["top_k"].value = 0
    assert it.chart.value == before
    it.controls["top_p"].value = 0.9500000000000001  # As the page sends it.
    assert it.parameters["top_p"] == 0.95


def test_each_slider_has_a_name_and_can_be_reached_by_tab() -> None:
    for name, slider in explorer().controls.items():
        assert slider.description == name and slider.tabbable is not False


def test_controls_begin_at_the_parameters_given() -> None:
    it = explorer(parameters={"temperature": 0.6, "top_p": 0.95})
    assert it.parameters == {**NEUTRAL, "temperature": 0.6, "top_p": 0.95}
    with pytest.raises(KeyError, match="max_tokens"):
        explorer(parameters={"max_tokens": 5})


def test_the_button_samples_with_the_present_parameters(capsys) -> None:
    asked = []

    def sample(parameters):
        asked.append(parameters)
        assert it.view.manual_button.disabled
        return Panel("<b>drawn</b>", "drawn")

    it = explorer(sample)
    it.controls["temperature"].value = 1.5
    it.view.manual_button.click()
    assert asked == [{**NEUTRAL, "temperature": 1.5}]
    assert capsys.readouterr().out.endswith("drawn\n")
    assert not it.view.manual_button.disabled


def test_a_failed_sample_leaves_the_button_alive(caplog) -> None:
    it = explorer(lambda parameters: released_model.generate())  # noqa: F821
    it.view.manual_button.click()
    assert "'released_model' is not defined" in caplog.text  # On a page it is shown.
    assert not it.view.manual_button.disabled


def test_the_static_view_is_a_table_that_escapes_its_tokens() -> None:
    panel = explorer(parameters={"top_k": 1}).panel()
    assert "<code>&#x27;&lt;b&gt;&#x27;</code>" in panel.html
    assert '<th scope="row"' in panel.html and "<caption" in panel.html
    lines = panel.text.splitlines()
    assert lines[2].split() == ["'<b>'", "50.0%", "100.0%", "#" * 30]
    assert lines[-1].split() == ["2", "others", "25.0%", "0.0%"]


def test_a_closed_widget_leaves_none_of_its_parts_in_the_kernel() -> None:
    before = dict(_instances)
    folded = ipywidgets.Accordion([ipywidgets.HTML("x")])
    box = ipywidgets.VBox([ipywidgets.Button(), ipywidgets.HBox([folded])])
    assert len(_instances) > len(before) + 5  # Layouts and styles are widgets as well.
    close_widget(box)
    assert _instances == before


def test_live_views_go_out_with_a_page_and_a_text_and_end_as_these() -> None:
    """In a kernel that no Jupyter server owns, such as VS Code starts."""
    source = find_child("browser_widgets").read_text(encoding="utf-8")
    manager, client = start_new_kernel(kernel_name="python3")
    messages = []
    try:
        for cell in source.split("# %%\n")[1:]:
            client.execute_interactive(
                cell, timeout=60, allow_stdin=False, output_hook=messages.append
            )
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    shown, ended = {}, {}
    for message in messages:
        if "display_data" in message["msg_type"]:
            name = message["content"]["transient"]["display_id"]
            update = message["msg_type"] == "update_display_data"
            (ended if update else shown)[name] = set(message["content"]["data"])
    texts = {"text/html", "text/plain"}  # The live view of memory is no widget.
    assert list(shown.values()) == [{VIEW, *texts}, texts]
    assert ended == dict.fromkeys(shown, texts)


def test_what_is_committed_needs_no_widget() -> None:
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            for output in cell.get("outputs", []):
                assert VIEW not in output.get("data", {}), (path.name, cell.id)
                assert "text/plain" in output.get("data", {"text/plain": 0}), cell.id
