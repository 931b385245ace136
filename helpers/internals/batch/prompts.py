"""The prompts of a batch, from a list or a file, in order and a few at a time.

In go texts, chats, dicts of ours or requests in OpenAI's batch format, also as JSON
text, in a list or as JSONL or Parquet. Out comes a `Prompt` for each, with its chat or
the reason why it is `refused`. What a template and an engine check is left to vLLM.
"""

import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import islice
from os import PathLike
from typing import Any

from ..engine.sampling_params import plain_values
from .fingerprint import encode_value, plain_value

# At the end of a path, or before the query of a URL.
_KIND = re.compile(r"\.(?:(?:jsonl|ndjson)(?:\.(?:gz|xz|bz2))?|parquet)(?=$|\?\S*$)")
_ROWS = 1024  # of Parquet in memory at once
# The keys of a prompt that is a dict, and the columns of Parquet.
_KEYS = ("id", "messages", "prompt", "sampling_params", "chat_template_kwargs")
_SHAPES = (
    "a prompt is a string, a list of chat messages, or a dict with messages or prompt "
    "and, if wanted, id, sampling_params and chat_template_kwargs"
)
# Fields of a request to OpenAI's API, or vLLM's extensions of it: those that
# SamplingParams has too, those that do not affect the answer (some only without tools),
# and what clients write in others where nothing special is asked for.
_SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "n", "min_tokens"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "max_tokens"),
    *("stop_token_ids", "ignore_eos", "thinking_token_budget"),
)
_IGNORED = {
    *("model", "user", "metadata", "store", "service_tier", "stream_options"),
    *("prompt_cache_key", "prompt_cache_retention", "safety_identifier"),
    *("tool_choice", "function_call", "parallel_tool_calls"),
}
_DEFAULTS = {"response_format": {"type": "text"}, "modalities": ["text"]}


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


def larger_budget(record: Mapping[str, Any], room: int, retries: int) -> int:
    """Return twice the tokens of a record whose thinking ran out of them, else 0.

    0 also after `retries` further tries, and where the model's `room` is used up.
    """
    tokens = record["completion_tokens"]
    ran_out = record["finish_reason"] == "length" and record["response"] is None
    fits = record["prompt_tokens"] + tokens < room and record["tries"] <= retries
    return 2 * tokens if ran_out and fits else 0


def with_budget(prompt: Prompt, tries: int, budget: int) -> Prompt:
    """Return a prompt that was asked `tries` times, with room for `budget` tokens."""
    own = plain_values(prompt.sampling_params) | {"max_tokens": budget}
    return replace(prompt, sampling_params=own, tries=tries + 1)


def to_prompt(index: int, given: Any, template: Mapping[str, Any]) -> Prompt:
    """Return what stood at a place as a `Prompt`, refused if it means none."""
    key = None
    try:
        if isinstance(given, Exception):  # a line that could not be read
            raise given
        row = given if isinstance(given, Mapping) else {"messages": given}
        is_request = "body" in row
        key = _checked_id(row.get("custom_id" if is_request else "id"))
        row = plain_value(row)
        row = _from_openai(row) if is_request else row
        if unknown := [name for name in row if name not in _KEYS]:
            raise ValueError(f"unknown key {', '.join(unknown)}: {_SHAPES}.")
        own = _parsed(row.get("chat_template_kwargs") or {}, dict)
        if not isinstance(own, dict):
            raise ValueError(
                "chat_template_kwargs are a dict, such as {'enable_thinking': False}."
            )
        sampling, kwargs = _parsed(row.get("sampling_params"), dict), template | own
        binds = is_request and "structured_outputs" in (sampling or {})
        if binds and kwargs.get("enable_thinking", True):
            raise ValueError(
                "response_format would bind the thinking as well: switch that off with "
                'chat_template_kwargs {"enable_thinking": false}, or ask in two passes.'
            )
        return Prompt(index, given, _messages(row), key, sampling, kwargs)
    except Exception as error:
        return Prompt(index, given, id=key, refused=str(error))


def _checked_id(key: Any) -> str | int | None:
    key = key.item() if hasattr(key, "item") else key  # NumPy's
    if key != key:  # pandas has NaN where an id is missing,
        return None
    if isinstance(key, float) and key.is_integer():  # and floats beside it.
        key = int(key)
    if isinstance(key, str | None) or type(key) is int and abs(key) < 2**63:
        return key
    raise ValueError("an id is a text or a whole number of at most 64 bits.")


