import importlib.util

import pytest
from child import run_child

from helpers.sampling import PRESETS, UnknownPresetError, preset

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
    with pytest.raises(UnknownPresetError, match="conservative, balanced"):
        preset("precise")


@pytest.mark.parametrize(
    ("override", "message"),
    [({"seed": 1}, "set_seed"), ({"thinking_token_budget": 8}, "has nothing for")],
)
def test_what_generate_can_not_do_is_said(override: dict, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        preset("balanced", for_generate=True, **override)


@pytest.mark.parametrize(
    "override",
    [{"temperature": -1}, {"max_tokens": 0}, {"top_p": 5}, {"top_p": 0}]
    + [{"min_p": -0.1}, {"top_k": -2}, {"top_k": 0.5}, {"repetition_penalty": 0}]
    + [{name: float("nan")} for name in ("temperature", "top_p", "min_p")]
    + [{"min_tokens": 2000}, {"n": 2, "temperature": 0}, {"max_tokens": True}],
)
def test_values_out_of_range_are_refused(override: dict) -> None:
    with pytest.raises(ValueError):
        preset("balanced", for_generate=True, **override)


def test_top_k_is_switched_off_as_in_vllm() -> None:
    for off in (0, -1):
        assert preset("balanced", for_generate=True, top_k=off)["top_k"] == 0


def test_vllm_gets_sampling_params_with_the_same_values() -> None:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    answers = run_child("presets")
    assert answers["presets"] == {
        name: [t, p, k or 0, m] for name, (t, p, k, m) in VALUES.items()
    }
    assert answers["changed"] == [7, 3, 0.6]
    assert answers["converted"] == [7, 5, 1.0]
    temperature, seed, name = answers["refused"]
    assert temperature[0] == "ValueError"
    assert seed[0] == "TypeError" and "got `float`" in seed[1]
    assert name[0] == "TypeError" and "did you mean temperature" in name[1]
