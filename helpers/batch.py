"""Many prompts in, as many results out, in order; a bad prompt fails by itself.

    results = run_batch(model, ["What is 2 + 2?", "What is recursion?"])

All prompts go to vLLM at once, which batches them as its memory allows.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .interrupts import abort_all, stoppable
from .markers import unwrap_tokenizer
from .models import MODELS
from .prompts import Preparer, Request
from .sampling import PRESETS, Sampling
from .thinking import ThinkingParser, unfinished_hint

if TYPE_CHECKING:
    from vllm import LLM, SamplingParams

__all__ = ["BatchResult", "BatchRunner", "run_batch"]


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


def run_batch(
    model: Any,
    prompts: Iterable[Any],
    sampling_params: "SamplingParams | Mapping[str, Any] | None" = None,
    *,
    tokenizer: Any = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> list[BatchResult]:
    """Generate for many prompts, and return one parsed result each, in their order.

    `model` is one loaded with `fast_inference=True`, or a `vllm.LLM`. A prompt is a
    string (a user's message), a list of chat messages, or a dict with `messages` (or
    `prompt`) and, if wanted, an `id`, its own `sampling_params`, as `SamplingParams`
    or as a dict of those values that differ from the others', and its own
    `chat_template_kwargs`. A chat that ends in an assistant's words is continued there.

    `sampling_params` are for all prompts; a dict holds what differs from the default,
    which is what the model's authors recommend, with up to 2,048 new tokens.
    `chat_template_kwargs` go to the chat template, `{"enable_thinking": False}` say;
    a hybrid model's default sampling follows what they make of the prompt.
    `tokenizer` replaces the engine's own. `progress` shows a bar with prompts, new
    tokens per second and how many prompts were cut short.

    A prompt that is empty, of a wrong type, too long for the model, or that comes with
    bad parameters gets a result with an `error`, and the rest goes on. An interrupt
    ends the batch, and leaves an engine that works; what was finished is in the
    exception's `finished`, a list of results, as it is for any other exception.

    Raises `TypeError` for a model without vLLM's engine and for prompts that are no
    list, `ValueError` for bad `sampling_params` and a tokenizer without a chat template
    or with a broken one, `RuntimeError` for a model that generates in another thread,
    `NotEnoughMemoryError` when the generation runs out of memory.
    """
    prompts = _as_prompts(prompts)
    runner = BatchRunner(
        model,
        sampling_params,
        tokenizer=tokenizer,
        chat_template_kwargs=chat_template_kwargs,
    )
    results: list[BatchResult | None] = [None] * len(prompts)
    try:
        with (
            Progress(len(prompts), progress) as bar,
            contextlib.closing(runner.run(prompts)) as finished,
        ):
            for result in finished:
                results[result.index] = result
                bar.add(result)
    except BaseException as error:
        error.finished = [result for result in results if result is not None]
        raise
    return results


def _as_prompts(prompts: Any) -> list[Any]:
    if isinstance(prompts, str | Mapping):
        raise TypeError("prompts is a list: put a single prompt in brackets, [prompt]")
    if isinstance(prompts, bytes | bytearray):
        raise TypeError("prompts is a list of texts, not bytes: [prompts.decode()]")
    if hasattr(prompts, "columns"):  # A DataFrame gives the names of its columns.
        name = next(iter(prompts.columns), "column")
        raise TypeError(
            f"prompts is a list, not a {type(prompts).__name__}: pass the column that "
            f"holds them, df[{str(name)!r}]"
        )
    prompts = list(prompts)
    if prompts and all(isinstance(p, Mapping) and "role" in p for p in prompts):
        raise TypeError("this is one chat: put its messages in brackets, [messages]")
    return prompts


class BatchRunner:
    """A model and what all prompts share, ready to answer any number of prompts.

        runner = BatchRunner(model, {"max_tokens": 512})
        with contextlib.closing(runner.run(prompts)) as finished:
            for result in finished:  # In the order in which they end.
                ...

    The arguments and what is raised are those of `run_batch`.
    """

    # How many prompts the engine has at once, for each that it works on: it must never
    # wait for us, and a file of a million lines must not be held in memory.
    IN_FLIGHT = 2

    def __init__(
        self,
        model: Any,
        sampling_params: "SamplingParams | Mapping[str, Any] | None" = None,
        *,
        tokenizer: Any = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self._engine = engine = _engine_of(model)
        self._core = engine.llm_engine
        tokenizer = engine.get_tokenizer() if tokenizer is None else tokenizer
        self._tokenizer = unwrap_tokenizer(tokenizer)
        self._parser = ThinkingParser(tokenizer)
        config = engine.llm_engine.vllm_config
        self._preparer = Preparer(
            tokenizer,
            config.model_config.max_model_len,
            Sampling(*_recommended(engine), self._thinks, sampling_params),
            chat_template_kwargs,
        )
        self._room = self.IN_FLIGHT * config.scheduler_config.max_num_seqs
        self._running: dict[str, Request] = {}

    def run(self, prompts: Iterable[Any]) -> Iterator[BatchResult]:
        """Answer prompts, and give each result as soon as it is finished.

        `prompts` are read as the engine needs them, some hundreds ahead, so that they
        can come from a file of any length; `BatchResult.index` is a prompt's place in
        them. While the iterator is not exhausted or closed, Ctrl-C waits for the
        engine's step to end (so it cuts nothing that the caller does with a result),
        and nothing else can generate with the engine: close it, by
        `contextlib.closing`, where a loop over it may end early.

        Whatever the engine raises for one prompt becomes that prompt's error. Where it
        raises without saying for which, the prompts that it had are run again in
        halves, until the culprit is alone.
        """
        todo: list[Iterator[Request]] = [self._preparer.prepare(prompts)]
        with stoppable(self._core):
            self._running.clear()
            while todo:
                yield from self._fill(todo[-1])
                if not self._running:
                    todo.pop()
                    continue
                try:
                    outputs = self._core.step()
                except Exception as error:
                    if not self._survives(error):
                        raise
                    abort_all(self._core)
                    failed = list(self._running.values())
                    self._running.clear()
                    if len(failed) == 1:
                        yield _failed(failed[0], _engine_error(error))
                    else:
                        half = len(failed) // 2
                        todo += [iter(failed[half:]), iter(failed[:half])]
                    continue
                for output in outputs:
                    request = self._running.get(output.request_id)
                    if request is not None and output.finished:
                        del self._running[output.request_id]
                        yield self._result(request, output)

    def _fill(self, requests: Iterator[Request]) -> Iterator[BatchResult]:
        """Give the engine requests while it has room; those it can't get come back."""
        while len(self._running) < self._room:
            request = next(requests, None)
            if request is None:
                return
            error = request.error or self._enqueue(request)
            if error:
                yield _failed(request, error)

    def _enqueue(self, request: Request) -> str | None:
        states = self._core.output_processor.request_states
        prompt = {"prompt_token_ids": request.token_ids}
        before = len(states)
        try:
            (name,) = self._engine.enqueue(prompt, request.params, use_tqdm=False)
        except Exception as error:
            # One that failed on its way to the engine stays behind as half a request.
            late = list(itertools.islice(states, before, None))
            self._core.abort_request(late, internal=True)
            return _engine_error(error)
        self._running[states[name].external_req_id] = request
        return None

    def _survives(self, error: Exception) -> bool:
        """Whether the engine can go on after what it raised."""
        from vllm.v1.engine.exceptions import EngineDeadError

        return not isinstance(error, MemoryError | EngineDeadError)

    def _result(self, request: Request, output: Any) -> BatchResult:
        (completion,) = output.outputs
        if completion.finish_reason in ("abort", "error"):
            return _failed(request, "vLLM gave this prompt up: run it again.")
        parsed = self._parser.parse(
            completion.token_ids,
            prompt_token_ids=request.token_ids,
            finish_reason=completion.finish_reason,
        )
        thinking, response = parsed
        if isinstance(completion.stop_reason, str):
            cut = self._after_stop(completion)
            thinking, response = _cut(thinking, response, cut)
        return BatchResult(
            request.index,
            request.prompt,
            request.id,
            thinking=thinking,
            response=response,
            complete=parsed.complete,
            finish_reason=parsed.finish_reason,
            prompt_tokens=len(request.token_ids),
            tokens=len(completion.token_ids),
            thinking_tokens=parsed.thinking_tokens,
            response_tokens=parsed.response_tokens,
        )

    def _thinks(self, token_ids: Sequence[int]) -> bool:
        """Whether a prompt lets the model think: it does not where it closes that."""
        return self._parser.splitter(token_ids).phase != "answer"

    def _after_stop(self, completion: Any) -> str:
        """What the tokens hold beyond vLLM's own text, which ends before a stop string.

        The tokens that complete the string may begin before it and end after it.
        """
        text = self._tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        return text[len(completion.text) :].rstrip()


