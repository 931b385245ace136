"""Prompts from files: JSONL, Parquet and OpenAI's batch format, read bit by bit.

    for prompt in read_prompts("questions.jsonl"): ...

A line, or a row, is a prompt in any form that `run_batch` takes. What can't be read is
no reason to stop: it comes as a `Refused`, which says why.
"""

import json
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from os import PathLike
from typing import Any, NamedTuple

# fsspec decompresses by the last part of the ending.
_JSONL = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".jsonl.xz", ".jsonl.bz2")
_ENDINGS = (*_JSONL, ".parquet")
_ROWS = 1024  # of Parquet in memory at once
# The keys of a prompt that is a dict, and the columns of Parquet.
KEYS = ("id", "messages", "prompt", "sampling_params", "chat_template_kwargs")
# Fields of a request to OpenAI's API, or vLLM's extensions of it, that SamplingParams
# has too: vllm/entrypoints/openai/chat_completion/protocol.py.
_SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "n", "min_tokens"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "max_tokens"),
    *("stop_token_ids", "ignore_eos", "thinking_token_budget"),
)
# Fields that do not affect the answer.
_IGNORED = ("model", "user", "metadata", "store", "service_tier", "stream_options")
# Fields that are accepted with the values that ask for nothing special.
_HARMLESS: Mapping[str, Any] = {
    **{"stream": False, "logprobs": False, "top_logprobs": 0, "echo": False},
    **{"response_format": {"type": "text"}, "add_generation_prompt": True},
    **{"tools": [], "tool_choice": "none"},
}


class Refused(NamedTuple):
    """A prompt that can't be taken, and why; it becomes a result with an `error`."""

    reason: str
    id: Any = None
    prompt: Any = None


def is_file(prompts: Any) -> bool:
    """Whether `prompts` names a file: a path, or a text with a known ending."""
    return isinstance(prompts, PathLike) or (
        isinstance(prompts, str) and prompts.endswith(_ENDINGS) and "\n" not in prompts
    )


def read_prompts(path: str | PathLike) -> Iterator[Any]:
    """Read the prompts of a JSONL or Parquet file, a few at a time.

    `path` is a local one or a URL that fsspec opens (s3://, gs://, hf://, https://).
    Each line of JSONL is a prompt as `run_batch` takes it, or a request in OpenAI's
    batch format (`custom_id` and `body`); the loaded model answers, whatever `model`
    the body names, and what can't be honoured is refused by name. The columns of
    Parquet are id, prompt or messages, sampling_params and chat_template_kwargs, or
    custom_id and body; others are left out.

    Raises `ValueError` for another ending and for Parquet without prompts, `OSError`
    for a file that can't be opened.
    """
    if not str(path).endswith(_ENDINGS):
        raise ValueError(f"{path}: a file of prompts ends in .jsonl or .parquet")
    rows = _parquet_rows if str(path).endswith(".parquet") else _json_lines
    for row in rows(str(path)):
        is_request = isinstance(row, dict) and {"custom_id", "body"} & set(row)
        yield _of_request(row) if is_request else row


class Prompts:
    """The prompts of a batch, to be gone through more than once, a few at a time.

    `source` is a file, or prompts in memory. Going through it gives each prompt, with
    a `Refused` in the place of one whose id can't be written, or was there before.
    `digest` tells whether all of them are the same as those of another time. 16 bytes
    of memory go with each prompt of a file.
    """

    def __init__(self, source: "str | PathLike | Iterable[Any]") -> None:
        import numpy as np

        self._source = source if is_file(source) else list(source)
        digest = blake2b(digest_size=8)
        ids = array("q")
        self._count = 0
        self._repeated: set[int] = set()
        for prompt in self:
            self._count += 1
            digest.update(prompt_hash(prompt).encode())
            if (key := id_of(prompt)) is not None:
                ids.append(hash(key))
        self.digest = digest.hexdigest()
        # Only ids whose hashes collide have to be remembered when the prompts are read.
        values, counts = np.unique(ids, return_counts=True)
        self._repeated = set(values[counts > 1].tolist())

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        seen = set()
        source = self._source
        for prompt in read_prompts(source) if is_file(source) else source:
            key = id_of(prompt)
            if key is None:
                yield prompt
            elif not _is_writable(key):
                yield Refused("an id is a text or a whole number.", None, prompt)
            elif key in seen:
                reason = f"the id {key!r} is that of an earlier prompt."
                yield Refused(reason, key, prompt)
            else:
                if self._repeated and hash(key) in self._repeated:
                    seen.add(key)
                yield prompt


