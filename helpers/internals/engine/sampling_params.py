"""Values for vLLM's `SamplingParams`, each converted to its type or refused.

In go plain values: a preset, a row of a file, what a model's authors recommend. Out
come `SamplingParams` that vLLM's engine can take. This module knows nothing of presets
and of prompts.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm import SamplingParams

# Fields of SamplingParams about the output, not about sampling.
_NOT_SAMPLING = {"output_kind", "output_text_buffer_length", "skip_clone", "detokenize"}
_OFF_WHEN_GREEDY = {"top_p", "top_k", "min_p"}


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
        for name, value in plain_values(values).items()
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
        self._shared, self._given = plain_values(shared), shared
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
        values = {**self._by_mode[mode], **self._shared, **plain_values(own)}
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


def plain_values(params: Any) -> dict[str, Any]:
    """Sampling parameters as a dict, without what greedy decoding had switched off."""
    from vllm import SamplingParams

    if isinstance(params, SamplingParams):
        left_out = _NOT_SAMPLING | (
            _OFF_WHEN_GREEDY if params.temperature == 0 else set()
        )
        names = [name for name in params.__struct_fields__ if not name.startswith("_")]
        return {name: getattr(params, name) for name in names if name not in left_out}
    if not isinstance(params, Mapping | None):
        raise ValueError(
            "sampling_params are SamplingParams or a dict of some of their values, not "
            f"{type(params).__name__}."
        )
    given = (params or {}).items()  # max_tokens=None means: no limit.
    return {k: v for k, v in given if v is not None or k == "max_tokens"}
