"""Sampling presets: one definition, for vLLM's engine and for `generate`.

The four presets are starting points for any model; what a model's own authors recommend
is in `helpers.models.MODELS[...].sampling`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .internals.engine.sampling_params import sampling_params

if TYPE_CHECKING:
    from vllm import SamplingParams


def _fixed(**values: Any) -> Mapping[str, Any]:
    return MappingProxyType(values)


PRESETS: Mapping[str, Mapping[str, float | int]] = _fixed(
    # Factual answers: little randomness.
    conservative=_fixed(temperature=0.3, top_p=0.9, max_tokens=512),
    # General use.
    balanced=_fixed(temperature=0.6, top_p=0.95, top_k=20, max_tokens=1024),
    # Diverse outputs.
    creative=_fixed(temperature=0.9, top_p=0.95, top_k=50, max_tokens=2048),
    # Balanced, with room for the thinking before the answer.
    thinking=_fixed(temperature=0.6, top_p=0.95, top_k=20, max_tokens=2048),
)

# vLLM's names for what transformers' GenerationConfig has as well, and its names.
_GENERATE: Mapping[str, str] = _fixed(
    max_tokens="max_new_tokens",
    min_tokens="min_new_tokens",
    n="num_return_sequences",
    **{name: name for name in ("temperature", "top_p", "top_k", "min_p")},
    repetition_penalty="repetition_penalty",
)
# vLLM has these off by default; `generate` must be told, or it takes the values of the
# model's generation_config.json.
_OFF = _fixed(top_p=1.0, top_k=0, min_p=0.0)


def preset(
    name: str, *, for_generate: bool = False, **overrides: Any
) -> "SamplingParams | dict[str, Any]":
    """A preset as vLLM `SamplingParams`, or as keyword arguments of `generate`.

    `overrides` are named as in `SamplingParams` (`max_tokens` in tokens, `seed`, ...)
    and win over the preset. With `for_generate=True` no engine is imported, and
    `temperature=0` gives greedy decoding, as it does in vLLM.

    Raises `ValueError` for an unknown name and `TypeError` for an override that the
    chosen side does not know. For vLLM also `ValueError` for a value out of its range
    (`generate` checks most of them itself), and `ImportError` without vLLM.
    """
    if name not in PRESETS:
        known = ", ".join(PRESETS)
        raise ValueError(f"no preset is called {name!r}; there are {known}")
    values = {**PRESETS[name], **overrides}
    if for_generate:
        return _generate_arguments(values)
    try:
        return sampling_params(values)
    except ImportError as error:
        raise ImportError(
            "sampling parameters for vLLM need vLLM, which cannot be imported here "
            f"({error}). Run `python -m helpers` to see why, or use "
            f"preset({name!r}, for_generate=True) with model.generate."
        ) from error


def _generate_arguments(values: dict[str, Any]) -> dict[str, Any]:
    if "seed" in values:
        raise TypeError(
            "generate has no seed= argument: call transformers.set_seed(...) before it"
        )
    if unknown := sorted(set(values) - set(_GENERATE)):
        raise TypeError(
            f"generate has nothing for {', '.join(unknown)}; it takes "
            f"{', '.join(_GENERATE)}"
        )
    sample = values["temperature"] != 0
    if sample:
        values = {**_OFF, **values}
        values["top_k"] = max(values["top_k"], 0)  # vLLM also takes -1 for off.
    else:
        values = {k: v for k, v in values.items() if k not in ("temperature", *_OFF)}
    return {"do_sample": sample, **{_GENERATE[k]: v for k, v in values.items()}}
