"""Many prompts in, as many results out, in order; a bad prompt fails by itself.

    results = run_batch(model, ["What is 2 + 2?", "What is recursion?"])

All prompts go to vLLM at once, which batches them as its memory allows.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from .interrupts import interruptible
from .models import MODELS
from .sampling import PRESETS
from .thinking import parse_thinking_responses, unfinished_hint

if TYPE_CHECKING:
    from vllm import LLM, SamplingParams

__all__ = ["BatchResult", "run_batch"]

_KEYS = ("id", "messages", "prompt", "sampling_params")
_SHAPES = (
    "a prompt is a string, a list of chat messages, or a dict with "
    f"{', '.join(_KEYS[:-1])} or {_KEYS[-1]}"
)


class _BadPrompt(ValueError):
    """Why one prompt can't be answered; becomes the `error` of its result."""


@dataclass(frozen=True, repr=False)
class BatchResult:
    """What became of one prompt.

    `index` is its place in the list, `prompt` what stood there, `id` the prompt's own.
    `response` is None while the thinking is unfinished (`complete` is False then), and
    where there is an `error`, which says what to do. `finish_reason` is vLLM's: "stop",
    or "length" where the tokens ran out. `tokens` counts all generated tokens, those of
    the thinking, of the response and the markers between; `prompt_tokens` the prompt's.
    """

    index: int
    prompt: Any = field(compare=False)
    id: Any = None
    thinking: str | None = None
    response: str | None = None
    complete: bool = False
    finish_reason: str | None = None
    prompt_tokens: int = 0
    tokens: int = 0
    thinking_tokens: int = 0
    response_tokens: int = 0
    error: str | None = None

    @property
    def truncated(self) -> bool:
        """True where tokens ran out, in the thinking or in the answer."""
        return self.finish_reason == "length"

    def __repr__(self) -> str:
        name = f"{self.index}" if self.id is None else f"{self.index}, id={self.id!r}"
        if self.error is not None:
            return f"BatchResult({name}, error={self.error!r})"
        text = (
            f"BatchResult({name}, response={self.response!r}, {self.tokens} tokens, "
            f"finish_reason={self.finish_reason!r})"
        )
        if self.complete:
            return text
        return f"{text}  # {unfinished_hint(self.finish_reason)}"


class _Request(NamedTuple):
    index: int
    token_ids: list[int]
    params: "SamplingParams"


def run_batch(
    model: Any,
    prompts: Iterable[Any],
    sampling_params: "SamplingParams | Mapping[str, Any] | None" = None,
    *,
    tokenizer: Any = None,
    progress: bool = True,
) -> list[BatchResult]:
    """Generate for many prompts, and return one parsed result each, in their order.

    `model` is one loaded with `fast_inference=True`, or a `vllm.LLM`. A prompt is a
    string (a user's message), a list of chat messages, or a dict with `messages` (or
    `prompt`) and, if wanted, an `id` and its own `sampling_params`, as `SamplingParams`
    or as a dict of those values that differ from the others'.

    `sampling_params` are for all prompts; a dict holds what differs from the default,
    which is what the model's authors recommend, with up to 2,048 new tokens.
    `tokenizer` replaces the engine's own. `progress` shows a bar with prompts, new
    tokens per second and how many prompts were cut short.

    A prompt that is empty, of a wrong type, too long for the model, or that comes with
    bad parameters gets a result with an `error`, and the rest goes on. An interrupt
    ends the batch, and leaves an engine that works.

    Raises `TypeError` for a model without vLLM's engine and for prompts that are no
    list, `ValueError` for bad `sampling_params` and a tokenizer without chat template,
    `NotEnoughMemoryError` when the generation runs out of memory.
    """
    prompts = _as_prompts(prompts)
    engine = _engine_of(model)
    tokenizer = engine.get_tokenizer() if tokenizer is None else tokenizer
    # Multimodal models come with a processor, which holds the tokenizer.
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "the tokenizer has no chat template: use a model trained for chats, or set "
            "tokenizer.chat_template"
        )
    try:
        shared = _merged(_recommended(engine), sampling_params)
    except _BadPrompt as error:
        raise ValueError(str(error)) from error

    room = engine.model_config.max_model_len
    requests: list[_Request] = []
    errors: dict[int, str] = {}
    for index, prompt in enumerate(prompts):
        try:
            token_ids = _token_ids(_messages(prompt), tokenizer, room)
            params = _merged(shared, _get(prompt, "sampling_params"))
            requests.append(_Request(index, token_ids, params))
        except _BadPrompt as error:
            errors[index] = str(error)

    answered = _generate(engine, requests, errors, progress)
    completions = [output.outputs[0] for _, output in answered]
    parsed = parse_thinking_responses(
        [completion.token_ids for completion in completions],
        tokenizer,
        prompt_token_ids=[request.token_ids for request, _ in answered],
        finish_reasons=[completion.finish_reason for completion in completions],
    )
    fields: dict[int, dict[str, Any]] = {
        index: {"error": error} for index, error in errors.items()
    }
    for (request, output), result in zip(answered, parsed, strict=True):
        fields[request.index] = {
            "thinking": result.thinking,
            "response": result.response,
            "complete": result.complete,
            "finish_reason": result.finish_reason,
            "prompt_tokens": len(request.token_ids),
            "tokens": len(output.outputs[0].token_ids),
            "thinking_tokens": result.thinking_tokens,
            "response_tokens": result.response_tokens,
        }
    return [
        BatchResult(index, prompt, _get(prompt, "id"), **fields[index])
        for index, prompt in enumerate(prompts)
    ]


