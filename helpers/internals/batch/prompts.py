"""The prompts of a batch, from a list or a file, in order and a few at a time.

In go texts, chats, dicts of ours or requests in OpenAI's batch format, also as JSON
text, in a list or as JSONL or Parquet. Out comes a `Prompt` for each, with its chat or
the reason why it is `refused`. What a template and an engine check is left to vLLM.
"""

import ast
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice, repeat
from os import PathLike
from typing import Any

from ..engine.sampling_params import plain_values
from .fingerprint import digest_of, is_null, plain_value, template_arguments

# At the end of a path, or before the query of a URL.
_KIND = re.compile(r"\.(?:(?:jsonl|ndjson)(?:\.(?:gz|xz|bz2))?|parquet)(?=$|\?\S*$)")
_KEYS = "id", "messages", "prompt", "sampling_params", "chat_template_kwargs"
_SHAPES = f"a prompt is a text, a list of messages or a dict of {', '.join(_KEYS)}"
# Names that would be lost beside a prompt; each has its place in one of these.
_MISPLACED = {"system", "tools", "temperature", "max_tokens", "top_p", "top_k"}
_MISPLACED |= {"min_p", "seed", "stop"}
# Fields of a request to OpenAI's API that do not affect the answer, some only without
# tools, and what clients write in others where they ask for nothing special.
_IGNORED = (
    "model|user|metadata|store|service_tier|stream_options|tool_choice|function_call|"
    "parallel_tool_calls|safety_identifier|prompt_cache_key|prompt_cache_retention"
)
_DEFAULTS = {"stream": False, "logprobs": False, "top_logprobs": 0}
_DEFAULTS |= {"response_format": {"type": "text"}, "modalities": ["text"]}


@dataclass(frozen=True)
class Prompt:
    """One prompt: its place among all, what stood there, and what that means.

    `refused` says why it can't be asked; `tries` how often it will have been asked.
    """

    index: int
    given: Any
    messages: list[dict[str, Any]] = field(default_factory=list)
    id: Any = None
    sampling_params: Any = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    refused: str = ""
    tries: int = 1


def with_budget(prompt: Prompt, budget: int) -> Prompt:
    """Return the prompt for another try, with room for `budget` tokens."""
    own = plain_values(prompt.sampling_params) | {"max_tokens": budget}
    return replace(prompt, sampling_params=own, tries=prompt.tries + 1)


def to_prompt(index: int, given: Any, template: Mapping[str, Any]) -> Prompt:
    """Return what stood at a place as a `Prompt`, refused if it means none."""
    key = None
    try:
        if isinstance(given, Exception):  # a line that could not be read
            raise given
        row = _parsed_text(given, dict)  # A line of a file, that may not be read yet.
        is_row = isinstance(row, Mapping) and {"prompt", "messages", "body"} & {*row}
        if is_row or isinstance(given, Mapping):
            row = {k: v for k, v in row.items() if not is_null(v)}
        else:
            row = {"messages": given}
        is_request = "body" in row
        if beside := is_request and [k for k in row if k in {*_KEYS, *_MISPLACED}]:
            why = "write it into the body, and an id as custom_id."
            raise ValueError(f"{', '.join(beside)} stands beside the body: {why}")
        key = _checked_id(row.get("custom_id" if is_request else "id"))
        row = _from_openai(plain_value(row)) if is_request else plain_value(row)
        if unknown := [name for name in row if name not in _KEYS]:
            raise ValueError(f"unknown key {', '.join(unknown)}: {_SHAPES}.")
        sampling = _parsed_text(row.get("sampling_params"), dict)
        own = template_arguments(_parsed_text(row.get("chat_template_kwargs"), dict))
        kwargs = {**template, **own}
        binds = is_request and "structured_outputs" in (sampling or {})
        if binds and kwargs.get("enable_thinking", True):
            off = 'chat_template_kwargs {"enable_thinking": false}'
            raise ValueError(f"JSON would bind the thinking: set {off}, or ask twice.")
        return Prompt(index, given, _chat_of(row), key, sampling, kwargs)
    except Exception as error:
        why = str(error) if isinstance(error, ValueError) else f"{_SHAPES}: {error!r}."
        return Prompt(index, given, id=key, refused=why)


def _checked_id(key: Any) -> str | int | None:
    key = plain_value(key)
    key = int(key) if isinstance(key, float) and key.is_integer() else key  # pandas'
    if isinstance(key, str | None) or type(key) is int and abs(key) < 2**63:
        return None if key == "" else key  # An empty cell of a CSV file.
    raise ValueError("an id is a text or a whole number of at most 64 bits.")


