"""Sampling presets: one definition, for vLLM's engine and for `generate`.

The four presets are starting points for any model; what a model's own authors recommend
is in `helpers.models.MODELS[...].sampling`.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
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

# vLLM's name -> the name of the same thing in transformers' GenerationConfig, and the
# range that vLLM allows: sampling_params.py, SamplingParams._verify_args.
_GENERATE: Mapping[str, tuple[str, float, float, type]] = _fixed(
    max_tokens=("max_new_tokens", 1, math.inf, Integral),
    min_tokens=("min_new_tokens", 0, math.inf, Integral),
    temperature=("temperature", 0, 2, Real),
    top_p=("top_p", 0, 1, Real),
    top_k=("top_k", -1, math.inf, Integral),
    min_p=("min_p", 0, 1, Real),
    repetition_penalty=("repetition_penalty", 0, math.inf, Real),
    n=("num_return_sequences", 1, math.inf, Integral),
)
# vLLM has these off by default; `generate` must be told, or it takes the values of the
# model's generation_config.json.
_OFF = _fixed(top_p=1.0, top_k=0, min_p=0.0)


class UnknownPresetError(KeyError):
    """A preset name that is not in `PRESETS`."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show the repr, with quotes.


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
    values = {**_OFF, **values}
    for name, value in values.items():
        _, least, most, kind = _GENERATE[name]
        # bool is a subclass of int, but a mistake here.
        if isinstance(value, bool) or not isinstance(value, kind):
            what = "an integer" if kind is Integral else "a number"
            raise ValueError(f"{name} must be {what}, not {value!r}")
        if not least <= value <= most or not math.isfinite(value):
            raise ValueError(f"{name} must be from {least} to {most}, not {value}")
        if value == 0 and name in ("top_p", "repetition_penalty"):
            raise ValueError(f"{name} must be above 0")
    greedy = values["temperature"] == 0
    if values.get("min_tokens", 0) > values["max_tokens"]:
        raise ValueError("min_tokens must be at most max_tokens")
    if greedy and values.get("n", 1) > 1:
        raise ValueError("n must be 1 with temperature=0: greedy answers are all alike")
    values["top_k"] = max(values["top_k"], 0)  # vLLM also takes -1 for off.
    for sampled in ("temperature", *_OFF) if greedy else ():
        del values[sampled]
    renamed = {_GENERATE[name][0]: value for name, value in values.items()}
    return {"do_sample": not greedy, **renamed}


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