def _parsed(value: Any, kind: type) -> Any:
    """Return what JSON text stands for, where it stands for a `kind`; else `value`."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return found if isinstance(found, kind) else value


def _messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    given = [row[name] for name in ("messages", "prompt") if row.get(name) is not None]
    if len(given) != 1:
        raise ValueError("give the dict either messages or prompt.")
    chat, found = given[0], _parsed(given[0], list)
    if isinstance(chat, str):
        # A chat as JSON text, as many exports have it, or a question.
        roles = [isinstance(m, dict) and "role" in m for m in found]
        is_chat = found != chat and all(roles)
        chat = found if is_chat else [{"role": "user", "content": chat}]
    if not isinstance(chat, list):
        raise ValueError(f"{_SHAPES}; this is of type {type(chat).__name__}.")
    messages = [_message(message) for message in chat]
    if messages and messages[-1]["role"] == "assistant" and not _says(messages[-1]):
        messages.pop()  # An empty turn is one to be written, not one to go on with.
    if not any(map(_says, messages)):
        raise ValueError("the prompt is empty: write a question, or leave it out.")
    return messages


def _message(message: Any) -> dict[str, Any]:
    """Check a message, and read its calls' arguments; vLLM drops those that are bad."""
    match message:
        case {"role": str(), "content": str() | list()}:
            pass
        case {"role": "assistant"} | {"role": str(), "tool_calls": [_, *_]}:
            message.setdefault("content", None)
        case _:
            raise ValueError(
                'each chat message is a dict with "role" and "content"; one is '
                f"{str(message)[:60]!r}."
            )
    for call in message.get("tool_calls") or ():
        function = call["function"]
        function["arguments"] = _parsed(function.get("arguments") or {}, dict)
        if not isinstance(function["arguments"], dict):
            raise ValueError(f"the arguments of a call are not a JSON object: {call}.")
    return message


def _says(message: Mapping[str, Any]) -> bool:
    return bool(message.get("tool_calls") or any(map(str.strip, texts_of(message))))