def _parsed_text(value: Any, kind: type) -> Any:
    """Return what JSON stands for, or Python's own text, if it is of a kind."""
    if not isinstance(value, str | bytes):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        found = None
        if value.lstrip()[:1] in ("[", "{", b"[", b"{"):  # As DataFrame.to_csv writes.
            with suppress(Exception), warnings.catch_warnings(action="ignore"):
                found = ast.literal_eval(value.strip())
    return found if isinstance(found, kind) else value


def _from_openai(row: dict[str, Any]) -> dict[str, Any]:
    """Return the prompt of a request; SamplingParams refuse what they do not have."""
    body, url = _parsed_text(row["body"], dict), row.get("url") or "chat/completions"
    if "chat/completions" not in str(url):
        raise ValueError(f"url {url}: only /v1/chat/completions can be answered.")
    if not isinstance(body, dict) or "messages" not in body:
        raise ValueError("a request needs a body, a JSON object with messages.")
    found = {k: body.pop(k, None) for k in ("messages", "chat_template_kwargs")}
    kept = {k: v for k, v in body.items() if not re.fullmatch(_IGNORED, k)}
    kept = {k: v for k, v in kept.items() if v not in (None, [], {}, _DEFAULTS.get(k))}
    if "max_completion_tokens" in kept:  # OpenAI's newer name of max_tokens.
        kept["max_tokens"] = kept.pop("max_completion_tokens")
    match kept.pop("response_format", None):
        case {"type": "json_object"}:
            kept["structured_outputs"] = {"json_object": True}
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            kept["structured_outputs"] = {"json": schema}
        case form if form:
            kept["response_format"] = form
    return found | {"sampling_params": kept or None}


def _chat_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    given = [row[name] for name in ("messages", "prompt") if row.get(name) is not None]
    if len(given) != 1:
        raise ValueError("give the dict either messages or prompt.")
    chat, parsed = given[0], _parsed_text(given[0], list)
    if isinstance(chat, str):  # A question, or a chat as many exports have it.
        is_chat = isinstance(parsed, list)
        is_chat = is_chat and all(isinstance(m, dict) and "role" in m for m in parsed)
        if not is_chat and re.match(r"\[\s*\{\s*['\"]role['\"]", chat):  # NumPy's text
            raise ValueError("a chat as text that can't be read: pass the list itself.")
        chat = parsed if is_chat else [{"role": "user", "content": chat}]
    if not isinstance(chat, list):
        raise ValueError(f"{_SHAPES}; this is of type {type(chat).__name__}.")
    for message in chat:
        match message:
            case {"role": str(), "content": str() | list()} | {"role": "assistant"}:
                calls = message.get("tool_calls") or ()
            case _:
                why = f'has "role" and "content", unlike {str(message)[:60]!r}'
                raise ValueError(f"each chat message {why}.")
        for call in calls:  # vLLM drops arguments that are bad.
            function = call.get("function") if isinstance(call, dict) else None
            found = function and _parsed_text(function.get("arguments") or {}, dict)
            if not isinstance(found, dict) or "name" not in function:
                why = '"function", with "name" and "arguments" that are a JSON object'
                raise ValueError(f"a tool call has {why}, unlike {str(call)[:60]!r}.")
            function["arguments"] = found
    if chat and chat[-1]["role"] == "assistant" and not _said_in(chat[-1]):
        chat.pop()  # An empty turn is one to be written, not one to go on with.
    parts = [part for message in chat for part in message.get("content") or ()]
    parts = [part for part in parts if isinstance(part, dict)]
    pictures = [part for part in parts if not isinstance(part.get("text"), str)]
    if any(str(part.get("type")).endswith("text") for part in pictures):
        raise ValueError('a part of type "text" has its words as "text".')
    if not pictures and not any(map(_said_in, chat)):
        raise ValueError("the prompt is empty: write a question, or leave it out.")
    return chat


def _said_in(message: Mapping[str, Any]) -> list[str]:
    """Return what a template has to write: texts, and the names of tools called."""
    content, calls = message.get("content") or (), message.get("tool_calls") or ()
    parts = [content] if isinstance(content, str) else content
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    texts = [text.strip() for text in texts if isinstance(text, str)]
    if message["role"] == "assistant":  # Templates leave out its earlier thinking.
        thinking = r"(?s).*(\n|</think>|\[/THINK\])(?=.)"
        texts = [re.sub(thinking, "", text).strip() for text in texts]
    older = message.get("refusal"), (message.get("function_call") or {}).get("name")
    names = (call["function"]["name"] for call in calls)
    return [*filter(None, (*texts, *older)), *names]


