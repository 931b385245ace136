"""One engine and any number of prompts: each answer parsed, as soon as it is there.

`run_batch` is what a notebook calls; this is what works below it.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...models import cached_name, find_model
from ...sampling import PRESETS
from ...thinking import ThinkingParser, unfinished_hint
from ..engine.errors import is_out_of_memory
from ..engine.sampling_params import Sampling
from ..engine.stop import abort_all, engine_of, stoppable
from ..thinking.families import unwrap_tokenizer
from .prompts import Preparer, Request

if TYPE_CHECKING:
    from vllm import LLM, SamplingParams


@dataclass(frozen=True, repr=False)
class BatchResult:
    """What became of one prompt.

    `index` is its place in the list, `prompt` what stood there, `id` the prompt's own.
    `response` is None while the thinking is unfinished (`complete` is False then), and
    where there is an `error`, which says what to do. `finish_reason` is vLLM's: "stop",
    or "length" where the tokens ran out. `tokens` counts all generated tokens, those of
    the thinking, of the response and the markers between; `prompt_tokens` the prompt's.
    `tries` is how often it was asked, see `retry_truncated`.
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
    tries: int = 1

    @property
    def truncated(self) -> bool:
        """True where tokens ran out, in the thinking or in the answer."""
        return self.finish_reason == "length"

    def __repr__(self) -> str:
        name = f"{self.index}" if self.id is None else f"{self.index}, id={self.id!r}"
        if self.error is not None:
            return f"BatchResult({name}, error={self.error!r})"
        hint = "" if self.complete else f"  # {unfinished_hint(self.finish_reason)}"
        return (
            f"BatchResult({name}, response={self.response!r}, {self.tokens} tokens, "
            f"finish_reason={self.finish_reason!r}){hint}"
        )


class BatchRunner:
    """A model and what all prompts share, ready to answer any number of prompts.

        runner = BatchRunner(model, {"max_tokens": 512})
        with contextlib.closing(runner.run(prompts)) as finished:
            for result in finished:  # in the order in which they finish
                ...

    The arguments and what is raised are those of `run_batch`.
    """

    # Prompts handed to the engine for each that it can work on: enough that it never
    # waits, few enough that a long file is not held in memory.
    IN_FLIGHT = 2

    def __init__(
        self,
        model: Any,
        sampling_params: "SamplingParams | Mapping[str, Any] | None" = None,
        *,
        tokenizer: Any = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        engine = engine_of(model)
        if engine is None:
            raise TypeError(
                f"run_batch needs vLLM's engine, and {type(model).__name__} has none: "
                "load the model with fast_inference=True, or pass a vllm.LLM"
            )
        self._engine, self._core = engine, engine.llm_engine
        tokenizer = engine.get_tokenizer() if tokenizer is None else tokenizer
        self._tokenizer = unwrap_tokenizer(tokenizer)
        self._parser = ThinkingParser(tokenizer)
        config = engine.llm_engine.vllm_config
        self.room = config.model_config.max_model_len  # in tokens, prompt and answer
        sampling = Sampling(*_recommended(engine), self._thinks, sampling_params)
        self._preparer = Preparer(tokenizer, self.room, sampling, chat_template_kwargs)
        self.job = job_of(config.model_config.model, sampling, chat_template_kwargs)
        self._most = self.IN_FLIGHT * config.scheduler_config.max_num_seqs
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
                    if _ends_everything(error):
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
        while len(self._running) < self._most:
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
            self._engine.enqueue(prompt, request.params, use_tqdm=False)
        except Exception as error:
            if _ends_everything(error):
                raise
            # A failed request stays in vLLM's bookkeeping until it is aborted.
            late = list(itertools.islice(states, before, None))
            self._core.abort_request(late, internal=True)
            return _engine_error(error)
        newest = next(reversed(states.values()))
        self._running[newest.external_req_id] = request
        return None

    def _result(self, request: Request, output: Any) -> BatchResult:
        (completion,) = output.outputs
        token_ids, reason = completion.token_ids, completion.finish_reason
        if reason in ("abort", "error"):
            return _failed(request, "vLLM gave this prompt up: run it again.")
        parsed = self._parser.parse(
            token_ids, prompt_token_ids=request.token_ids, finish_reason=reason
        )
        thinking, response = parsed
        if isinstance(completion.stop_reason, str):
            # vLLM's own text ends before a stop string. The tokens that complete it may
            # begin before it and end after it.
            text = self._tokenizer.decode(token_ids, skip_special_tokens=True)
            after = text[len(completion.text) :].rstrip()
            if response is None:
                thinking = thinking.removesuffix(after).rstrip()
            else:
                response = response.removesuffix(after).rstrip()
        return BatchResult(
            request.index,
            request.prompt,
            request.id,
            thinking=thinking,
            response=response,
            complete=parsed.complete,
            finish_reason=reason,
            prompt_tokens=len(request.token_ids),
            tokens=len(token_ids),
            thinking_tokens=parsed.thinking_tokens,
            response_tokens=parsed.response_tokens,
        )

    def _thinks(self, token_ids: Sequence[int]) -> bool:
        """Whether a prompt lets the model think: it does not where it closes that."""
        return self._parser.may_think(token_ids)


def _ends_everything(error: Exception) -> bool:
    """Whether the engine can't go on after what it raised, for any prompt."""
    from vllm.v1.engine.exceptions import EngineDeadError

    # After a CUDA error every later call in this process fails as well.
    return (
        isinstance(error, EngineDeadError)
        or "CUDA error" in str(error)
        or is_out_of_memory([error])
    )


def _failed(request: Request, error: str) -> BatchResult:
    return BatchResult(request.index, request.prompt, request.id, error=error)


def _engine_error(error: Exception) -> str:
    return f"vLLM refuses it, correct this: {error or type(error).__name__}"


def job_of(
    path: str, sampling: Sampling, chat_template_kwargs: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What the answers of a batch depend on, beside its prompts."""
    if Path(path).is_dir():
        path = str(Path(path).resolve())
    spec = find_model(path)
    return {
        "model": spec.name if spec else cached_name(path) or path,
        "sampling_params": sampling.given,
        "chat_template_kwargs": dict(chat_template_kwargs or {}),
    }


def _recommended(engine: "LLM") -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The sampling that the model's authors recommend, and room for thinking.

    The second is for prompts that let a hybrid model think, None for other models.
    """
    config = engine.model_config
    room = {"max_tokens": PRESETS["thinking"]["max_tokens"]}
    if spec := find_model(config.model):
        thinking = spec.thinking_sampling
        return room | spec.sampling, room | thinking if thinking else None
    return room | config.get_diff_sampling_param(), None
