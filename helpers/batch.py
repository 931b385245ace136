"""Many prompts in, as many results out, in order; a bad prompt fails by itself.

    results = run_batch(model, ["What is 2 + 2?", "What is recursion?"])
    run_batch(model, "questions.jsonl", output="answers.jsonl")

A prompt is a string (a user's message), a list of chat messages (one that ends in an
assistant's words is continued there), or a dict with `messages` or `prompt` and, if
wanted, `id`, `sampling_params` and `chat_template_kwargs` of its own.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

from .internals.batch import fingerprint
from .internals.batch.collect import answer_in_memory, answer_into
from .internals.batch.journal import as_record, larger_budget, staged
from .internals.batch.prompts import Prompt, PromptSource, check_formatted, with_budget
from .internals.batch.summary import BatchSummary, summarise
from .internals.engine.errors import ends_everything
from .internals.engine.hub import find_snapshot
from .internals.engine.plan import resolve_model_path
from .internals.engine.sampling_params import Sampling
from .internals.engine.stop import abort_all, engine_of, stoppable
from .internals.engine.weights import check_tensors
from .scaling import RayEngine, RayRunner
from .thinking import ThinkingParser, ThinkingResult

if TYPE_CHECKING:
    from vllm import SamplingParams


@dataclass(frozen=True, kw_only=True)
class BatchResult(ThinkingResult):
    """What became of one prompt: thinking and response, or an `error` with a remedy.

    `index` is its place in the list, `prompt` what stood there, `id` the prompt's own.
    `tokens` counts all generated tokens, `tries` how often the prompt was asked.
    """

    index: int
    prompt: Any = field(compare=False, repr=False)
    id: Any = None
    thinking: str | None = field(default=None, repr=False)
    response: str | None = None
    prompt_tokens: int = 0
    tokens: int = 0
    error: str | None = None
    tries: int = 1


def run_batch(
    model: Any,
    prompts: str | PathLike | Iterable[Any],
    sampling_params: "SamplingParams | Mapping[str, Any] | None" = None,
    *,
    output: str | PathLike | None = None,
    engine: "Literal['vllm', 'ray'] | RayEngine" = "vllm",
    retry_truncated: int = 0,
    tokenizer: Any = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> "list[BatchResult] | BatchSummary":
    """Answer prompts: one parsed result each, in order; with `output` a summary.

    `model` is one loaded with `fast_inference=True`, or a `vllm.LLM`; with `engine`
    "ray" (or a `RayEngine`) a name or path, which each of Ray's engines loads.
    `prompts` is a list, or the path or URL of JSONL or Parquet.
    `sampling_params` are for all prompts; a dict holds what differs from the default,
    which is what the model's authors recommend, with up to 2,048 new tokens.
    `output` ends in .jsonl or .parquet. Each result is written there as soon as it is
    finished; the same call goes on, and tries failures again. A URL gets it at the end.
    `retry_truncated` is how often a prompt is asked again whose tokens ran out in the
    thinking, each time with twice as many. `tokenizer` brings another chat template,
    which `chat_template_kwargs` go to, `{"enable_thinking": False}` say.
    `progress` shows a bar; by default it does not where the variable CI is set.

    An interrupt leaves an engine that works, and what was finished in the output, or in
    the exception's `finished`. Raises `TypeError` for a wrong `model` or `prompts`,
    `ValueError` for bad sampling or template and an output of another job or kind,
    `RuntimeError` for one in use, `OSError`, `ModelLoadError` without memory or Ray.
    """
    template = fingerprint.template_arguments(chat_template_kwargs)
    source = PromptSource(prompts, template)
    name, retries = template.get("chat_template"), int(retry_truncated or 0)
    own = tokenizer and fingerprint.template_text(tokenizer, name)
    source.job["own_template"] = own and fingerprint.short_digest(own.encode())
    shared = sampling_params, template, retries, tokenizer
    if engine == "vllm":
        batch: Any = Batch(model, *shared)
    elif engine == "ray" or isinstance(engine, RayEngine):
        where = RayEngine() if engine == "ray" else engine
        batch = RayRunner(_load_batch, model, where, *shared)
    else:
        raise ValueError(f"engine is 'vllm', 'ray' or a RayEngine, not {engine!r}")
    shown = "CI" not in os.environ if progress is None else progress
    if output is None:
        return answer_in_memory(batch, source, shown)
    with staged(output) as path:
        answer_into(path, batch, source, retries, shown)
    return summarise(output)


def _load_batch(name: str, where: RayEngine, *shared: Any) -> "Batch":
    room, gpus, more = where.max_seq_length, where.gpus_per_worker, where.load
    if gpus > 1:  # Unsloth's engine keeps to one.
        if folder := find_snapshot(path := resolve_model_path(name)):
            check_tensors(folder)  # vLLM takes noise for what is missing.
        from vllm import LLM

        options = {"max_model_len": room, "tensor_parallel_size": gpus}
        return Batch(LLM(path, **options, **more), *shared)
    from .loading import FastLanguageModel  # imports Unsloth

    options = {"max_seq_length": room, "fast_inference": True}
    return Batch(FastLanguageModel.from_pretrained(name, **options, **more)[0], *shared)


class Batch:
    """One engine and what all prompts share; arguments and errors are `run_batch`'s.

    `job` is what answers depend on beside the prompts, `room` the context in tokens.
    """

    IN_FLIGHT = 2  # prompts handed to vLLM for each that it can work on at once

    def __init__(
        self,
        model: Any,
        sampling_params: "SamplingParams | Mapping[str, Any] | None" = None,
        template: Mapping[str, Any] | None = None,
        retries: int = 0,
        tokenizer: Any = None,
    ) -> None:
        if (engine := engine_of(model)) is None:
            raise TypeError("run_batch needs vLLM: load with fast_inference=True")
        self._engine, self._core, self._retries = engine, engine.llm_engine, retries
        self._states = self._core.output_processor.request_states
        config = self._core.vllm_config
        shape, self.room = config.model_config, config.model_config.max_model_len
        self._most = self.IN_FLIGHT * config.scheduler_config.max_num_seqs
        self._tokenizer = engine.get_tokenizer()
        self._templates = tokenizer or self._tokenizer
        self._parser = ThinkingParser(self._tokenizer)
        name = (template or {}).get("chat_template")
        text = fingerprint.template_text(self._templates, name)
        given = text if tokenizer or name else engine.chat_template
        self._chat_template, own = given, shape.get_diff_sampling_param()
        self._sampling = Sampling(shape.model, sampling_params, own)
        text = given or text
        digest = fingerprint.short_digest(text.encode()) if text else None
        known = {"chat_template": digest, "chat_template_kwargs": template or {}}
        known |= {"sampling_params": self._sampling.resolved, "context": self.room}
        known["precision"] = f"{shape.dtype}, {shape.quantization or 'not quantised'}"
        known["random_weights"] = config.load_config.load_format == "dummy"
        if not callable(shape.hf_overrides):
            known["hf_overrides"] = str(shape.hf_overrides)
        self.job = fingerprint.job_of(shape.model, shape.revision, **known)

    def run(self, prompts: Iterable[Prompt]) -> Iterator[BatchResult]:
        """Answer prompts, each as soon as it is finished, in the order of finishing.

        Prompts are read as the engine needs them. Until the iterator is exhausted or
        closed, Ctrl-C waits for the engine's step, and nothing else can generate.
        """
        with stoppable(self._core):
            yield from self._answer(iter(prompts))

    def _answer(self, prompts: Iterator[Prompt]) -> Iterator[BatchResult]:
        running: dict[str, Prompt] = {}
        again: list[Prompt] = []
        while True:
            while len(running) < self._most:
                prompt = again.pop() if again else next(prompts, None)
                if prompt is None:
                    break
                try:
                    running[self._enqueue(prompt)] = prompt
                except Exception as error:
                    yield _failed(prompt, error)
            if not running:
                return
            try:
                outputs = self._core.step()
            except Exception as error:  # It does not say which prompt is bad.
                asked, running, outputs = list(running.values()), {}, ()
                result = _failed(asked[0], error)  # Raises what ends everything.
                abort_all(self._core)
                if half := len(asked) // 2:
                    yield from self._answer(iter(asked[:half]))
                    yield from self._answer(iter(asked[half:]))
                else:
                    yield result
            for output in outputs:
                if output.finished and (prompt := running.pop(output.request_id, None)):
                    result = self._result(prompt, output)
                    budget = larger_budget(as_record(result), self.room, self._retries)
                    if budget:
                        again.append(with_budget(prompt, budget))
                    else:
                        yield result

    def _enqueue(self, prompt: Prompt) -> str:
        """Hand a prompt to vLLM, which formats it; return its output's request_id."""
        if prompt.refused:
            raise ValueError(prompt.refused)
        last, kwargs = prompt.messages[-1], dict(prompt.chat_template_kwargs)
        begun = last["role"] == "assistant" and not last.get("tool_calls")
        thinks = bool(kwargs.get("enable_thinking", True))
        params = self._sampling.for_prompt(prompt.sampling_params, thinks)
        template = self._chat_template
        if name := kwargs.pop("chat_template", None):
            template = fingerprint.template_text(self._templates, name)
        how = {"chat_template": template, "chat_template_kwargs": kwargs}
        how |= {"add_generation_prompt": not begun, "continue_final_message": begun}
        # The template writes the start token.
        how |= {"tokenization_kwargs": {"add_special_tokens": False}, "use_tqdm": False}
        before = len(self._states)
        try:
            self._engine.enqueue_chat(prompt.messages, params, **how)
            state = next(reversed(self._states.values()))
            text = state.prompt or self._tokenizer.decode(state.prompt_token_ids)
            check_formatted(prompt.messages, text, kwargs.get("tools"))
        except Exception:
            # A failed request stays in vLLM's bookkeeping until it is aborted.
            late = list(islice(self._states, before, None))
            self._core.abort_request(late, internal=True)
            raise
        return state.external_req_id

    def _result(self, prompt: Prompt, output: Any) -> BatchResult:
        (completion,) = output.outputs
        token_ids, reason = completion.token_ids, completion.finish_reason
        if reason in ("abort", "error"):
            why = "vLLM gave this up: run it again, or correct its structured_outputs."
            return _result_of(prompt, error=why, finish_reason=reason)
        parsed = self._parser.parse(token_ids, output.prompt_token_ids, reason)
        if isinstance(completion.stop_reason, str):
            # vLLM's own text ends before a stop string. The tokens that complete it may
            # begin before it and end after it.
            text = self._tokenizer.decode(token_ids, skip_special_tokens=True)
            after = text[len(completion.text) :].rstrip()
            part = "response" if parsed.complete else "thinking"
            ended = getattr(parsed, part).removesuffix(after).rstrip()
            parsed = replace(parsed, **{part: ended})
        read, written = len(output.prompt_token_ids), len(token_ids)
        return _result_of(prompt, prompt_tokens=read, tokens=written, **vars(parsed))


def _result_of(prompt: Prompt, **found: Any) -> BatchResult:
    about = {"index": prompt.index, "prompt": prompt.given, "id": prompt.id}
    return BatchResult(**about, tries=prompt.tries, **found)


def _failed(prompt: Prompt, error: Exception) -> BatchResult:
    """Return the result of a prompt that failed. Raises what ends everything."""
    if ends_everything(error):
        raise error
    name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return _result_of(prompt, error=f"{name}{error}", finish_reason="error")