def check_formatted(messages: list[dict[str, Any]], text: str, tools: Any = ()) -> None:
    """Raise `ValueError` for a message or tool that the template left out of `text`.

    Two equal messages must be there twice. Warns of one with the text's first marker.
    """
    names = [tool.get("function", tool).get("name") for tool in tools or ()]
    if None in names:
        raise ValueError('each of the tools needs a "name".')
    said = [(f"the tool {name!r}", name) for name in names]
    for number, message in enumerate(messages, start=1):
        what = f"message {number}, of role {message['role']!r}"
        said += [(what, one) for one in _said_in(message)]
    mark = re.match(r"<[^<>]+>|\[\w+\]", text)
    if mark and any(mark[0] in one for _, one in said):
        why = f"a prompt contains {mark[0]}, which the template writes itself: pass the"
        warnings.warn(f"{why} question alone or the list of messages.", stacklevel=2)
    written, together = _bare_text(text), "\n".join(_bare_text(one) for _, one in said)
    for what, one in said:
        if written.count(_bare_text(one)) < together.count(_bare_text(one)):
            raise ValueError(f"the model's chat template does not write {what}.")


def _bare_text(text: str) -> str:
    """Drop what JSON or a template may change: spaces, quotes and their escapes."""
    return re.sub(r'\\[nrt]|[\s"\\]', "", text)


class PromptSource:
    """Prompts that can be gone through more than once, a few at a time.

    `job` has their number and a digest of their values. Rows that are added to a file
    later are not taken. Raises `TypeError` for what is not a list of prompts, `OSError`
    for a file that can't be opened, `ValueError` for a damaged one or another kind.
    """

    def __init__(self, prompts: Any, template: Mapping[str, Any] | None = None) -> None:
        self._template = template or {}
        if isinstance(prompts, str | PathLike):
            path = os.path.expanduser(prompts)
            kind = _KIND.search(path.lower())
            if not kind or os.path.isdir(path):
                why = "those end in .jsonl or .parquet; others come in a list, [prompt]"
                raise ValueError(f"{path[:80]!r} is not a file of prompts: {why}.")
            self._rows = partial(_read_rows, path, kind[0])
        # Iterating a DataFrame gives its column names, and a dict its keys.
        elif isinstance(prompts, bytes | Mapping) or hasattr(prompts, "columns"):
            raise TypeError("prompts is a list, [prompt]; of a table pass the column")
        else:
            prompts = list(prompts)
            if prompts and all(isinstance(p, Mapping) and "role" in p for p in prompts):
                raise TypeError("this is one chat: put it in brackets, [messages]")
            self._rows = partial(iter, prompts)
        self.job = digest_of(self._rows())

    def __iter__(self) -> Iterator[Prompt]:
        seen, gone = set(), ValueError("this row was taken out of the file.")
        rows = islice(chain(self._rows(), repeat(gone)), self.job["prompts"])
        for index, given in enumerate(rows):
            prompt = to_prompt(index, given, self._template)
            if prompt.id is not None and prompt.id in seen:
                why = f"the id {prompt.id!r} is that of an earlier prompt."
                prompt = replace(prompt, refused=why)
            seen.add(prompt.id)
            yield prompt


def _read_rows(path: str, kind: str) -> Iterator[Any]:
    """Read the rows of a file; a line that can't be read comes as a `ValueError`."""
    import fsspec
    from fsspec.utils import infer_compression

    with fsspec.open(path, "rb", compression=infer_compression(kind)) as file:
        try:
            yield from _read_parquet(file) if kind == ".parquet" else _read_lines(file)
        except Exception as error:  # Each library has its own for what is damaged.
            why = f"{path.partition('?')[0]} can't be read: {error}"
            raise ValueError(why) from error


def _read_lines(file: Any) -> Iterator[Any]:
    for number, line in enumerate(file, start=1):
        try:  # Windows begins a file with a mark of its own.
            if text := line.decode("utf-8-sig").strip():
                yield json.loads(text)
        except (ValueError, RecursionError) as error:
            yield ValueError(f"line {number} is not valid JSON in UTF-8: {error}")


def _read_parquet(file: Any) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile

    table = ParquetFile(file)
    there = table.schema_arrow.names
    columns = [name for name in there if name in {*_KEYS, "custom_id", "body", "url"}]
    if not {"prompt", "messages", "body"} & set(columns):
        raise ValueError(f"its columns are {', '.join(there)}: rename one to prompt")
    if lost := ", ".join(sorted(_MISPLACED & {*there})):
        raise ValueError(f"move {lost} into {', '.join(_KEYS[1:])}, or rename it")
    for batch in table.iter_batches(1024, columns=columns):
        yield from map(_without_nulls, batch.to_pylist())


def _without_nulls(value: Any) -> Any:
    """Drop what is null: Parquet gives every row all fields that any row has."""
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value
