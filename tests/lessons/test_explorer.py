import json

import numpy as np
import pytest
from child import run_child
from hypothesis import given
from hypothesis import strategies as st

from helpers.charts import Panel
from helpers.explorer import (
    NEUTRAL,
    DistributionExplorer,
    describe,
    entropy,
    reshape,
)

SETTINGS = [
    {"temperature": 0.6, "top_p": 0.95, "top_k": 20},
    {"temperature": 0.3, "top_p": 0.9},
    {"temperature": 1.7},
    {"top_k": 1},
    {"top_p": 0.01},
    {"min_p": 0.2},
    {"temperature": 1.3, "min_p": 0.05, "top_k": 7, "top_p": 0.8},
]


def logprobs_of(seed: int, size: int = 300) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(scale=3, size=size)
    return logits - np.log(np.exp(logits).sum())


def small() -> np.ndarray:
    return np.log([0.5, 0.25, 0.15, 0.1])


def decode(token_ids: list[int]) -> str:
    return ["<b>", " two", "\n", ""][token_ids[0]]


def test_neutral_parameters_change_nothing() -> None:
    assert reshape(small(), **NEUTRAL) == pytest.approx([0.5, 0.25, 0.15, 0.1])


def test_each_parameter_does_what_its_name_says() -> None:
    squared = np.array([0.5, 0.25, 0.15, 0.1]) ** 2
    assert reshape(small(), temperature=0.5) == pytest.approx(squared / squared.sum())
    assert reshape(small(), top_k=2) == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert reshape(small(), top_p=0.6) == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert reshape(small(), min_p=0.28) == pytest.approx([5 / 9, 2.5 / 9, 1.5 / 9, 0])


def test_temperature_zero_is_greedy_whatever_else_is_set() -> None:
    assert list(reshape(small(), temperature=0, top_k=3)) == [1, 0, 0, 0]


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"top_p": 0}, {"top_k": -2}, {"min_p": 1.1}]
)
def test_a_parameter_out_of_range_is_refused(wrong) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        reshape(small(), **wrong)


@given(
    st.lists(st.floats(-20, 20), min_size=1, max_size=40),
    st.floats(0, 2),
    st.integers(-1, 50),
    st.floats(0.01, 1),
    st.floats(0, 1),
)
def test_probabilities_sum_to_one_and_keep_a_likeliest(
    logits, temperature, top_k, top_p, min_p
) -> None:
    logprobs = np.array(logits) - np.log(np.exp(logits).sum())
    after = reshape(
        logprobs, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
    )
    assert after.sum() == pytest.approx(1)
    assert logprobs[after.argmax()] == pytest.approx(logprobs.max())


def test_vllm_draws_from_the_same_probabilities() -> None:
    logprobs = logprobs_of(3)
    arguments = json.dumps(logprobs.tolist()), json.dumps(SETTINGS)
    results = run_child("vllm_probabilities", *arguments)["probabilities"]
    for values, theirs in zip(SETTINGS, results, strict=True):
        ours = reshape(logprobs, **values)
        assert (np.array(theirs) > 0).sum() == (ours > 0).sum(), values
        assert theirs == pytest.approx(ours, abs=1e-6), values


@pytest.mark.parametrize("values", SETTINGS[:-1])
def test_generate_of_transformers_draws_from_the_same_probabilities(values) -> None:
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process as warpers

    order = {
        "temperature": warpers.TemperatureLogitsWarper,
        "top_k": warpers.TopKLogitsWarper,
        "top_p": warpers.TopPLogitsWarper,
        "min_p": warpers.MinPLogitsWarper,
    }
    logprobs = logprobs_of(4)
    logits = torch.from_numpy(logprobs)[None]
    for name, warper in order.items():
        if name in values:
            logits = warper(values[name])(None, logits)
    theirs = logits.softmax(-1)[0].tolist()
    assert theirs == pytest.approx(reshape(logprobs, **values), abs=1e-9)


def test_entropy_is_in_bits() -> None:
    assert entropy(np.full(8, 1 / 8)) == pytest.approx(3)
    assert entropy(np.array([1.0, 0.0])) == 0
    assert describe(np.array([1.0, 0.0])).startswith("1 token can be drawn")


def explorer(sample=lambda parameters: "text", **kwargs) -> DistributionExplorer:
    return DistributionExplorer(small(), decode, sample, tokens=2, **kwargs)


def test_moving_a_slider_redraws_the_chart_and_moves_the_number() -> None:
    it = explorer()
    before = it.chart.value
    number, slider = it.controls["top_k"]
    slider.value = 1
    assert number.value == it.parameters["top_k"] == 1
    assert it.chart.value != before
    assert "1 token can be drawn" in it.chart.value
    number.value = 0
    assert slider.value == 0
    assert it.chart.value == before


def test_controls_begin_at_the_parameters_given() -> None:
    it = explorer(parameters={"temperature": 0.6, "top_p": 0.95})
    assert it.parameters == {**NEUTRAL, "temperature": 0.6, "top_p": 0.95}
    with pytest.raises(ValueError, match="no control for max_tokens"):
        explorer(parameters={"max_tokens": 5})


def test_the_button_samples_with_the_present_parameters() -> None:
    asked = []

    def sample(parameters):
        asked.append(parameters)
        assert it.button.disabled
        return Panel("<b>drawn</b>", "drawn")

    it = explorer(sample)
    it.controls["temperature"][0].value = 1.5
    it.button.click()
    assert asked == [{**NEUTRAL, "temperature": 1.5}]
    assert "<b>drawn</b>" in it.output.value
    assert not it.button.disabled


def test_a_failed_sample_is_shown_and_the_button_lives() -> None:
    def sample(parameters):
        raise ValueError("no <engine>")

    it = explorer(sample)
    it.button.click()
    assert "ValueError: no &lt;engine&gt;" in it.output.value
    assert not it.button.disabled


def test_the_static_view_is_a_table_that_escapes_its_tokens() -> None:
    panel = explorer(parameters={"top_k": 1}).panel()
    assert "<code>&#x27;&lt;b&gt;&#x27;</code>" in panel.html
    assert "upper bar" in panel.html and "lower bar" in panel.html
    assert '<th scope="row"' in panel.html and "<caption" in panel.html
    lines = panel.text.splitlines()
    assert lines[1].split() == ["'<b>'", "50.0%", "->", "100.0%", "#" * 30]
    assert lines[-1].split() == ["2", "others", "25.0%", "->", "0.0%"]


def test_a_kernel_shows_widgets_with_the_static_view_beside_them() -> None:
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3")
    outputs = []
    code = """
import numpy as np
from IPython.display import display
from helpers.explorer import DistributionExplorer
it = DistributionExplorer(np.log([.75, .25]), str, lambda parameters: parameters)
display(it)
it.controls["top_k"][1].value = 1
it.button.click()
print("VALUE", it.output.value)
"""
    try:
        client.execute_interactive(code, timeout=60, output_hook=outputs.append)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    shown = [o["content"]["data"] for o in outputs if o["msg_type"] == "display_data"]
    assert len(shown) == 1
    assert {
        "application/vnd.jupyter.widget-view+json",
        "text/html",
        "text/plain",
    } <= set(shown[0])
    assert "2 tokens can be drawn" in shown[0]["text/plain"]
    printed = "".join(o["content"].get("text", "") for o in outputs)
    assert "top_k" in printed and ": 1" in printed
    updates = [o for o in outputs if o["msg_type"] == "comm_msg"]
    values = [o["content"]["data"].get("state", {}).get("value") for o in updates]
    assert any("1 token can be drawn" in str(value) for value in values)
