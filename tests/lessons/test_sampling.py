import json

import numpy as np
import pytest
from child import run_child
from hypothesis import given
from hypothesis import strategies as st

from helpers.internals.engine.sampling_params import Sampling, sampling_params
from helpers.sampling import (
    NEUTRAL,
    PRESETS,
    describe,
    preset,
    reshape,
)

VALUES = {
    "conservative": (0.3, 0.9, None, 512),
    "balanced": (0.6, 0.95, 20, 1024),
    "creative": (0.9, 0.95, 50, 2048),
    "thinking": (0.6, 0.95, 20, 2048),
}


def test_the_presets_have_their_documented_values() -> None:
    assert {
        name: (v["temperature"], v["top_p"], v.get("top_k"), v["max_tokens"])
        for name, v in PRESETS.items()
    } == VALUES


def test_generate_gets_the_same_values_under_its_own_names() -> None:
    assert preset("thinking", for_generate=True, max_tokens=64, n=2) == {
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "min_p": 0.0,
        "max_new_tokens": 64,
        "num_return_sequences": 2,
    }


def test_what_a_preset_leaves_off_is_off_in_generate_too() -> None:
    # transformers would put the model's own top_k there, or 50.
    assert preset("conservative", for_generate=True)["top_k"] == 0


def test_temperature_zero_is_greedy_in_generate() -> None:
    assert preset("balanced", for_generate=True, temperature=0) == {
        "do_sample": False,
        "max_new_tokens": 1024,
    }


def test_an_override_does_not_change_the_preset() -> None:
    preset("balanced", for_generate=True, temperature=0, top_k=1)
    assert PRESETS["balanced"]["top_k"] == 20
    with pytest.raises(TypeError):
        PRESETS["balanced"]["top_k"] = 1


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="conservative, balanced"):
        preset("precise")


@pytest.mark.parametrize(
    ("override", "message"),
    [({"seed": 1}, "set_seed"), ({"thinking_token_budget": 8}, "has nothing for")],
)
def test_what_generate_can_not_do_is_said(override: dict, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        preset("balanced", for_generate=True, **override)


def test_top_k_is_switched_off_as_in_vllm() -> None:
    for off in (0, -1):
        assert preset("balanced", for_generate=True, top_k=off)["top_k"] == 0


def test_vllm_gets_sampling_params_with_the_same_values() -> None:
    for name, (temperature, top_p, top_k, max_tokens) in VALUES.items():
        params = preset(name)
        assert (params.temperature, params.top_p) == (temperature, top_p)
        assert (params.top_k, params.max_tokens) == (top_k or 0, max_tokens)
    changed = preset("thinking", max_tokens=7, seed=3)
    assert (changed.max_tokens, changed.seed, changed.temperature) == (7, 3, 0.6)


def test_values_for_vllm_are_converted_or_refused() -> None:
    given = {"seed": "7", "top_k": np.int64(5), "stop": None}
    params = sampling_params(given)
    assert (params.seed, params.top_k, params.temperature) == (7, 5, 1.0)
    with pytest.raises(ValueError):
        preset("thinking", temperature=-1)
    with pytest.raises(TypeError, match="got `float`"):
        sampling_params({"seed": 1.5})
    with pytest.raises(TypeError, match="has no temprature"):
        sampling_params({"temprature": 1})


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
    assert describe(np.full(8, 1 / 8)).endswith("likeliest with 12.5%; 3.00 bits")
    certain = "1 token can be drawn, the likeliest with 100.0%; 0.00 bits"
    assert describe(np.array([1.0, 0.0])) == certain


def test_a_model_has_room_for_its_thinking_whatever_its_own_file_says() -> None:
    own = {"temperature": 0.7, "max_tokens": 20}  # as vLLM names max_new_tokens
    params = Sampling("me/mine", None, own).for_prompt(None, thinks=True)
    assert (params.max_tokens, params.temperature) == (2048, 0.7)


@pytest.mark.parametrize(
    ("name", "value"), [("top_p", 0.0), ("top_k", -5), ("repetition_penalty", 0.0)]
)
def test_a_bad_value_of_the_models_own_is_named(name: str, value: float) -> None:
    own = {name: value}
    with pytest.raises(
        ValueError, match=rf"generation_config.json \{{'{name}': {value}"
    ):
        Sampling("me/mine", None, own)
    mended = Sampling("me/mine", {name: 1}, own).for_prompt(None, thinks=True)
    assert getattr(mended, name) == 1
    with pytest.raises(ValueError, match="bad sampling_params"):
        Sampling("me/mine", {"temperature": -1}, {"top_k": 5})


def test_no_limit_is_not_shared_between_prompts() -> None:
    """vLLM writes the room of one prompt into its parameters, which are its own."""
    sampling = Sampling("me/mine", {"max_tokens": None})
    first, second = (sampling.for_prompt(None, thinks=True) for _ in range(2))
    first.max_tokens = 5
    assert second.max_tokens is None