def id_of(prompt: Any) -> Any:
    """The id that a prompt brings, or None."""
    if isinstance(prompt, Refused):
        return prompt.id
    return prompt.get("id") if isinstance(prompt, Mapping) else None


def _is_writable(key: Any) -> bool:
    if isinstance(key, str):
        return not re.search("[\ud800-\udfff]", key)
    return type(key) is int


def _json_lines(path: str) -> Iterator[Any]:
    import fsspec

    with fsspec.open(path, "rb", compression="infer") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Refused(f"line {number} is no JSON: {error}")


def _parquet_rows(path: str) -> Iterator[Any]:
    import fsspec
    from pyarrow.parquet import ParquetFile

    with fsspec.open(path, "rb") as file:
        table = ParquetFile(file)
        there = table.schema_arrow.names
        columns = [c for c in (*KEYS, "custom_id", "body", "url") if c in there]
        if not {"prompt", "messages", "body"} & set(columns):
            raise ValueError(
                f"{path} has no column prompt, messages or body, but "
                f"{', '.join(there)}: rename the one that holds the prompts."
            )
        for batch in table.iter_batches(_ROWS, columns=columns):
            for row in batch.to_pylist():
                yield _without_nulls(row)


def _without_nulls(value: Any) -> Any:
    """Parquet fills each row up to all fields that any row has; these go again."""
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value


def _of_request(request: dict[str, Any]) -> Any:
    """A request in OpenAI's batch format, as a prompt of ours."""
    key, body = request.get("custom_id"), request.get("body")
    if isinstance(body, str):  # In Parquet it may be JSON.
        try:
            body = json.loads(body)
        except ValueError as error:
            return Refused(f"body is no JSON: {error}", key)
    url = request.get("url", "/v1/chat/completions")
    if url != "/v1/chat/completions":
        return Refused(f"url {url}: only /v1/chat/completions can be answered.", key)
    if not isinstance(body, dict) or "messages" not in body:
        return Refused("a request needs a body with messages.", key)
    given = {k: v for k, v in body.items() if v is not None and k not in _IGNORED}
    prompt = {"id": key, "messages": given.pop("messages", None)}
    if "chat_template_kwargs" in given:
        prompt["chat_template_kwargs"] = given.pop("chat_template_kwargs")
    if "max_completion_tokens" in given:  # OpenAI's newer name of max_tokens.
        given["max_tokens"] = given.pop("max_completion_tokens")
    sampling = {name: given.pop(name) for name in _SAMPLING if name in given}
    if rules := _structure(given.get("response_format")):
        template = prompt.get("chat_template_kwargs")
        if not isinstance(template, dict) or template.get("enable_thinking", True):
            reason = (
                "response_format would bind the thinking as well: switch that off with "
                'chat_template_kwargs {"enable_thinking": false}, or ask in two passes.'
            )
            return Refused(reason, key)
        del given["response_format"]
        sampling["structured_outputs"] = rules
    if refused := [name for name in given if given[name] != _HARMLESS.get(name)]:
        return Refused(f"run_batch has nothing for {', '.join(refused)}.", key)
    return {**prompt, "sampling_params": sampling} if sampling else prompt


def _structure(response_format: Any) -> dict[str, Any] | None:
    """OpenAI's `response_format` as vLLM's `structured_outputs`, where it is one."""
    match response_format:
        case {"type": "json_object"}:
            return {"json_object": True}
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            return {"json": schema}
    return None


def prompt_hash(prompt: Any) -> str:
    """16 hex digits that tell whether a prompt, with id and parameters, is the same."""
    try:
        text = json.dumps(prompt, sort_keys=True, default=_as_text)
    except (TypeError, ValueError, RecursionError):  # Its own error comes later.
        text = type(prompt).__name__
    return blake2b(text.encode(), digest_size=8).hexdigest()


def _as_text(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    # SamplingParams' repr has all values; other reprs may contain an address.
    return repr(value) if hasattr(value, "__struct_fields__") else type(value).__name__
