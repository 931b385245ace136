"""Sampling presets: one definition, for vLLM's engine and for `generate`.

The four presets are starting points for any model; what a model's own authors recommend
is in `helpers.models.MODELS[...].sampling`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, overload

if TYPE_CHECKING:
    from vllm import SamplingParams

PRESETS: Mapping[str, Mapping[str, float | int]] = MappingProxyType(
    {
        name: MappingProxyType(values)
        for name, values in {
            # Factual answers: little randomness.
            "conservative": {"temperature": 0.3, "top_p": 0.9, "max_tokens": 512},
            # General use.
            "balanced": {
                "temperature": 0.6,
                "top_p": 0.95,
                "top_k": 20,
                "max_tokens": 1024,
            },
            # Diverse outputs.
            "creative": {
                "temperature": 0.9,
                "top_p": 0.95,
                "top_k": 50,
                "max_tokens": 2048,
            },
            # Balanced, with room for the thinking before the answer.
            "thinking": {
                "temperature": 0.6,
                "top_p": 0.95,
                "top_k": 20,
                "max_tokens": 2048,
            },
        }.items()
    }
)

# vLLM's name -> the name of the same thing in transformers' GenerationConfig.
_GENERATE_NAMES = MappingProxyType(
    {
        "max_tokens": "max_new_tokens",
        "min_tokens": "min_new_tokens",
        "temperature": "temperature",
        "top_p": "top_p",
        "top_k": "top_k",
        "min_p": "min_p",
        "repetition_penalty": "repetition_penalty",
        "n": "num_return_sequences",
    }
)
# Off in vLLM unless asked for; said aloud to `generate`, where the model's own
# generation_config.json would otherwise fill the gap with other values.
_OFF = MappingProxyType({"top_p": 1.0, "top_k": 0, "min_p": 0.0})


class UnknownPresetError(KeyError):
    """A preset name that is not in `PRESETS`."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show the repr, with quotes.


@overload
def preset(
    name: str, *, for_generate: Literal[False] = False, **overrides: Any
) -> "SamplingParams": ...
@overload
def preset(
    name: str, *, for_generate: Literal[True], **overrides: Any
) -> dict[str, Any]: ...
def preset(
    name: str, *, for_generate: bool = False, **overrides: Any
) -> "SamplingParams | dict[str, Any]":
    """A preset as vLLM `SamplingParams`, or as keyword arguments of `generate`.

    `overrides` are named as in `SamplingParams` (`max_tokens` in tokens, `seed`, ...)
    and win over the preset. With `for_generate=True` no engine is imported, and
    `temperature=0` gives greedy decoding, as it does in vLLM.

    Raises `UnknownPresetError` for an unknown name; `TypeError` for an override that
    the chosen side does not know; `ValueError` for one out of its range;
    `ImportError` where vLLM is not installed.
    """
    try:
        values = {**PRESETS[name], **overrides}
    except KeyError:
        raise UnknownPresetError(
            f"no preset is called {name!r}; there are {', '.join(PRESETS)}"
        ) from None
    if for_generate:
        return _generate_arguments(values)
    try:
        from vllm import SamplingParams
    except ImportError as error:
        raise ImportError(
            "sampling parameters for vLLM need vLLM, which cannot be imported here "
            f"({error}). Run `python -m helpers` to see why, or use "
            f"preset({name!r}, for_generate=True) with model.generate."
        ) from error
    try:
        return SamplingParams(**values)
    except TypeError:
        raise
    except Exception as error:  # vLLM's own type since 0.32, ValueError before.
        raise ValueError(str(error)) from error


def _generate_arguments(values: dict[str, Any]) -> dict[str, Any]:
    if "seed" in values:
        raise TypeError(
            "generate has no seed= argument: call transformers.set_seed(...) before it"
        )
    if unknown := sorted(set(values) - set(_GENERATE_NAMES)):
        raise TypeError(
            f"generate has nothing for {', '.join(unknown)}; "
            f"it takes {', '.join(_GENERATE_NAMES)}"
        )
    if values["temperature"] < 0 or values["max_tokens"] < 1:
        raise ValueError("temperature must be at least 0 and max_tokens at least 1")
    values = {**_OFF, **values}
    if not (0 < values["top_p"] <= 1 and 0 <= values["min_p"] <= 1):
        raise ValueError("top_p must be above 0, min_p at least 0, and both at most 1")
    if values["top_k"] < -1:
        raise ValueError("top_k must be at least 1, or 0 or -1 to switch it off")
    values["top_k"] = max(values["top_k"], 0)  # Off is -1 in vLLM too, here 0 alone.
    if values["temperature"] == 0:
        for sampled in ("temperature", *_OFF):
            values.pop(sampled, None)
        return {"do_sample": False} | _renamed(values)
    return {"do_sample": True} | _renamed(values)


def _renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {_GENERATE_NAMES[name]: value for name, value in values.items()}
