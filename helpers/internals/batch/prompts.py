"""One prompt, in any of the shapes in which people have them, as a `Prompt`.

In go a text, a chat, a dict of ours or a request in OpenAI's batch format, as Python's
objects or partly as JSON text. Out comes the chat, with id and parameters, or the
reason why it is `refused`. This module knows nothing of files and engines, and leaves
to vLLM what a template and an engine check.
"""

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..engine.sampling_params import plain_values
from .fingerprint import plain_value

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
# Fields that do not affect the answer, and what clients write in the others where
# nothing special is asked for, beside empty values.
_IGNORED = {"model", "user", "metadata", "store", "service_tier", "stream_options"}
_IGNORED |= {"prompt_cache_key", "prompt_cache_retention", "safety_identifier"}
_IGNORED |= {"parallel_tool_calls", "tool_choice", "function_call"}  # without tools
_DEFAULTS = {"response_format": {"type": "text"}, "modalities": ["text"]}
_DEFAULTS |= {"add_generation_prompt": True}


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
    """Return what stood at a place as a `Prompt`, refused if it means none."""
    key = None
    try:
        if isinstance(given, Exception):  # a line that could not be read
            raise given
        row = given if isinstance(given, Mapping) else {"messages": given}
        is_request = "body" in row
        key = _checked_id(plain_value(row.get("custom_id" if is_request else "id")))
        row = plain_value(row)
        row = _from_openai(row) if is_request else row
        if unknown := [name for name in row if name not in KEYS]:
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
    """Return an id as text or as a whole number. Raises `ValueError`."""
    if isinstance(key, float) and (key != key or key.is_integer()):
        # pandas has NaN where an id is missing, and floats beside it.
        return None if key != key else int(key)
    if isinstance(key, str | None) or type(key) is int and abs(key) < 2**63:
        return key
    raise ValueError("an id is a text or a whole number of at most 64 bits.")


def _parsed(value: Any, kind: type) -> Any:
    """Return what JSON text stands for, where it stands for a `kind`; else `value`."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return found if isinstance(found, kind) else value
    return value


def _messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the chat of a row. Raises `ValueError` where there is none."""
    given = [row[name] for name in ("messages", "prompt") if row.get(name) is not None]
    if len(given) != 1:
        raise ValueError("give the dict either messages or prompt.")
    chat = given[0]
    found = _parsed(chat, list)
    if found is not chat and all(isinstance(m, dict) and "role" in m for m in found):
        chat = found  # A chat as JSON text, as many exports have it.
    if isinstance(chat, str):
        chat = [{"role": "user", "content": chat}]
    if not isinstance(chat, list):
        raise ValueError(f"{_SHAPES}; this is of type {type(chat).__name__}.")
    messages = [_message(message) for message in chat]
    if messages and messages[-1]["role"] == "assistant" and not _says(messages[-1]):
        messages.pop()  # An empty turn is one to be written, not one to go on with.
    if not any(map(_says, messages)):
        raise ValueError("the prompt is empty: write a question, or leave it out.")
    return messages


def _message(message: Any) -> dict[str, Any]:
    known = message if isinstance(message, dict) else {}
    role, content, calls = map(known.get, ("role", "content", "tool_calls"))
    may_lack = calls or role == "assistant"
    if not isinstance(role, str) or not (
        isinstance(content, str | list) or content is None and may_lack
    ):
        raise ValueError(
            'each chat message is a dict with "role" and "content"; one is '
            f"{str(message)[:60]!r}."
        )
    own = {"tool_calls": [_tool_call(call) for call in calls]} if calls else {}
    return {**message, "content": content, **own}


def _tool_call(call: Any) -> dict[str, Any]:
    """Return a tool's call with its arguments as a dict. Raises `ValueError`.

    vLLM takes arguments that are not JSON for none.
    """
    function = call.get("function") if isinstance(call, dict) else None
    if isinstance(function, dict):
        arguments = _parsed(function.get("arguments") or {}, dict)
        if isinstance(arguments, dict):
            return {**call, "function": {**function, "arguments": arguments}}
    raise ValueError(
        'each of tool_calls has a "function" with a JSON object of arguments; one '
        f"is {str(call)[:60]!r}."
    )


def _says(message: Mapping[str, Any]) -> bool:
    return bool(message.get("tool_calls") or any(map(str.strip, texts_of(message))))


def texts_of(message: Mapping[str, Any]) -> list[str]:
    """Return the texts of a message: its content, or each part that is text."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return [content]
    texts = [p.get("text", "x") if isinstance(p, dict) else p for p in content]
    return [text if isinstance(text, str) else "" for text in texts]


def refuse_lost_messages(messages: list[dict[str, Any]], text: str) -> None:
    """Raise `ValueError` for a message whose text the chat template left out of `text`.

    What is said twice has to be there twice. Of an assistant's message the last line is
    looked for, since templates leave out earlier thinking, and the tools it calls.
    """
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


def warn_if_formatted(messages: list[dict[str, Any]], text: str) -> None:
    """Warn of a message with the marker that begins the chat template's text."""
    mark = re.match(r"<[^<>]+>|\[\w+\]", text)
    if mark and any(mark[0] in said for m in messages for said in texts_of(m)):
        warnings.warn(
            f"a prompt contains {mark[0]}, which the chat template writes itself: pass "
            "the question alone or the list of messages; a formatted text goes to "
            "model.fast_generate.",
            stacklevel=2,
        )


def _from_openai(request: dict[str, Any]) -> dict[str, Any]:
    """Turn a request in OpenAI's batch format into a prompt. Raises `ValueError`."""
    body, url = _parsed(request["body"], dict), str(request.get("url") or "")
    if url and not url.partition("?")[0].rstrip("/").endswith("chat/completions"):
        raise ValueError(f"url {url}: only /v1/chat/completions can be answered.")
    if not isinstance(body, dict) or "messages" not in body:
        raise ValueError("a request needs a body, a JSON object with messages.")
    asked = {k: v for k, v in body.items() if v is not None and k not in _IGNORED}
    names = "messages", "chat_template_kwargs"
    row = {name: asked.pop(name) for name in names if name in asked}
    if "max_completion_tokens" in asked:  # OpenAI's newer name of max_tokens.
        asked["max_tokens"] = asked.pop("max_completion_tokens")
    sampling = {name: asked.pop(name) for name in _SAMPLING if name in asked}
    match asked.get("response_format"):
        case {"type": "json_object"}:
            sampling["structured_outputs"] = {"json_object": True}
            del asked["response_format"]
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            sampling["structured_outputs"] = {"json": schema}
            del asked["response_format"]
    refused = [k for k, v in asked.items() if v and v != _DEFAULTS.get(k)]
    if refused:
        raise ValueError(f"run_batch has nothing for {', '.join(refused)}.")
    return {**row, "sampling_params": sampling} if sampling else row