def _cut(thinking: str, response: str | None, end: str) -> tuple[str, str | None]:
    if response is None:
        return thinking.removesuffix(end).rstrip(), None
    return thinking, response.removesuffix(end).rstrip()


def _failed(request: Request, error: str) -> BatchResult:
    return BatchResult(request.index, request.prompt, request.id, error=error)


def _engine_error(error: Exception) -> str:
    return f"vLLM refuses it, correct this: {error or type(error).__name__}"


def _engine_of(model: Any) -> "LLM":
    engine = getattr(model, "vllm_engine", None) or model
    if not hasattr(engine, "llm_engine"):
        raise TypeError(
            f"run_batch needs vLLM's engine, and {type(model).__name__} has none: load "
            "the model with fast_inference=True, or pass a vllm.LLM"
        )
    return engine


def _recommended(engine: "LLM") -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The sampling that the model's authors recommend, and room for thinking.

    The second is for prompts that let a hybrid model think, None for other models.
    """
    config, room = (
        engine.model_config,
        {"max_tokens": PRESETS["thinking"]["max_tokens"]},
    )
    for spec in MODELS.values():
        if config.model in (spec.path, spec.path_16bit):
            thinking = spec.thinking_sampling
            return room | spec.sampling, room | thinking if thinking else None
    return room | config.get_diff_sampling_param(), None


class Progress:
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

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.close()
        if self._handle:  # A saved notebook shows text, which else would say 0%.
            self._handle.update(self._bar.container)

    def add(self, result: BatchResult) -> None:
        """Count one more finished prompt."""
        if not self._shown:
            return
        self._tokens += result.tokens
        self._truncated += result.truncated
        speed = self._tokens / max(self._bar.format_dict["elapsed"], 1e-9)
        self._bar.set_postfix_str(
            f"{speed:,.0f} tokens/s, {self._truncated} truncated", refresh=False
        )
        self._bar.update(1)