def _engine_of(model: Any) -> "LLM":
    engine = getattr(model, "vllm_engine", None) or model
    if not hasattr(engine, "llm_engine"):
        raise TypeError(
            f"run_batch needs vLLM's engine, and {type(model).__name__} has none: load "
            "the model with fast_inference=True, or pass a vllm.LLM"
        )
    return engine


def _as_prompts(prompts: Any) -> list[Any]:
    if isinstance(prompts, str | Mapping):
        raise TypeError("prompts is a list: put a single prompt in brackets, [prompt]")
    prompts = list(prompts)
    if prompts and all(isinstance(p, Mapping) and "role" in p for p in prompts):
        raise TypeError("this is one chat: put its messages in brackets, [messages]")
    return prompts


def _get(prompt: Any, key: str) -> Any:
    return prompt.get(key) if isinstance(prompt, Mapping) else None


# --- one prompt -----------------------------------------------------------------------


def _messages(prompt: Any) -> list[Mapping[str, Any]]:
    if isinstance(prompt, Mapping):
        if unknown := [str(key) for key in prompt if key not in _KEYS]:
            raise _BadPrompt(f"unknown key {', '.join(unknown)}: {_SHAPES}.")
        if ("messages" in prompt) == ("prompt" in prompt):
            raise _BadPrompt("give the dict either messages or prompt.")
        prompt = prompt["messages"] if "messages" in prompt else prompt["prompt"]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list | tuple):
        raise _BadPrompt(f"{_SHAPES}; this is of type {type(prompt).__name__}.")
    for message in prompt:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise _BadPrompt(
                'each chat message is a dict with "role" and "content"; one is '
                f"{str(message)[:60]!r}."
            )
    contents = [message["content"] for message in prompt if message["content"]]
    if all(isinstance(content, str) and not content.strip() for content in contents):
        raise _BadPrompt("the prompt is empty: write a question, or leave it out.")
    return list(prompt)


def _token_ids(
    messages: list[Mapping[str, Any]], tokenizer: Any, room: int
) -> list[int]:
    try:
        # As token ids: of text, vLLM would make tokens with a second start token.
        token_ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except Exception as error:  # Whatever the template's own code raises.
        raise _BadPrompt(
            f"the model's chat template refuses these messages: {error}. Check their "
            "roles, their order, and that each content is a text."
        ) from error
    if len(token_ids) >= room:
        raise _BadPrompt(
            f"the prompt has {len(token_ids):,} tokens, and the model was loaded for "
            f"{room:,} with the answer: shorten or split it, or raise MAX_SEQ_LENGTH."
        )
    return token_ids


def _recommended(engine: "LLM") -> dict[str, Any]:
    """The sampling that the model's authors recommend, and room for thinking."""
    config = engine.model_config
    spec = next((spec for spec in MODELS.values() if spec.path == config.model), None)
    values = spec.sampling if spec else config.get_diff_sampling_param()
    return {"max_tokens": PRESETS["thinking"]["max_tokens"], **values}


