import numpy as np
import pytest

from helpers.internals.engine.sampling_params import sampling_params
from helpers.sampling import PRESETS, preset

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
    with pytest.raises(TypeError, match="did you mean temperature"):
        sampling_params({"temprature": 1})
