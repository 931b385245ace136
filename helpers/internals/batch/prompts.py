"""One prompt, in any of the shapes in which people have them, as a `Prompt`.

In go a text, a chat, a dict of ours or a request in OpenAI's batch format, as Python's
objects or partly as JSON text. Out comes the chat, with id and parameters. One that
can't be taken comes with `refused`, the reason. This module knows nothing of files and
engines, and leaves to vLLM what a template and an engine check.
"""

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..engine.sampling_params import plain_values
from .fingerprint import encode_value

# The keys of a prompt that is a dict, and the columns of Parquet.
KEYS = ("id", "messages", "prompt", "sampling_params", "chat_template_kwargs")
_SHAPES = (
    "a prompt is a string, a list of chat messages, or a dict with messages or prompt "
    "and, if wanted, id, sampling_params and chat_template_kwargs"
)
# Fields of a request to OpenAI's API, or vLLM's extensions of it, that SamplingParams
# has too: vllm/entrypoints/openai/chat_completion/protocol.py.
_SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "n", "min_tokens"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "max_tokens"),
    *("stop_token_ids", "ignore_eos", "thinking_token_budget"),
)
# Fields that do not affect the answer.
_IGNORED = {"model", "user", "metadata", "store", "service_tier", "stream_options"}
_IGNORED |= {"prompt_cache_key", "prompt_cache_retention", "safety_identifier"}
_IGNORED |= {"parallel_tool_calls"}
# What clients write where nothing special is asked for, beside empty values.
_DEFAULTS = {
    "response_format": [{"type": "text"}],
    **dict.fromkeys(("tool_choice", "function_call"), ["auto", "none"]),
    "modalities": [["text"]],
    "add_generation_prompt": [True],
}


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
    ran_out = record["finish_reason"] == "length" and record["response"] is None
    tokens = record["completion_tokens"]
    fits = record["prompt_tokens"] + tokens < room
    return 2 * tokens if ran_out and fits and record["tries"] <= retries else 0


def with_budget(prompt: Prompt, tries: int, budget: int) -> Prompt:
    """Return a prompt that was asked `tries` times, with room for `budget` tokens."""
    own = plain_values(prompt.sampling_params) | {"max_tokens": budget}
    return replace(prompt, sampling_params=own, tries=tries + 1)


def to_prompt(index: int, given: Any, template: Mapping[str, Any]) -> Prompt:
    row = given if isinstance(given, Mapping) else {"messages": given}
    key = row.get("custom_id") if "body" in row else row.get("id")
    try:
        key = _checked_id(key)
        if isinstance(given, Exception):  # a line that could not be read
            raise given
        encode_value(given)
        if "body" in row:
            row = _from_openai(row, template)
        if unknown := [str(name) for name in row if name not in KEYS]:
            raise ValueError(f"unknown key {', '.join(unknown)}: {_SHAPES}.")
        own = _parsed(row.get("chat_template_kwargs"), dict)
        if not isinstance(own, Mapping | None):
            raise ValueError(
                "chat_template_kwargs are a dict, such as {'enable_thinking': False}."
            )
        messages = _messages(row)
        sampling = _parsed(row.get("sampling_params"), dict)
    except (TypeError, ValueError) as error:
        return Prompt(index, given, id=_writable(key), refused=str(error))
    both = {**template, **own} if own else template
    return Prompt(index, given, messages, key, sampling, both)


def _checked_id(key: Any) -> Any:
    """Return an id as text or as a whole number. Raises `ValueError`."""
    key = key.item() if hasattr(key, "item") else key  # NumPy's
    if isinstance(key, float):
        if key != key:  # pandas has NaN where an id is missing,
            return None
        key = int(key) if key.is_integer() else key  # and floats beside it.
    if key is not None and _writable(key) is None:
        raise ValueError("an id is a text or a whole number.")
    return key


def _writable(key: Any) -> Any:
    is_text = isinstance(key, str) and not re.search("[\ud800-\udfff]", key)
    return key if is_text or type(key) is int else None


def _parsed(value: Any, kind: type) -> Any:
    """Return what JSON text stands for, where it stands for a `kind`; else `value`."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return found if isinstance(found, kind) else value
    return value


def _messages(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the chat of a row. Raises `ValueError` where there is none."""
    given = [row[name] for name in ("messages", "prompt") if row.get(name) is not None]
    if len(given) != 1:
        raise ValueError("give the dict either messages or prompt.")
    chat = given[0]
    found = _parsed(chat, list)
    if found is not chat and all(isinstance(m, dict) and "role" in m for m in found):
        chat = found  # A chat as JSON text, as many exports have it.
    if isinstance(chat, bytes | bytearray):
        raise ValueError("the prompt is bytes: pass text, prompt.decode().")
    if isinstance(chat, str):
        chat = [{"role": "user", "content": chat}]
    if hasattr(chat, "tolist"):  # pandas turns a column of lists into arrays.
        chat = chat.tolist()
    if not isinstance(chat, list | tuple):
        raise ValueError(f"{_SHAPES}; this is of type {type(chat).__name__}.")
    messages = [_message(message) for message in chat]
    if messages and messages[-1]["role"] == "assistant" and not _says(messages[-1]):
        messages.pop()  # An empty turn is one to be written, not one to go on with.
    if not any(map(_says, messages)):
        raise ValueError("the prompt is empty: write a question, or leave it out.")
    return messages