def _merged(base: "SamplingParams | dict[str, Any]", own: Any) -> "SamplingParams":
    """`own` if it is complete, else `base` with the values that `own` has."""
    from msgspec.structs import replace
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    if not isinstance(own, SamplingParams | Mapping | None):
        raise _BadPrompt(
            "sampling_params are SamplingParams or a dict of some of their values, not "
            f"{type(own).__name__}."
        )
    try:
        if isinstance(own, SamplingParams):
            params = own.clone()  # The engine writes into it.
        elif isinstance(base, SamplingParams):
            params = replace(base, **(own or {}))
        else:
            params = SamplingParams(**{**base, **(own or {})})
    except (TypeError, ValueError, VLLMValidationError) as error:
        raise _BadPrompt(
            f"bad sampling_params {own}; vLLM's SamplingParams has the names and "
            f"ranges: {error}"
        ) from error
    if params.n != 1:
        raise _BadPrompt(
            f"n={params.n}, but a result holds one answer: list the prompt {params.n} "
            "times instead."
        )
    return params


# --- all prompts ----------------------------------------------------------------------


class _OneByOne:
    """vLLM's engine, taking each request by itself: a refused one stops no other."""

    def __init__(self, engine: "LLM", refuse: Callable[[int, str], None]) -> None:
        self.llm_engine = engine.llm_engine
        self._engine = engine
        self._refuse = refuse

    def generate(
        self, requests: list[_Request], use_tqdm: bool
    ) -> list[tuple[_Request, Any]]:
        from vllm.exceptions import VLLMValidationError  # A ValueError in 0.26.

        taken = []
        for request in requests:
            prompt = {"prompt_token_ids": request.token_ids}
            try:
                self._engine.enqueue(prompt, request.params, use_tqdm=False)
            except (TypeError, ValueError, VLLMValidationError) as error:
                self._refuse(request.index, f"vLLM refuses it, correct this: {error}")
            else:
                taken.append(request)
        outputs = self._engine.wait_for_completion(use_tqdm=use_tqdm)
        return list(zip(taken, outputs, strict=True))


def _generate(
    engine: "LLM",
    requests: list[_Request],
    errors: dict[int, str],
    progress: bool,
) -> list[tuple[_Request, Any]]:
    """The output of each request; those that vLLM refuses go to `errors`."""
    core = engine.llm_engine
    step = core.step
    with _Progress(len(requests) + len(errors), progress) as bar:
        bar.update(len(errors))

        def refuse(index: int, reason: str) -> None:
            errors[index] = reason
            bar.update(1)

        def observed_step() -> Any:
            outputs = step()
            bar.update_with([o.outputs[0] for o in outputs if o.finished])
            return outputs

        core.step = observed_step
        try:
            return interruptible(_OneByOne(engine, refuse))(requests, use_tqdm=False)
        finally:
            core.step = step


class _Progress:
    """A bar of prompts that tells new tokens per second and how many were cut short."""

    def __init__(self, total: int, shown: bool) -> None:
        from tqdm.auto import tqdm
        from tqdm.notebook import tqdm_notebook

        self._tokens = self._truncated = 0
        self._shown = shown
        self._handle = None
        in_notebook = shown and issubclass(tqdm, tqdm_notebook)
        own = {"display": False} if in_notebook else {}
        self._bar = tqdm(
            total=total, desc="batch", unit=" prompts", disable=not shown, **own
        )
        if in_notebook:
            from IPython.display import display

            self._handle = display(self._bar.container, display_id=True)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.close()
        if self._handle:  # A saved notebook shows text, which else would say 0%.
            self._handle.update(self._bar.container)

    def update(self, prompts: int) -> None:
        self._bar.update(prompts)

    def update_with(self, completions: list[Any]) -> None:
        if not (completions and self._shown):
            return
        self._tokens += sum(len(one.token_ids) for one in completions)
        self._truncated += sum(one.finish_reason == "length" for one in completions)
        speed = self._tokens / max(self._bar.format_dict["elapsed"], 1e-9)
        self._bar.set_postfix_str(
            f"{speed:,.0f} tokens/s, {self._truncated} truncated", refresh=False
        )
        self._bar.update(len(completions))
