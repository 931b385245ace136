"""Sampling values as vLLM's `SamplingParams`: converted to their types, or refused.

In go plain values: a preset, a row of a file, the advice of a model's authors. Out come
`SamplingParams` that vLLM's engine can take. It knows nothing of prompts.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...models import find_model

if TYPE_CHECKING:
    from vllm import SamplingParams

MAX_NEW_TOKENS = 2048  # for thinking and answer, where nobody asks for another number
# Fields of SamplingParams that concern the output, not the sampling.
_ABOUT_OUTPUT = {"output_kind", "output_text_buffer_length", "skip_clone", "detokenize"}
_OFF_WHEN_GREEDY = {"top_p", "top_k", "min_p"}


def sampling_params(values: Mapping[str, Any]) -> "SamplingParams":
    """Make `SamplingParams` of these values, each of the type that it must have.

    vLLM itself takes a seed of `"7"`, and its engine fails on it or hangs. Here text
    and NumPy's numbers become numbers, and None stands for vLLM's default.

    Raises `TypeError` for an unknown name or a wrong type, `ValueError` for a value out
    of its range.
    """
    import msgspec
    from vllm import SamplingParams

    plain, known = plain_values(values), _names_of(SamplingParams)
    if unknown := [str(name) for name in plain if name not in known]:
        raise TypeError(
            f"SamplingParams has no {', '.join(unknown)}: help(vllm.SamplingParams) "
            "lists its names"
        )
    for name, value in plain.items():
        if getattr(value, "ndim", None) == 0:  # NumPy's numbers.
            plain[name] = value = value.item()
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise ValueError(f"{name}={value} does not fit into 64 bits")
    try:
        return msgspec.convert(plain, SamplingParams, strict=False, str_keys=True)
    except Exception as error:  # vLLM's own type since 0.32, ValueError before.
        of_type = isinstance(error, msgspec.ValidationError) and not error.__cause__
        raise (TypeError if of_type else ValueError)(str(error)) from error


def plain_values(params: Any) -> dict[str, Any]:
    """Return sampling parameters as a dict, without those that greedy decoding resets.

    Raises `ValueError` for what is neither a mapping nor `SamplingParams`.
    """
    if hasattr(params, "__struct_fields__"):
        greedy = _OFF_WHEN_GREEDY if params.temperature == 0 else set()
        names = set(_names_of(params)) - _ABOUT_OUTPUT - greedy
        return {name: getattr(params, name) for name in sorted(names)}
    if not isinstance(params, Mapping | None):
        raise ValueError(
            "sampling_params are SamplingParams or a dict of some of their values, not "
            f"{type(params).__name__}."
        )
    given = (params or {}).items()  # max_tokens=None means: no limit.
    return {k: v for k, v in given if v is not None or k == "max_tokens"}


def _names_of(struct: Any) -> list[str]:
    return [name for name in struct.__struct_fields__ if not name.startswith("_")]


class Sampling:
    """The sampling of each prompt: its own values over the shared over the recommended.

    `path` is the model's: for supported models the values of their card apply, for
    others those of its `generation_config`, as vLLM names them; both with up to 2,048
    new tokens. `shared` are for all prompts, as a dict or as `SamplingParams`.

    Raises `ValueError` for bad `shared` and for a bad value of the model's own.
    """

    def __init__(
        self,
        path: str,
        shared: "SamplingParams | Mapping[str, Any] | None" = None,
        generation_config: Mapping[str, Any] | None = None,
    ) -> None:
        spec, room = find_model(path), {"max_tokens": MAX_NEW_TOKENS}
        self._models_own = {} if spec else dict(generation_config or {})
        known = room | dict(spec.sampling if spec else {})
        thinking = room | dict(spec.thinking_sampling or known) if spec else known
        self._by_mode = {False: known, True: thinking}
        self._shared = plain_values(shared)
        self._same = {mode: self._merge(mode, None) for mode in self._by_mode}

    @property
    def resolved(self) -> list[dict[str, Any]]:
        """All values that differ from vLLM's: a dict for each mode that has its own."""
        from vllm import SamplingParams

        plain, found = plain_values(SamplingParams()), []
        for values in self._by_mode.values():
            params = plain_values(sampling_params(values | self._shared))
            params = {k: v for k, v in params.items() if v != plain.get(k)}
            found += [params] if params not in found else []
        return found

    def for_prompt(self, own: Any, thinks: bool) -> "SamplingParams":
        """Return the parameters of a prompt with `own` sampling, or with None.

        `thinks` is False where the prompt switches a hybrid model's thinking off.
        Prompts without own sampling share one object. Raises `ValueError`.
        """
        return self._same[thinks] if own is None else self._merge(thinks, own)

    def _merge(self, thinks: bool, own: Any) -> "SamplingParams":
        given = self._shared | plain_values(own)
        try:
            params = sampling_params(self._models_own | self._by_mode[thinks] | given)
        except (TypeError, ValueError) as error:
            own = self._models_own
            over = f" over the model's generation_config.json {own}" if own else ""
            raise ValueError(f"bad sampling_params {given}{over}: {error}") from error
        if params.n != 1:
            raise ValueError(
                f"n={params.n}, but a result holds one answer: list the prompt "
                f"{params.n} times instead."
            )
        # We decode the tokens ourselves; vLLM only has to do so to find stop strings.
        params.detokenize = bool(params.stop)
        if hasattr(params, "skip_clone"):  # vLLM writes max_tokens where it is None.
            params.skip_clone = params.max_tokens is not None
        return params