def texts_of(message: Mapping[str, Any]) -> list[str]:
    """Return the texts of a message: its content, or each part that is text."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return [content]
    texts = [p.get("text", "x") if isinstance(p, dict) else p for p in content]
    return [text if isinstance(text, str) else "" for text in texts]


def check_formatted(messages: list[dict[str, Any]], text: str) -> None:
    """Raise `ValueError` for a message that the chat template left out of `text`.

    What is said twice has to be there twice. Of an assistant's message the last line is
    looked for, since templates leave out earlier thinking, and the tools it calls.
    Warns of a message with the marker that begins the text.
    """
    mark = re.match(r"<[^<>]+>|\[\w+\]", text)
    if mark and any(mark[0] in said for m in messages for said in texts_of(m)):
        warnings.warn(
            f"a prompt contains {mark[0]}, which the template writes itself: pass the "
            "question alone or the list of messages; a formatted text goes to "
            "model.fast_generate.",
            stacklevel=2,
        )
    said = [(number, one) for number, m in enumerate(messages, 1) for one in _said(m)]
    together = "\n".join(_on_one_line(one) for _, one in said)
    written = _on_one_line(text)
    for number, one in said:
        forms = {one, json.dumps(one, ensure_ascii=False)[1:-1]}
        found = sum(written.count(form) for form in map(_on_one_line, forms))
        if found < together.count(_on_one_line(one)):
            raise ValueError(
                f"the model's chat template leaves out message {number}, of role "
                f"{messages[number - 1]['role']!r}: give it a role that the template "
                "writes, such as 'system' or 'user'."
            )


def _said(message: Mapping[str, Any]) -> list[str]:
    texts = list(map(str.strip, texts_of(message)))
    if message["role"] == "assistant":
        texts = [text.rpartition("\n")[2] for text in texts]
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    return list(filter(None, texts + [call.get("name") for call in calls]))


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


def _from_openai(request: dict[str, Any]) -> dict[str, Any]:
    body, url = _parsed(request["body"], dict), str(request.get("url") or "")
    if url and not url.partition("?")[0].rstrip("/").endswith("chat/completions"):
        raise ValueError(f"url {url}: only /v1/chat/completions can be answered.")
    if not isinstance(body, dict) or "messages" not in body:
        raise ValueError("a request needs a body, a JSON object with messages.")
    asked = {k: v for k, v in body.items() if v is not None and k not in _IGNORED}
    if "max_completion_tokens" in asked:  # OpenAI's newer name of max_tokens.
        asked["max_tokens"] = asked.pop("max_completion_tokens")
    names = "messages", "chat_template_kwargs"
    row = {name: asked.pop(name) for name in names if name in asked}
    sampling = {name: asked.pop(name) for name in _SAMPLING if name in asked}
    form = asked.pop("response_format", None)
    match form:
        case {"type": "json_object"}:
            sampling["structured_outputs"] = {"json_object": True}
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            sampling["structured_outputs"] = {"json": schema}
        case _:
            asked["response_format"] = form
    refused = [k for k, v in asked.items() if v and v != _DEFAULTS.get(k)]
    if refused:
        raise ValueError(f"run_batch has nothing for {', '.join(refused)}.")
    return {**row, "sampling_params": sampling} if sampling else row


class PromptSource:
    """Prompts that can be gone through more than once, a few at a time.

    `template` holds the `chat_template_kwargs` of all prompts. `job` has the number of
    prompts and a digest of their values. Rows that are added to a file later are not
    taken. Raises `TypeError` for what is not a list of prompts, `ValueError` for a kind
    of file that is not read, `OSError` for one that can't be opened.
    """

    def __init__(self, prompts: Any, template: Mapping[str, Any] | None = None) -> None:
        is_file = isinstance(prompts, str | PathLike)
        self._given = _checked_path(prompts) if is_file else _checked_list(prompts)
        self._template = template or {}
        self._count, digest = 0, blake2b(digest_size=8)
        for given in self._rows():
            self._count += 1
            try:
                digest.update(encode_value(given) + b"\n")
            except Exception as error:  # It is refused in these words.
                digest.update(str(error).encode())
        self.job = {"prompts": self._count, "prompts_hash": digest.hexdigest()}

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Prompt]:
        seen, index = set(), -1
        for index, given in enumerate(islice(self._rows(), self._count)):
            prompt = to_prompt(index, given, self._template)
            if prompt.id is not None and prompt.id in seen:
                why = f"the id {prompt.id!r} is that of an earlier prompt."
                prompt = Prompt(index, given, id=prompt.id, refused=why)
            seen.add(prompt.id)
            yield prompt
        for gone in range(index + 1, self._count):
            yield Prompt(gone, None, refused="this row was taken out of the file.")

    def _rows(self) -> Iterable[Any]:
        return _read(self._given) if isinstance(self._given, str) else self._given


def _checked_list(prompts: Any) -> list[Any]:
    # Iterating a DataFrame gives its column names, and a dict its keys.
    if isinstance(prompts, bytes | Mapping) or hasattr(prompts, "columns"):
        raise TypeError(
            "prompts is a list: put a single prompt in brackets, [prompt], and of a "
            "table pass the column that holds them, such as df['question']"
        )
    prompts = list(prompts)
    if prompts and all(isinstance(p, Mapping) and "role" in p for p in prompts):
        raise TypeError("this is one chat: put its messages in brackets, [messages]")
    return prompts


def _checked_path(path: "str | PathLike") -> str:
    path = os.path.expanduser(path)
    if not _KIND.search(path.lower()) or os.path.isdir(path):
        raise ValueError(
            f"{path[:80]!r} is not a file of prompts. Those end in .jsonl or .parquet; "
            'pandas makes one by .to_json("prompts.jsonl", orient="records", '
            "lines=True). A single prompt goes in brackets, [prompt]."
        )
    return path


def _read(path: str) -> Iterator[Any]:
    """Read the rows of a file; a line that can't be read comes as a `ValueError`."""
    import fsspec
    from fsspec.utils import infer_compression

    kind = _KIND.search(path.lower())[0]
    with fsspec.open(path, "rb", compression=infer_compression(kind)) as file:
        if kind == ".parquet":
            yield from _read_parquet(file)
            return
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
    columns = [c for c in (*_KEYS, "custom_id", "body", "url") if c in there]
    if not {"prompt", "messages", "body"} & set(columns):
        raise ValueError(
            "the file of prompts has no column prompt, messages or body, but "
            f"{', '.join(there)}: rename the one that holds them."
        )
    for batch in table.iter_batches(_ROWS, columns=columns):
        yield from map(_without_nulls, batch.to_pylist())


def _without_nulls(value: Any) -> Any:
    """Drop what is null: Parquet gives every row all fields that any row has."""
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value