def _message(message: Any) -> dict[str, Any]:
    known = message if isinstance(message, Mapping) else {}
    role, content, calls = map(known.get, ("role", "content", "tool_calls"))
    content = content.tolist() if hasattr(content, "tolist") else content
    if not isinstance(role, str) or not isinstance(content, str | list | tuple | None):
        raise ValueError(
            'each chat message is a dict with "role" and "content"; one is '
            f"{str(message)[:60]!r}."
        )
    if content is None and not calls and role != "assistant":
        raise ValueError('each chat message is a dict with "role" and "content".')
    content = list(content) if isinstance(content, tuple) else content
    own = {"tool_calls": [_tool_call(call) for call in calls]} if calls else {}
    return {**message, "content": content, **own}


def _tool_call(call: Any) -> dict[str, Any]:
    """Return a tool's call with its arguments as a dict. Raises `ValueError`.

    vLLM writes into the caller's, and takes arguments that are not JSON for none.
    """
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise ValueError('each of tool_calls is a dict with "function".')
    arguments = function.get("arguments") or {}
    found = _parsed(arguments, dict)
    if not isinstance(found, Mapping):
        raise ValueError(f"a tool's arguments are not a JSON object: {arguments!r}.")
    return {**call, "function": {**function, "arguments": found}}


def _says(message: Mapping[str, Any]) -> bool:
    return bool(message.get("tool_calls") or any(map(str.strip, texts_of(message))))


def texts_of(message: Mapping[str, Any]) -> list[str]:
    """Return the texts of a message: its content, or each part that is text."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return [content]
    texts = [p.get("text", "x") if isinstance(p, Mapping) else p for p in content]
    return [text if isinstance(text, str) else "" for text in texts]


def refuse_lost_messages(messages: list[dict[str, Any]], text: str) -> None:
    """Raise `ValueError` for a message whose text the chat template left out of `text`.

    Of an assistant's message the last line is looked for, since templates leave out
    earlier thinking.
    """
    for number, message in enumerate(messages, start=1):
        for said in map(str.strip, texts_of(message)):
            if message["role"] == "assistant":
                said = said.rpartition("\n")[2]
            if said in text or json.dumps(said, ensure_ascii=False)[1:-1] in text:
                continue
            if " ".join(said.split()) not in " ".join(text.split()):
                raise ValueError(
                    f"the model's chat template leaves out message {number}, of role "
                    f"{message['role']!r}: give it a role that the template writes, "
                    "such as 'system' or 'user'."
                )


def warn_if_formatted(messages: list[dict[str, Any]], text: str) -> None:
    """Warn of a message with the marker that begins the chat template's text."""
    mark = re.match(r"<[^<>]+>|\[\w+\]", text)
    if not mark or not any(mark[0] in t for m in messages for t in texts_of(m)):
        return
    warnings.warn(
        f"a prompt contains {mark[0]}, which the chat template writes itself: a text "
        "that is formatted already gets formatted twice. Pass the question alone or "
        "the list of messages; a formatted text goes to model.fast_generate.",
        stacklevel=2,
    )


def _from_openai(
    request: Mapping[str, Any], template: Mapping[str, Any]
) -> dict[str, Any]:
    """Turn a request in OpenAI's batch format into a prompt. Raises `ValueError`."""
    body, url = _parsed(request["body"], dict), str(request.get("url") or "")
    if url and not url.partition("?")[0].rstrip("/").endswith("chat/completions"):
        raise ValueError(f"url {url}: only /v1/chat/completions can be answered.")
    if not isinstance(body, Mapping) or "messages" not in body:
        raise ValueError("a request needs a body, a JSON object with messages.")
    asked = {k: v for k, v in body.items() if v is not None and k not in _IGNORED}
    row = {"messages": asked.pop("messages")}
    if "chat_template_kwargs" in asked:
        row["chat_template_kwargs"] = asked.pop("chat_template_kwargs")
    if "max_completion_tokens" in asked:  # OpenAI's newer name of max_tokens.
        asked["max_tokens"] = asked.pop("max_completion_tokens")
    sampling = {name: asked.pop(name) for name in _SAMPLING if name in asked}
    match asked.get("response_format"):
        case {"type": "json_object"}:
            rules: dict[str, Any] | None = {"json_object": True}
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            rules = {"json": schema}
        case _:
            rules = None
    if rules:
        own = row.get("chat_template_kwargs")
        kwargs = {**template, **own} if isinstance(own, Mapping) else template
        if kwargs.get("enable_thinking", True):
            raise ValueError(
                "response_format would bind the thinking as well: switch that off with "
                'chat_template_kwargs {"enable_thinking": false}, or ask in two passes.'
            )
        del asked["response_format"]
        sampling["structured_outputs"] = rules
    refused = [k for k, v in asked.items() if v and v not in _DEFAULTS.get(k, ())]
    if refused:
        raise ValueError(f"run_batch has nothing for {', '.join(refused)}.")
    return {**row, "sampling_params": sampling} if sampling else row
