"""Sampling presets: one definition, for vLLM's engine and for `generate`.

The four presets are starting points for any model; what a model's own authors recommend
is in `helpers.models.MODELS[...].sampling`.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

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


def sampling_params(values: Mapping[str, Any]) -> "SamplingParams":
    """vLLM's `SamplingParams` of these values, each of the type that it must have.

    vLLM itself takes a seed of `"7"`, and its engine fails on it, or waits for ever
    where it runs in a process of its own. Here what is plainly meant is converted (text
    and NumPy's numbers to numbers, a dict to `structured_outputs`), None stands for
    what vLLM does by default, and the rest is refused.

    Raises `TypeError` for a name that `SamplingParams` has not and for a value of a
    wrong type, `ValueError` for one out of its range, `ImportError` without vLLM.
    """
    import msgspec
    from vllm import SamplingParams

    fields = {field.name: field for field in msgspec.structs.fields(SamplingParams)}
    known = [name for name in fields if not name.startswith("_")]
    if unknown := [name for name in values if name not in known]:
        near = difflib.get_close_matches(str(unknown[0]), known, 1)
        raise TypeError(
            f"SamplingParams has no {', '.join(map(repr, unknown))}"
            + (f"; did you mean {near[0]}?" if near else "")
        )
    plain = {
        name: value.item() if getattr(value, "ndim", None) == 0 else value
        for name, value in _values(values).items()
    }
    for name, value in plain.items():
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise ValueError(f"{name}={value} is no integer of 64 bits")
    try:
        return msgspec.convert(plain, SamplingParams, strict=False, str_keys=True)
    except msgspec.ValidationError as error:
        kind = ValueError if isinstance(error.__cause__, ValueError) else TypeError
        raise kind(str(error)) from error
    except Exception as error:  # vLLM's own type since 0.32, ValueError before.
        raise ValueError(str(error)) from error


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


# Fields of SamplingParams about the output, not about sampling.
_NOT_SAMPLING = {"output_kind", "output_text_buffer_length", "skip_clone", "detokenize"}


class Sampling:
    """The sampling of each prompt: its own values over the shared over the recommended.

    `recommended` is what the model's authors advise. A hybrid model's differs where the
    prompt lets it think: `thinking` then, for prompts that `thinks` says True for,
    given their tokens. `shared` are for all prompts, as a dict or as `SamplingParams`.

    Raises `ValueError` for bad `shared`.
    """

    def __init__(
        self,
        recommended: Mapping[str, Any],
        thinking: Mapping[str, Any] | None,
        thinks: Callable[[Sequence[int]], bool],
        shared: "SamplingParams | Mapping[str, Any] | None" = None,
    ) -> None:
        self._by_mode = {False: dict(recommended), True: dict(thinking or recommended)}
        self._thinks = thinks if thinking else lambda token_ids: False
        self._shared, self._given = _values(shared), shared
        self._same = {mode: self._merge(mode, None) for mode in self._by_mode}

    @property
    def given(self) -> dict[str, Any]:
        """The shared values that differ from vLLM's own."""
        from vllm import SamplingParams

        plain = SamplingParams()
        return {k: v for k, v in self._shared.items() if v != getattr(plain, k)}

    def params(self, own: Any, token_ids: Sequence[int]) -> "SamplingParams":
        """The parameters of a prompt with `own` sampling, or none. Raises `ValueError`.

        Prompts without own sampling share one object.
        """
        mode = self._thinks(token_ids)
        return self._same[mode] if own is None else self._merge(mode, own)

    def _merge(self, mode: bool, own: Any) -> "SamplingParams":
        values = {**self._by_mode[mode], **self._shared, **_values(own)}
        try:
            params = sampling_params(values)
        except (TypeError, ValueError) as error:
            given = self._given if own is None else own
            raise ValueError(f"bad sampling_params {given}: {error}") from error
        if params.n != 1:
            raise ValueError(
                f"n={params.n}, but a result holds one answer: list the prompt "
                f"{params.n} times instead."
            )
        # We decode the tokens ourselves; vLLM only has to do so to find stop strings.
        params.detokenize = bool(params.stop)
        if hasattr(params, "skip_clone"):  # Nobody else changes it: no copy needed.
            params.skip_clone = True
        return params


def _values(params: Any) -> dict[str, Any]:
    """Sampling parameters as a dict, without what greedy decoding had switched off."""
    from vllm import SamplingParams

    if isinstance(params, SamplingParams):
        left_out = _NOT_SAMPLING | (_OFF.keys() if params.temperature == 0 else set())
        names = [name for name in params.__struct_fields__ if not name.startswith("_")]
        return {name: getattr(params, name) for name in names if name not in left_out}
    if not isinstance(params, Mapping | None):
        raise ValueError(
            "sampling_params are SamplingParams or a dict of some of their values, not "
            f"{type(params).__name__}."
        )
    given = (params or {}).items()  # max_tokens=None means: no limit.
    return {k: v for k, v in given if v is not None or k == "max_tokens"}
