"""Sampling: presets, and the distribution that sampling parameters leave.

A preset has one definition, for vLLM's engine and for `generate`. The values that a
model's own authors recommend are in `helpers.models.MODELS[...].sampling`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .internals.engine.sampling_params import sampling_params
from .models import fixed

if TYPE_CHECKING:
    from numpy import ndarray
    from vllm import SamplingParams

PRESETS: Mapping[str, Mapping[str, float | int]] = fixed(
    conservative=fixed(temperature=0.3, top_p=0.9, max_tokens=512),  # For facts.
    balanced=fixed(temperature=0.6, top_p=0.95, top_k=20, max_tokens=1024),
    creative=fixed(temperature=0.9, top_p=0.95, top_k=50, max_tokens=2048),
    # As balanced, with room for the thinking before the answer.
    thinking=fixed(temperature=0.6, top_p=0.95, top_k=20, max_tokens=2048),
)

# Names in vLLM, and those of the same parameters in transformers' GenerationConfig.
_RENAMED = fixed(
    max_tokens="max_new_tokens", min_tokens="min_new_tokens", n="num_return_sequences"
)
# The values that leave the distribution as the model gave it. vLLM has them unless they
# are given; `generate` would take those of the model's generation_config.json.
NEUTRAL: Mapping[str, float] = fixed(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)


def preset(
    name: str, *, for_generate: bool = False, **overrides: Any
) -> "SamplingParams | dict[str, Any]":
    """Make vLLM `SamplingParams` of a preset, or keyword arguments of `generate`.

    `overrides` are named as in `SamplingParams` (`max_tokens` in tokens, `seed`, ...)
    and win over the preset. With `for_generate=True` no engine is imported. Raises
    `ValueError` for an unknown name, `TypeError` for an override that the chosen side
    does not know, and what `SamplingParams` raises for a value out of its range.
    """
    if name not in PRESETS:
        known = ", ".join(PRESETS)
        raise ValueError(f"no preset is called {name!r}; there are {known}")
    values = {**PRESETS[name], **overrides}
    return _generate_arguments(values) if for_generate else sampling_params(values)


def _generate_arguments(values: dict[str, Any]) -> dict[str, Any]:
    known = {*_RENAMED, *NEUTRAL, "repetition_penalty"}
    if unknown := ", ".join(values.keys() - known):
        takes = f"it takes {', '.join(sorted(known))}, and transformers.set_seed(...)"
        raise TypeError(f"generate has nothing for {unknown}; {takes} before the call")
    sample = values["temperature"] != 0
    if sample:
        values = {**NEUTRAL, **values}
        values["top_k"] = max(values["top_k"], 0)  # vLLM also takes -1 for off.
    else:
        values = {k: v for k, v in values.items() if k not in NEUTRAL}
    return {"do_sample": sample, **{_RENAMED.get(k, k): v for k, v in values.items()}}


def reshape(
    logprobs: "ndarray",
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> "ndarray":
    """Compute the probabilities from which vLLM draws the next token; they sum to 1.

    `logprobs` are the model's own, natural logarithms; they and the result have the
    shape (vocabulary,). The order is that of vLLM's sampler: temperature, min_p, top_k,
    top_p. (transformers applies min_p last.) A `temperature` of 0 is greedy and ignores
    the rest; `top_k` of 0 or -1 is off. Raises `ValueError` for one out of its range.
    """
    import numpy as np

    if temperature < 0 or top_k < -1 or not 0 < top_p <= 1 or not 0 <= min_p <= 1:
        ranges = "top_k at least -1, top_p above 0 and at most 1, min_p from 0 to 1"
        raise ValueError(f"temperature must be at least 0, {ranges}")
    logits = np.asarray(logprobs, dtype=np.float64)
    if temperature < 1e-5:  # _SAMPLING_EPS in vllm/v1/sample/sampler.py
        return np.eye(1, logits.size, logits.argmax())[0]  # 1 for the likeliest.
    logits = logits / temperature
    weights = np.exp(logits - logits.max())  # That of the likeliest is 1.
    weights[weights < min_p] = 0
    if 0 < top_k < weights.size:
        weights[weights < np.partition(weights, -top_k)[-top_k]] = 0  # Ties stay.
    if top_p < 1:
        order = np.argsort(weights, kind="stable")
        below = np.cumsum((weights / weights.sum())[order]) <= 1 - top_p
        below[-1] = False  # The most likely token is never lost.
        weights[order[below]] = 0
    return weights / weights.sum()


def describe(probabilities: "ndarray") -> str:
    """Say how many tokens can be drawn, the first one's chance, the entropy in bits."""
    import numpy as np

    some = probabilities[probabilities > 0]
    bits = abs(some @ np.log2(some))
    tokens = f"{some.size:,} token{'s' * (some.size != 1)} can be drawn"
    return f"{tokens}, the likeliest with {some.max():.1%}; {bits:.2f} bits"
