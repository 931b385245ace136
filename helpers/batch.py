"""Many prompts in, as many results out, in order; a bad prompt fails by itself.

    results = run_batch(model, ["What is 2 + 2?", "What is recursion?"])
    run_batch(model, "questions.jsonl", output="answers.jsonl")

A prompt is a string (a user's message), a list of chat messages, or a dict with
`messages` (or `prompt`) and, if wanted, `id`, and `sampling_params` and
`chat_template_kwargs` of its own. A chat that ends in an assistant's words is continued
there.

With an `output`, a path that ends in .jsonl or .parquet, each result is written there
as soon as it is finished. Whatever ends the process, the same call goes on where it
stopped; at the end the records are in the order of the prompts. A URL gets the whole
file then, which until then is kept on this machine.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

from .internals.batch.jobs import Run, Tries, answer_all, run_job
from .internals.batch.journal import staged
from .internals.batch.records import Prompts, Refused, is_file
from .internals.batch.runner import BatchResult, BatchRunner
from .internals.batch.summary import BatchSummary, summarise
from .scaling import RayEngine, RayRunner

if TYPE_CHECKING:
    from vllm import SamplingParams


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
    `prompts` is a list, or the path or URL of a file, see `read_prompts`.
    `sampling_params` are for all of them; a dict holds what differs from the default,
    which is what the model's authors recommend, with up to 2,048 new tokens.
    `chat_template_kwargs` go to the template, `{"enable_thinking": False}` say.
    `retry_truncated` is how often a prompt is asked again whose tokens ran out in the
    thinking, each time with twice as many. `tokenizer` replaces the engine's own.
    `progress` shows a bar; by default it does not where the variable CI is set.

    A prompt that can't be answered gets a result with an `error`. An interrupt leaves
    an engine that works; what was finished is in the output, or else in the exception's
    `finished`, as it is with any other exception on the way.

    Raises `TypeError` for a wrong `model` or `prompts`, `ValueError` for bad
    `sampling_params` or chat template, `RuntimeError` for a model that generates in
    another thread, `NotEnoughMemoryError`; `JobMismatchError` for an output of another
    job, `JobLockedError` for one that another process writes, `OSError`;
    `EngineUnavailableError` where Ray is missing.
    """
    if not is_file(prompts):
        prompts = _as_prompts(prompts)
    runner = _runner(
        model, engine, retry_truncated, sampling_params, chat_template_kwargs, tokenizer
    )
    source = Prompts(prompts)
    tries = Tries(len(source), retry_truncated, runner.room)
    shown = "CI" not in os.environ if progress is None else progress
    if output is None:
        return _in_memory(runner.run, source, tries, Progress(shown))
    with staged(output) as path:
        run_job(runner.run, source, tries, path, runner.job, Progress(shown))
    return summarise(output)


def _runner(
    model: Any, engine: Any, retries: int, sampling: Any, template: Any, tokenizer: Any
) -> BatchRunner | RayRunner:
    if engine == "vllm":
        return BatchRunner(
            model, sampling, tokenizer=tokenizer, chat_template_kwargs=template
        )
    if engine == "ray" or isinstance(engine, RayEngine):
        where = RayEngine() if engine == "ray" else engine
        return RayRunner(model, where, retries, sampling, template)
    raise ValueError(f"engine is 'vllm' or 'ray' (or a RayEngine), not {engine!r}")


def _in_memory(
    run: Run, source: Prompts, tries: Tries, progress: "Progress"
) -> list[BatchResult]:
    results: dict[int, BatchResult] = {}
    answers = answer_all(run, source, tries, lambda prompt: prompt)
    try:
        with progress.over(tries) as bar, contextlib.closing(answers):
            for result, prompt in answers:
                given = prompt.prompt if isinstance(prompt, Refused) else prompt
                results[result.index] = replace(result, prompt=given)
                bar.add(result)
    except BaseException as error:
        error.finished = [results[index] for index in sorted(results)]
        raise
    return [results[index] for index in range(len(source))]


def _as_prompts(prompts: Any) -> list[Any]:
    if isinstance(prompts, str | Mapping):
        raise TypeError("prompts is a list: put a single prompt in brackets, [prompt]")
    if isinstance(prompts, bytes | bytearray):
        raise TypeError("prompts is a list of texts, not bytes: [prompts.decode()]")
    if hasattr(prompts, "columns"):  # Iterating a DataFrame gives column names.
        names = getattr(prompts, "column_names", prompts.columns)  # pyarrow's, pandas'
        name = next(iter(names), "column")
        raise TypeError(
            f"prompts is a list, not a {type(prompts).__name__}: pass the column that "
            f"holds them, df[{str(name)!r}]"
        )
    prompts = list(prompts)
    if prompts and all(isinstance(p, Mapping) and "role" in p for p in prompts):
        raise TypeError("this is one chat: put its messages in brackets, [messages]")
    return prompts


class Progress:
    """A bar of prompts that tells new tokens per second and how many were cut short."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._tokens = self._truncated = 0

    @contextlib.contextmanager
    def over(self, tries: Tries) -> "Iterator[Progress]":
        """Show the bar, from those prompts on that are done already."""
        from tqdm.auto import tqdm
        from tqdm.notebook import tqdm_notebook

        in_notebook = self._shown and issubclass(tqdm, tqdm_notebook)
        own = {"display": False} if in_notebook else {}
        self._tries = tries
        self._bar = tqdm(
            total=tries.count,
            initial=tries.count - tries.open,
            desc="batch",
            unit=" prompts",
            disable=not self._shown,
            **own,
        )
        handle = None
        if in_notebook:
            from IPython.display import display

            handle = display(self._bar.container, display_id=True)
        try:
            yield self
        finally:
            self._bar.close()
            if handle:  # A saved notebook shows text, but no live widget.
                handle.update({"text/plain": repr(self._bar.container)}, raw=True)

    def add(self, result: BatchResult) -> None:
        """Count one more answer; one that is to be asked again is not yet done."""
        if not self._shown:
            return
        done = self._tries.count - self._tries.open - self._bar.n
        self._tokens += result.tokens
        self._truncated += result.truncated and done > 0
        speed = self._tokens / max(self._bar.format_dict["elapsed"], 1e-9)
        self._bar.set_postfix_str(
            f"{speed:,.0f} tokens/s, {self._truncated} truncated", refresh=False
        )
        self._bar.update(done)
