"""Turn sampling values into vLLM's `SamplingParams`, or refuse them.

In go plain values, as of a preset or a row; out come `SamplingParams` for vLLM.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...models import find_model

if TYPE_CHECKING:
    from vllm import SamplingParams

MAX_NEW_TOKENS = 2048  # For thinking and answer, unless the caller sets another limit.
# Fields of SamplingParams that concern the output, not the sampling.
_ABOUT_OUTPUT = {"output_kind", "output_text_buffer_length", "skip_clone", "detokenize"}


def sampling_params(values: Mapping[str, Any]) -> "SamplingParams":
    """Make `SamplingParams` of these values; convert each to its type.

    vLLM itself takes a seed of `"7"`, and its engine fails on it or hangs. Here text
    and NumPy's numbers become numbers, and None stands for vLLM's default. Raises
    `TypeError` for an unknown name or a wrong type, `ValueError` for a bad value.
    """
    import msgspec
    from vllm import SamplingParams

    plain = plain_values(values)
    if unknown := [str(k) for k in plain if k not in SamplingParams.__struct_fields__]:
        raise TypeError(f"vLLM's SamplingParams has no {', '.join(unknown)}")
    for name, value in plain.items():
        if getattr(value, "ndim", None) == 0:  # A number of NumPy's.
            plain[name] = value = value.item()
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise ValueError(f"{name}={value} does not fit into 64 bits")
    try:
        return msgspec.convert(plain, SamplingParams, strict=False, str_keys=True)
    except Exception as error:  # vLLM's own type since 0.32, ValueError before.
        of_type = isinstance(error, msgspec.ValidationError) and not error.__cause__
        raise (TypeError if of_type else ValueError)(str(error)) from error


def plain_values(params: Any) -> dict[str, Any]:
    """Return parameters as a dict, without those that greedy decoding resets."""
    if hasattr(params, "__struct_fields__"):
        unused = {"top_p", "top_k", "min_p"} if params.temperature == 0 else set()
        names = sorted({*params.__struct_fields__} - _ABOUT_OUTPUT - unused)
        return {name: getattr(params, name) for name in names if name[0] != "_"}
    if not isinstance(params, Mapping | None):
        kind = type(params).__name__
        raise ValueError(f"sampling_params are SamplingParams or a dict, not {kind}.")
    given = (params or {}).items()  # max_tokens=None means: no limit.
    return {k: v for k, v in given if v is not None or k == "max_tokens"}


class Sampling:
    """The sampling of each prompt: its own values over `shared` over the model's.

    A supported model's values are those of its card; another's are `own`, a dict of its
    `generation_config` in vLLM's names. Both get 2,048 new tokens. `shared` are a dict
    or `SamplingParams`. `resolved` lists all values that differ from vLLM's: one dict,
    or two where thinking makes a difference. Raises `ValueError` for a bad value.
    """

    def __init__(self, path: str, shared: Any = None, own: Any = None) -> None:
        from vllm import SamplingParams

        spec, room = find_model(path), {"max_tokens": MAX_NEW_TOKENS}
        usual = spec.sampling if spec else own or {}
        thinking = (spec and spec.thinking_sampling) or usual
        self._usual = {False: {**usual, **room}, True: {**thinking, **room}}
        self._shared = plain_values(shared)
        vllms = plain_values(SamplingParams())
        both = [plain_values(self.for_prompt(None, thinks)) for thinks in self._usual]
        changed = [{k: v for k, v in p.items() if v != vllms.get(k)} for p in both]
        self.resolved = changed[:1] if changed[0] == changed[1] else changed

    def for_prompt(self, own: Any, thinks: bool) -> "SamplingParams":
        """Return a prompt's parameters; raise `ValueError` for a bad value of `own`.

        `thinks` is False where the prompt switches a hybrid model's thinking off.
        """
        usual, given = self._usual[thinks], self._shared | plain_values(own)
        try:
            params = sampling_params(usual | given)
        except (TypeError, ValueError) as error:
            text = f"{given} over the model's card or generation_config.json {usual}"
            raise ValueError(f"bad sampling_params {text}: {error}") from error
        if params.n != 1:
            raise ValueError(f"n={params.n}: list the prompt {params.n} times instead.")
        # We decode the tokens ourselves; vLLM only has to do so to find stop strings.
        params.detokenize = bool(params.stop)
        params.skip_clone = True  # No other prompt has this object.
        return params
